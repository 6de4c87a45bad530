"""The presets are whole, and describe the models that they are named after."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from configs import base, language, published, vision
from flamingo_jax.evaluation.prompts import Medium, Text
from flamingo_jax.evaluation.tasks import TASKS
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.interop.language_rules import read_config
from flamingo_jax.interop.vision_rules import (
  config_from_clip,
  config_from_idefics,
  config_from_siglip,
  config_from_timm,
)
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig, gated_layers
from flamingo_jax.models.parameters import flat
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.parallel.mesh import parameter_shardings
from flamingo_jax.planning.parameters import Comparison, compare, parameter_counts
from flamingo_jax.training.optimizer import decayed
from flamingo_jax.training.placing import check_fit
from launch.config import PACKAGED, load_config
from launch.experiment import Experiment, read_experiment

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
GATED_LAYERS = dict(
  flamingo_3b=24,
  flamingo_9b=10,
  flamingo_9b_counts=8,
  flamingo_80b=12,
  openflamingo_3b=24,
  openflamingo_4b=16,
  openflamingo_9b=8,
  idefics_9b=8,
  idefics_80b=20,
)


@functools.cache
def experiment(name: str) -> Experiment:
  path = f"configs/{name}.py"
  return read_experiment(load_config(path, {}), path)


@functools.cache
def comparison(name: str) -> dict[str, Comparison]:
  run = experiment(name)
  counts = parameter_counts(run.objective(), run.training.trainable)
  return {row.part: row for row in compare(counts, published.COUNTS.get(name, {}))}


def described_files() -> list[pathlib.Path]:
  return [path for path in sorted(PACKAGED.glob("[!_]*.py")) if "def get_config" in path.read_text()]


@pytest.mark.parametrize("path", described_files(), ids=lambda path: path.stem)
def test_every_config_builds_without_a_fault(path):
  assert experiment(path.stem).stream_configs


@pytest.mark.parametrize(("name", "number"), GATED_LAYERS.items())
def test_gated_layers_are_as_many_as_published(name, number):
  model = experiment(name).model
  assert len(gated_layers(model.language.layers, model.cross_attention)) == number


def test_openflamingo_gates_the_last_layer_of_every_group_and_flamingo_the_first():
  places = {
    name: gated_layers(32, experiment(name).model.cross_attention) for name in ("openflamingo_9b", "flamingo_9b")
  }
  assert places["openflamingo_9b"] == tuple(layer for layer in range(32) if (layer + 1) % 4 == 0)
  assert places["flamingo_9b"] == tuple(layer for layer in range(32) if layer % 4 == 0)


@pytest.mark.parametrize("name", published.COUNTS)
def test_counts_are_within_five_percent_of_the_paper_where_no_note_says_otherwise(name):
  rows = comparison(name)
  assert published.COUNTS[name].keys() <= rows.keys()
  differing = {part for part, row in rows.items() if row.published and abs(row.count / row.published - 1) > 0.05}
  assert differing == published.NOTES[name].keys()


def test_the_3b_counts_as_the_paper_does():
  rows = comparison("flamingo_3b")
  assert rows["total"].count == pytest.approx(3.2e9, rel=0.05)
  assert rows["gated cross-attention"].count == pytest.approx(1.21e9, rel=0.05)
  assert rows["vision encoder"].count == pytest.approx(435e6, rel=0.05)
  assert rows["language model"].count == pytest.approx(1.4e9, rel=0.05)


def test_the_80b_counts_as_the_paper_does():
  assert comparison("flamingo_80b")["total"].count == pytest.approx(80e9, rel=0.05)


@pytest.mark.parametrize(
  ("layers", "width", "name"),
  [
    (24, 2048, "flamingo_3b"),
    (40, 4096, "flamingo_9b"),
    (32, 4096, "flamingo_9b_counts"),
    (80, 8192, "flamingo_80b"),
  ],
)
def test_chinchilla_has_thirteen_squares_of_its_width_a_layer(layers, width, name):
  """12 of attention and feed-forward, one of relative positions; then the table. Norms and biases are the rest."""
  closed = 13 * width**2 * layers + 32_000 * width
  assert 0 <= comparison(name)["language model"].count - closed < 1e-3 * closed


@pytest.mark.parametrize(
  ("name", "width"),
  [("flamingo_3b", 2048), ("flamingo_9b", 4096), ("flamingo_9b_counts", 4096), ("flamingo_80b", 8192)],
)
def test_the_resampler_has_twelve_squares_of_its_width_a_layer_and_a_map_to_the_language_model(name, width):
  tables, norms = (64 + 8) * 1536, (6 * 3 + 1) * 2 * 1536
  assert comparison(name)["resampler"].count == 6 * 12 * 1536**2 + tables + norms + 1536 * width


@pytest.mark.parametrize("name", GATED_LAYERS)
def test_only_what_flamingo_adds_is_trained(name):
  rows = comparison(name)
  assert {part for part, row in rows.items() if row.trained and part != "total"} == {
    "resampler",
    "gated cross-attention",
    "added token embeddings",
  }
  assert not any(row.trained and row.frozen for part, row in rows.items() if part != "total")


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("smollm2_135m", 134_515_008),
    ("gpt2", 124_439_808),
    ("opt_1_3b", 1_315_758_080),
    ("pythia_1_4b", 1_414_647_808),
    ("mpt_7b", 6_649_286_656),
    ("redpajama_3b", 2_775_864_320),
    ("llama_7b", 6_738_415_616),
    ("llama_65b", 65_285_660_672),
  ],
)
def test_a_language_model_has_the_parameters_that_transformers_counts(name, count):
  config = DecoderConfig(**getattr(language, name)() | dict(extra_tokens=0))
  tokens = jnp.zeros((1, 2), jnp.int32)
  shapes = jax.eval_shape(Decoder(config, jnp.float32).init, jax.random.key(0), tokens, tokens)["params"]
  assert sum(int(np.prod(shape.shape)) for shape in flat(shapes).values()) == count


@pytest.mark.parametrize("name", ["chinchilla_1_4b", "tiny_language"])
def test_the_documentation_tells_how_large_a_language_model_is(name):
  [row] = [row for row in DOCS.joinpath("stages.md").read_text().splitlines() if row.startswith(f"| `{name}`")]
  model = experiment(name).model.language
  assert f"| {model.layers} layers of {model.width}, " in row


@pytest.mark.parametrize(("name", "what"), [("vision", "vision encoder"), ("language", "language model")])
def test_what_the_miniature_gave_is_told_of_the_steps_that_it_takes(name, what):
  steps = experiment(f"miniature/{name}").training.total_steps
  assert f"\n- The {what}, after {steps:,} steps" in DOCS.joinpath("miniature.md").read_text()


@pytest.mark.parametrize(("name", "preset"), [("GPT2Config", "gpt2"), ("LlamaConfig", "llama_7b")])
def test_a_language_model_is_what_an_import_of_it_describes(name, preset):
  transformers = pytest.importorskip("transformers")
  described = getattr(transformers, name)().to_dict()
  assert read_config(described, "config.json") == DecoderConfig(**getattr(language, preset)() | dict(extra_tokens=0))


def test_vision_encoders_are_what_an_import_of_them_describes():
  sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
  assert VitConfig(**vision.clip_vit_l14()) == config_from_clip({"vision_config": sizes})
  assert VitConfig(**vision.clip_vit_h14()) == config_from_idefics({"vision_config": dict(embed_dim=1280)})
  siglip = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, patch_size=14, image_size=384)
  assert VitConfig(**vision.siglip_so400m()) == config_from_siglip(
    {"vision_config": siglip | dict(num_attention_heads=16)}
  )
  nfnet = dict(architecture="dm_nfnet_f6", pretrained_cfg=dict(input_size=(3, 320, 320)))
  assert NfnetConfig(**vision.nfnet_f6()) == config_from_timm(nfnet)


@pytest.mark.parametrize(("name", "before"), [("finetune_coco", "flamingo_80b"), ("finetune_quickstart", "quickstart")])
def test_fine_tuning_trains_the_vision_encoder_of_a_preset_at_a_larger_size_and_nothing_else_is_another(name, before):
  tuned, original = experiment(name), experiment(before)
  rows, known = comparison(name), comparison(before)
  assert tuned.model.vision.image_size > original.model.vision.image_size
  smaller = dataclasses.replace(tuned.model.vision, image_size=original.model.vision.image_size)
  assert dataclasses.replace(tuned.model, vision=smaller) == original.model
  more = 12**2 - 8**2 if name == "finetune_quickstart" else 0  # positions; an NFNet has none
  for part in rows.keys() - {"total", "vision encoder"}:
    assert (rows[part].trained, rows[part].frozen) == (known[part].trained, known[part].frozen)
  assert rows["vision encoder"].count - known["vision encoder"].count == more * tuned.model.vision.width
  assert (rows["vision encoder"].trained, rows["vision encoder"].frozen) == (rows["vision encoder"].count, 0)
  assert rows["language model"].trained == 0


@pytest.mark.parametrize("name", ["finetune_coco", "finetune_quickstart"])
def test_fine_tuning_decays_kernels_alone_of_the_vision_encoder(name):
  run = experiment(name)
  paths = [path for path in flat(jax.eval_shape(run.objective().initialize, jax.random.key(0))) if "vision/" in path]
  decays = decayed(run.training.optimizer, paths)
  assert {path.split("/")[-1] for path in paths if decays[path]} == {"kernel"}


@pytest.mark.parametrize("name", ["finetune_coco", "finetune_quickstart"])
def test_fine_tuning_is_the_papers(name):
  """Appendix B.2.2, and the prompt of the benchmark that is evaluated afterwards; the quickstart's rate is its own."""
  run = experiment(name)
  [stream] = run.stream_configs.values()
  assert stream.batch_size in (8, 16)
  assert run.training.optimizer.schedule == "exponential"
  assert run.start.endswith("flamingo_80b" if name == "finetune_coco" else "runs/quickstart/flamingo")
  query = TASKS["coco"].shot(Example("0", Medium("")))
  assert query.given == (Medium(""), Text(stream.prompt))
  if name == "finetune_coco":
    assert run.model.vision.image_size == 480
    assert 3e-8 <= run.training.optimizer.learning_rate <= 1e-5
    for devices in (64, 256):
      check_fit(run.objective(), run.training, run.rows, devices)


