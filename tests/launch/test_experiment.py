import copy
import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import optax
import pytest

from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import content_hash, save_model
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig
from flamingo_jax.models.parameters import flat
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.towers import VisionConfig
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.checkpoints import About, Checkpoints, check_same
from flamingo_jax.training.config import TrainingConfig
from flamingo_jax.training.placing import check_parameters
from flamingo_jax.training.step import State, split_shapes
from launch.config import load_config
from launch.experiment import read_experiment
from launch.importing import import_checkpoint
from launch.pretrained import as_config, at_size

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIGS = [path for path in sorted(ROOT.glob("configs/[!_]*.py")) if "def get_config" in path.read_text()]
STREAM = dict(source="data/pages", layout="pairs", batch_size=8, length=16)


pytestmark = pytest.mark.usefixtures("few_optimizations")


@pytest.fixture
def tiny() -> dict:
  return load_config("configs/tiny.py", {})


def faults_of(config: dict) -> list[str]:
  with pytest.raises(UserError) as error:
    read_experiment(config, "mine.py")
  lines = str(error.value).splitlines()
  assert all(line.startswith("mine.py: ") for line in lines)
  return [line.removeprefix("mine.py: ") for line in lines]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_package_is_right(path):
  config = load_config(str(path), {})
  assert read_experiment(config, path.name).raw["objective"] == config["objective"]


def test_a_config_survives_its_own_record(tiny):
  """What the work directory keeps is what generate and report read."""
  experiment = read_experiment(tiny, "tiny.py")
  again = read_experiment(json.loads(json.dumps(experiment.raw)), "config.json")
  assert dataclasses.replace(again, raw={}) == dataclasses.replace(experiment, raw={})


def test_paths_in_the_record_do_not_depend_on_the_folder(tiny, tmp_path, monkeypatch):
  before = copy.deepcopy(tiny)
  monkeypatch.chdir(tmp_path)
  raw = read_experiment(tiny, "tiny.py").raw
  assert raw["tokenizer"]["path"] == str(tmp_path / "data/quickstart/language_model")
  assert raw["streams"]["videos"]["source"] == str(tmp_path / "data/quickstart/streams/videos")
  assert raw["frozen"] == dict(vision="random", language="random")
  assert tiny == before


def test_a_stream_of_several_sources_survives_its_own_record(tiny, quickstart_data, tmp_path, monkeypatch):
  tiny["streams"]["captions"].update(source=("data/quickstart/streams/captions", "data/b"), shares=(3, 1))
  monkeypatch.chdir(tmp_path)
  raw = read_experiment(tiny, "tiny.py").raw
  config = read_experiment(json.loads(json.dumps(raw)), "config.json").stream_configs["captions"]
  assert config.sources == (str(tmp_path / "data/quickstart/streams/captions"), str(tmp_path / "data/b"))
  assert config.shares == (3, 1)