@pytest.mark.parametrize("name", GATED_LAYERS)
def test_the_mesh_divides_every_parameter(name):
  run = experiment(name)
  mesh = run.training.mesh
  devices = AbstractMesh((1, mesh.fsdp, mesh.model), ("replica", "fsdp", "model"))
  boxed = jax.eval_shape(run.objective().initialize, jax.random.key(0))
  shardings = parameter_shardings(boxed, devices)
  query = shardings["language/groups/gated_cross_attention/attention/query/kernel"]
  assert "model" in query.spec
  assert all(config.batch_size % mesh.fsdp == 0 for config in run.stream_configs.values())


@pytest.mark.parametrize(
  "family", [vision.vit(), vision.clip_vit_l14(), vision.nfnet("F0")], ids=["vit", "clip", "nfnet"]
)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_contrastive_config_of_ones_own_decays_kernels_alone(family, loss):
  config = base.contrastive()
  config.update(trainable=("",), streams=dict(own=base.stream(source="own", layout="pairs", length=32)))
  config.model.vision, config.model.loss = family, loss
  own = read_experiment(config.to_dict(), "own")
  paths = list(flat(jax.eval_shape(own.objective().initialize, jax.random.key(0))))
  decays = decayed(own.training.optimizer, paths)
  assert {path.split("/")[-1] for path in paths if decays[path]} == {"kernel"}


@pytest.mark.parametrize("name", ["contrastive_nfnet_f6", "contrastive_vit_l14"])
def test_contrastive_training_has_the_papers_batch_and_trains_everything(name):
  run = experiment(name)
  assert {config.batch_size for config in run.stream_configs.values()} == {16_384}
  assert len(run.stream_configs) == 2
  rows = comparison(name)
  assert rows["total"].frozen == 0
  encoder = experiment("flamingo_3b" if name == "contrastive_nfnet_f6" else "openflamingo_3b").model.vision
  assert dataclasses.replace(run.model.vision, image_size=encoder.image_size) == encoder
  check_fit(run.objective(), run.training, run.rows, 512)


def test_the_papers_vision_encoder_is_trained_as_the_paper_says():
  """Appendix B.1.3: joint width, smoothing, Adam from 1e-3 to zero, what is clipped how, 1.2M updates at 288 pixels."""
  run = experiment("contrastive_nfnet_f6")
  model, optimizer = run.model, run.training.optimizer
  assert (model.joint_width, model.label_smoothing, model.vision.image_size) == (1376, 0.1, 288)
  assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (1e-3, "linear", 0.0)
  assert (optimizer.adaptive_clip, optimizer.clip_norm, run.training.total_steps) == (1e-2, 10.0, 1_200_000)
  text = comparison("contrastive_nfnet_f6")["text encoder"].count
  assert text == pytest.approx(109.5e6, rel=0.01)  # BERT-base