def test_all_sources_of_a_stream_are_opened(tiny, quickstart_data):
  captions = str(quickstart_data / "streams" / "captions")
  tiny["streams"] = dict(captions=tiny["streams"]["captions"] | dict(source=(captions, captions), shares=(2, 1)))
  tiny["tokenizer"]["path"] = str(quickstart_data / "language_model")
  stream = read_experiment(tiny, "tiny.py").streams("train", training=True)["captions"]
  assert [len(part) for part in stream.sources.parts] == [len(stream.sources) // 2] * 2
  assert next(stream.batches())["media_mask"].any()


@pytest.mark.parametrize(("batch_size", "most"), [(7, 1000), (1024, 4), (4, 2)])
def test_an_evaluation_reads_no_held_out_row_twice(tiny, quickstart_data, batch_size, most):
  streams = quickstart_data / "streams"
  captions = tiny["streams"]["captions"] | dict(pack=False, media=1, batch_size=batch_size)
  captions["source"] = (str(streams / "captions"), str(streams / "videos"))
  tiny |= dict(streams=dict(captions=captions), evaluation=dict(batches=most))
  tiny["tokenizer"]["path"] = str(quickstart_data / "language_model")
  experiment = read_experiment(tiny, "test")
  stream = experiment.streams("heldout", training=False)["captions"]
  batches = experiment.some_batches(stream)
  rows = [row[row > 0].tobytes() for batch in batches for row in batch["tokens"] if row.any()]
  there = {row["tokens"][row["tokens"] > 0].tobytes() for row in stream.rows() if row["tokens"].any()}
  assert all(len(batch["tokens"]) == batch_size for batch in batches)
  assert len(rows) == min(len(stream.sources), batch_size * most)
  assert set(rows) <= there
  assert len(set(rows)) == min(len(there), batch_size * most)


def test_another_objective_is_refused_with_those_that_are(tiny):
  assert faults_of(tiny | {"objective": "gan"}) == ["objective is 'gan'; it is one of flamingo, contrastive, language."]


def test_faults_of_every_group_are_said_at_once(tiny):
  tiny["sede"] = 3
  tiny["model"]["resampler"]["latent"] = 8
  tiny["optimizer"]["learning_rate"] = "fast"
  tiny["streams"]["pages"]["lenght"] = 64
  tiny["streams"]["extra"] = 5
  tiny["evaluation"] = 3
  del tiny["streams"]["videos"]["layout"]
  assert sorted(fault.split(":")[0].split(" is ")[0] for fault in faults_of(tiny)) == [
    "evaluation",
    "model.resampler.latent",
    "optimizer.learning_rate",
    "sede",
    "streams.extra",
    "streams.pages.lenght",
    "streams.videos.layout",
  ]


def changed(config: dict, path: str, value) -> dict:
  *groups, field = path.split(".")
  inner = config
  for group in groups:
    inner = inner[group]
  inner[field] = value
  return config


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("total_steps", 0),
    ("evaluate_every", 0),
    ("evaluation.batches", 0),
    ("evaluation.samples", -1),
    ("evaluation.batches", -1),
    ("checkpoint.every", 0),
    ("checkpoint.keep", 0),
    ("frozen_dtype", "float33"),
    ("model.dtype", "half"),
    ("model.attention", "flash"),
    ("model.language.positions", "rotery"),
    ("model.language.residual", "paralel"),
    ("model.language.norm", "layernorm"),
    ("model.language.activation", "swish"),
    ("model.vision.activation", "swish"),
    ("model.cross_attention.norm", ""),
    ("model.cross_attention.head_norm", "l2"),
    ("model.resampler.activation", "swish"),
    ("trainable", ("^resampler/", "(extra_")),
    ("optimizer.no_decay", ("*norm",)),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.warmup_steps", -1),
    ("optimizer.schedule", "cubic"),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.learning_rate", math.nan),
    ("optimizer.beta2", 1.0),
    ("frozen.language", ""),
    ("frozen.vision", ""),
    ("streams", {}),
    ("streams.pages.layout", "books"),
    ("streams.pages.frames", 2),
    ("streams.pages.batch_size", 0),
    ("streams.videos.frames", 9),
    ("streams.videos.medium", "audio"),
    ("streams.captions.crop", 0.0),
    ("streams.captions.weight", -1.0),
    ("streams.captions.weight", math.inf),
    ("streams.captions.colour", 1.5),
    ("streams.captions.prompt", " Output:"),
    ("streams.captions.length", 3),
    ("streams.captions.source", 7),
    ("streams.captions.source", ()),
    ("streams.captions.shares", (3, 1)),
    ("streams.captions.maximum_skipped", -0.1),
    ("model.language.extra_tokens", 1),
    ("model.cross_attention.every", 0),
    ("model.cross_attention.offset", 6),
    ("model.resampler.heads", 5),
    ("model.resampler.heads", 0),
    ("model.resampler.latents", 0),
    ("model.vision.heads", 5),
    ("model.vision.patch_size", 0),
    ("model.vision.pixel_mean", ()),
    ("model.vision.pixel_mean", (0.5,) * 4),
    ("model.vision.pixel_mean", (0.5, 0.5, math.inf)),
    ("model.vision.pixel_deviation", (0.5,)),
    ("model.vision.pixel_deviation", (0.5, 0.5, 0.0)),
    ("model.vision.pixel_deviation", (0.5, 0.5, -0.5)),
    ("model.vision.pixel_deviation", (0.5, 0.5, math.inf)),
    ("model.vision.image_size", 7),
    ("model.vision.keep_class_token", True),
    ("model.vision.feed_forward_multiplier", 0.0),
    ("model.vision.feed_forward_multiplier", -1.0),
    ("model.vision.norm_epsilon", 0.0),
    ("model.resampler.feed_forward_multiplier", 0.0),
    ("model.cross_attention.feed_forward_multiplier", 0.0),
    ("model.cross_attention.norm_epsilon", -1e-5),
    ("model.language.norm_epsilon", 0.0),
    ("model.language.rope_base", 0.0),
    ("model.cross_attention.heads", 0),
    ("model.language.heads", 0),
    ("model.language.heads", 3),
    ("model.language.key_value_heads", 3),
    ("model.language.width", 0),
  ],
)
def test_settings_that_do_not_fit_are_named(tiny, path, value):
  (fault,) = faults_of(changed(tiny, path, value))
  assert path.split(".")[-1] in fault


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("model.text.activation", "swish"),
    ("model.vision.variant", "F9"),
    ("model.vision.depths", ()),
    ("model.vision.depths", (1, 2, 6)),
    ("model.vision.depths", (1, 2, 6, 3, 3)),
    ("model.vision.depths", (1, 2, 0, 3)),
    ("model.vision.widths", ()),
    ("model.vision.widths", (264, 512, 1536, 1536)),
    ("model.vision.widths", (255, 512, 1536, 1536)),
    ("model.vision.widths", (4, 512, 1536, 1536)),
    ("model.vision.widths", (256, 512, 1536, 0)),
    ("model.vision.group_width", 256),
    ("model.vision.group_width", 100),
    ("model.vision.group_width", 48),
    ("model.vision.group_width", 0),
    ("model.vision.pixel_mean", (0.5,)),
    ("model.vision.pixel_deviation", (0.5, 0.5, 0.0)),
    ("model.joint_width", 0),
    ("frozen.vision", "random"),
    ("streams.ltip.media", 4),
  ],
)
def test_settings_that_do_not_fit_a_contrastive_run_are_named(path, value):
  (fault,) = faults_of(changed(load_config("configs/contrastive_nfnet_f6.py", {}), path, value))
  assert fault.startswith(f"{path} is {value!r}; ")


@pytest.mark.parametrize(
  "change",
  [
    dict(depths=[1, 2, 6]),
    dict(widths=[]),
    dict(group_width=100),
    dict(pixel_mean=[0.5]),
    dict(pixel_deviation=[0.5, 0.5, 0]),
  ],
)
def test_a_stored_tower_that_cannot_be_is_refused_by_its_file(change):
  stored = dataclasses.asdict(NfnetConfig()) | change
  with pytest.raises(UserError, match=rf"^models/nfnet/config\.json: gives a model whose {next(iter(change))} is "):
    as_config(VisionConfig, stored, "models/nfnet")


def test_settings_that_do_not_fit_are_named_together(tiny):
  changed(tiny, "total_steps", 0)
  changed(tiny, "model.resampler.heads", 5)
  changed(tiny, "streams.videos.frames", 9)
  changed(tiny, "streams.captions.weight", -1.0)
  assert len(faults_of(tiny)) == 4


def test_a_contrastive_run_reads_pairs_no_longer_than_its_text_tower():
  config = load_config("configs/quickstart_vision.py", {})
  config["streams"]["pages"] = STREAM | dict(layout="interleaved", length=200)
  config["streams"]["captions"]["prompt"] = "Output:"
  config["streams"]["clips"] = STREAM | dict(medium="video", frames=8)
  faults = faults_of(config)
  assert [fault.split(" is ")[0] for fault in faults] == [
    "streams.captions.prompt",
    "streams.pages.layout",
    "streams.pages.length",
    "streams.clips.frames",
  ]


@pytest.mark.parametrize("name", ["tiny", "quickstart_vision"])
def test_the_base_config_names_every_field(name):
  """An override is told from a slip of the pen by what is there."""
  config = load_config(f"configs/{name}.py", {})
  experiment = read_experiment(config, name)

  def compare(value, fields: dict, where: str):
    assert {field.name for field in dataclasses.fields(value)} == fields.keys(), where
    for field in dataclasses.fields(value):
      inner = getattr(value, field.name)
      if dataclasses.is_dataclass(inner):
        compare(inner, fields[field.name], f"{where}.{field.name}")

  compare(experiment.model, config["model"], "model")
  compare(experiment.tokenizer_config, config["tokenizer"], "tokenizer")
  compare(experiment.evaluation, config["evaluation"], "evaluation")
  training = {field.name: config[field.name] for field in dataclasses.fields(TrainingConfig)}
  compare(experiment.training, training, "training")
  for stream in config["streams"].values():
    assert {field.name for field in dataclasses.fields(StreamConfig)} == stream.keys()


def test_another_tokenizer_under_the_same_path_is_told_apart(small_data, tmp_path):
  """Half of its merges away: a run that goes on would read other tokens."""
  config = load_config(str(small_data.config), {})
  folder = shutil.copytree(config["tokenizer"]["path"], tmp_path / "tokenizer")
  config["tokenizer"]["path"] = str(folder)
  before = read_experiment(config, "mine.py").feed().hashes
  stored = json.loads((folder / "tokenizer.json").read_text())
  merges = stored["model"]["merges"]
  stored["model"]["merges"] = merges[: len(merges) // 2]
  (folder / "tokenizer.json").write_text(json.dumps(stored))
  after = read_experiment(config, "mine.py").feed().hashes
  assert {name for name in before if before[name] != after[name]} == {"tokenizer"}
  with pytest.raises(UserError, match=r"(?s)data\.tokenizer: trained with .*--allow-changed=data\.tokenizer"):
    check_same(tmp_path, About({}, before), About({}, after), ())


FIVE_LAYERS = {"model.language.layers": "5"}  # with a gated one before every second: a ragged tail


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """Frozen parts that fit the tiny config: a vision run of random parameters, and a language model's folder."""
  folder = tmp_path_factory.mktemp("parts")
  config = load_config("configs/tiny.py", FIVE_LAYERS)
  random = np.random.default_rng(0)
  experiment = read_experiment(config, "tiny.py")
  shapes = flat(jax.eval_shape(experiment.objective().initialize, jax.random.key(0)))
  noise = {path: random.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()}
  vision = {path: array for path, array in noise.items() if path.startswith("vision/")}
  checkpoints = Checkpoints(folder / "vision")
  trained = jax.device_put(vision | {"log_temperature": np.float32(0)})
  state = State(jax.numpy.int32(7), trained, optax.adam(1.0).init(trained))
  checkpoints.save(7, state, About({"language": "hash"}))
  checkpoints.close()
  (folder / "vision" / "config.json").write_text(json.dumps(dict(model=dict(vision=config["model"]["vision"]))))
  language = dataclasses.replace(experiment.model.language, extra_tokens=0)
  plain = Decoder(language, np.float32)
  tokens = np.zeros((1, 2), np.int32)
  shapes = flat(jax.eval_shape(plain.init, jax.random.key(0), tokens, tokens + 1)["params"])
  stored = {
    path.replace("prefix/", "layers/"): random.normal(size=shape.shape).astype(np.float32)
    for path, shape in shapes.items()
  }
  (folder / "language").mkdir()
  save_model(folder / "language", stored, language, "random")
  return folder, vision, stored


def with_parts(parts, **changes: str):
  folder, _, _ = parts
  frozen = {"frozen.vision": str(folder / "vision"), "frozen.language": str(folder / "language")}
  return read_experiment(load_config("configs/tiny.py", FIVE_LAYERS | frozen | changes), "tiny.py")


def test_imported_parts_fit_the_model_exactly(parts):
  experiment = with_parts(parts)
  frozen = experiment.frozen()
  mesh = make_mesh(MeshConfig())
  _, expected, _ = split_shapes(experiment.objective(), mesh, experiment.training.trainable)
  check_parameters(expected, frozen.parameters)
  _, vision, stored = parts
  assert frozen.hashes == dict(vision=content_hash(vision), language=content_hash(stored))
  for path, array in vision.items():
    np.testing.assert_array_equal(frozen.parameters[path], array)
  np.testing.assert_array_equal(frozen.parameters["language/embeddings"], stored["embeddings"])
  # Five layers with a gated one before the first, third and fifth: two groups of two and a tail of one.
  queries = stored["layers/attention/query/kernel"]
  np.testing.assert_array_equal(frozen.parameters["language/groups/layers/attention/query/kernel"][1, 0], queries[2])
  np.testing.assert_array_equal(frozen.parameters["language/tail/layers/attention/query/kernel"], queries[4:])


def test_random_parts_fit_too_and_come_with_the_seed(parts):
  experiment = with_parts(parts, **{"frozen.vision": "random"})
  frozen, again = experiment.frozen(), experiment.frozen()
  mesh = make_mesh(MeshConfig())
  _, expected, _ = split_shapes(experiment.objective(), mesh, experiment.training.trainable)
  check_parameters(expected, frozen.parameters)
  assert frozen.hashes == again.hashes
  other = with_parts(parts, **{"frozen.vision": "random", "seed": "1"}).frozen()
  assert other.hashes["language"] == frozen.hashes["language"]
  assert other.hashes["vision"] != frozen.hashes["vision"]


EVERYTHING_SEEN = "('^vision/', '^resampler/', '/gated_cross_attention/', 'extra_')"


def test_an_unfrozen_vision_encoder_begins_from_what_it_was(parts):
  _, vision, _ = parts
  frozen = with_parts(parts, trainable=EVERYTHING_SEEN).frozen()
  assert frozen.start.keys() == vision.keys()
  assert all(np.array_equal(frozen.start[path], array) for path, array in vision.items())
  assert all(path.startswith("language/") for path in frozen.parameters)


def test_at_another_size_only_the_position_embeddings_are_stretched(parts):
  """From 4 x 4 patches to 6 x 6."""
  _, vision, _ = parts
  frozen = with_parts(parts, trainable=EVERYTHING_SEEN, **{"model.vision.image_size": "48"}).frozen()
  table = "vision/position_embeddings"
  assert frozen.start[table].shape == (36, 32)
  stretched = frozen.start[table].reshape(6, 6, 32)
  original = vision[table].reshape(4, 4, 32)
  corners = np.corrcoef(stretched[0, 0], original[0, 0])[0, 1], np.corrcoef(stretched[-1, -1], original[-1, -1])[0, 1]
  assert min(corners) > 0.8
  assert all(np.array_equal(frozen.start[path], array) for path, array in vision.items() if path != table)


def test_an_encoder_without_positions_is_the_same_at_any_size():
  tower = dict(kernel=np.zeros((2, 3), np.float32))
  made_with = dataclasses.asdict(NfnetConfig(image_size=320))
  assert at_size(tower, made_with, NfnetConfig(image_size=480)) == tower


def test_trained_embeddings_begin_from_the_language_models(parts):
  frozen = with_parts(parts, trainable="('^language/embeddings$', 'extra_', '^resampler/')").frozen()
  np.testing.assert_array_equal(frozen.start["language/embeddings"], parts[2]["embeddings"])
  assert "language/embeddings" not in frozen.parameters


def test_parts_of_another_architecture_are_refused_field_by_field(parts):
  folder, _, _ = parts
  changes = {"model.language.rope_base": "77.0", "model.language.feed_forward_width": "48"}
  with pytest.raises(UserError) as error:
    with_parts(parts, **changes).frozen()
  first, *faults = str(error.value).splitlines()
  assert first == f"{folder / 'language'}: does not fit the config:"
  assert faults == [
    "  model.language.feed_forward_width is 48, the frozen weights were made with 32",
    "  model.language.rope_base is 77.0, the frozen weights were made with 100000.0",
  ]
  with pytest.raises(UserError, match=r"model\.vision\.layers is 3, the frozen weights were made with 2"):
    with_parts(parts, **{"model.vision.layers": "3"}).frozen()


def test_a_run_without_a_vision_encoder_gives_none(parts, tmp_path):
  checkpoints = Checkpoints(tmp_path)
  trained = jax.device_put({"language/embeddings": np.zeros((2, 2), np.float32)})
  checkpoints.save(7, State(jax.numpy.int32(7), trained, optax.adam(1.0).init(trained)), About({}))
  checkpoints.close()
  (tmp_path / "config.json").write_text(json.dumps(dict(objective="language", model=dict(language={}))))
  with pytest.raises(
    UserError, match=f"{tmp_path}: holds a language run that trained no vision encoder; one comes from"
  ):
    with_parts(parts, **{"frozen.vision": str(tmp_path)}).frozen()


def test_the_text_tower_reads_a_language_models_embeddings(parts):
  folder, _, stored = parts
  changes = {"frozen.language": str(folder / "language"), "model.embedding_width": "16"}
  experiment = read_experiment(load_config("configs/quickstart_vision.py", changes), "quickstart_vision.py")
  frozen = experiment.frozen()
  assert list(frozen.parameters) == ["text/embeddings"]
  np.testing.assert_array_equal(frozen.parameters["text/embeddings"], stored["embeddings"])
  assert frozen.hashes == {"language": content_hash(frozen.parameters)}


def test_a_tokenizer_has_a_row_for_each_of_its_tokens(tmp_path, write_gguf):
  write_gguf(tmp_path / "model.gguf")
  import_checkpoint("gguf", str(tmp_path / "model.gguf"), str(tmp_path / "language"))
  config = load_config("configs/tiny.py", {"tokenizer.path": str(tmp_path / "language")})
  config["model"]["language"]["vocabulary"] = 39
  with pytest.raises(UserError, match=r"has 40 tokens, but the model has 39 rows"):
    read_experiment(config, "tiny.py").tokenizer()
  for rows in (40, 48):  # tables are often padded; what Flamingo adds stands behind all of their rows
    config["model"]["language"]["vocabulary"] = rows
    assert read_experiment(config, "tiny.py").tokenizer().image == rows


def test_a_language_model_is_imported_for_use_as_it_is(parts, tmp_path, write_gguf):
  """A GGUF file's metadata, as the folder keeps it, is a whole decoder config."""
  write_gguf(tmp_path / "model.gguf")
  import_checkpoint("gguf", str(tmp_path / "model.gguf"), str(tmp_path / "language"))
  described = json.loads((tmp_path / "language" / "config.json").read_text())
  config = with_parts(parts, **{"frozen.language": str(tmp_path / "language")}).raw
  config["model"]["language"] = described["config"] | {"extra_tokens": 2}
  assert DecoderConfig(**described["config"]).vocabulary == 40
  frozen = read_experiment(config, "tiny.py").frozen()
  assert frozen.parameters["language/unembeddings"].shape == (40, 16)
  assert frozen.hashes["language"] == described["hash"]


def test_a_shard_that_vanishes_under_a_run_is_named_by_the_next_start_and_changes_no_batch(quickstart_data, tmp_path):
  """What is open is still read; a start without it says which it is; when it is back, no batch has changed."""
  folder = tmp_path / "captions"
  shutil.copytree(quickstart_data / "streams" / "captions", folder)
  config = load_config("configs/tiny.py", {"streams.captions.source": str(folder)})
  config["streams"] = {"captions": config["streams"]["captions"]}

  def start(step: int):
    return read_experiment(config, "test").feed().batches_from(step)

  straight = [batches["captions"]["tokens"] for batches, _ in itertools.islice(start(0), 8)]
  running = start(0)
  first = next(running)[0]["captions"]["tokens"]
  shard = sorted((folder / "train").glob("*.array_record"))[2]
  shard.rename(tmp_path / "away")
  read_on = [batches["captions"]["tokens"] for batches, _ in itertools.islice(running, 3)]
  with pytest.raises(UserError, match=re.escape(f"{shard} is missing")):
    start(4)
  (tmp_path / "away").rename(shard)
  again = [batches["captions"]["tokens"] for batches, _ in itertools.islice(start(4), 4)]
  np.testing.assert_array_equal([first, *read_on, *again], straight)
