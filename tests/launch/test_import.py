"""`flamingo import` as a user runs it, on checkpoints as the libraries that own them write them."""

import dataclasses
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from data_pipelines.tokenizer import save_bpe
from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.interop.flamingo_rules import OPENFLAMINGO_ADDED, openflamingo_rules, trainable_rules
from flamingo_jax.interop.model_folder import load_model
from flamingo_jax.interop.rules import foreign_from
from flamingo_jax.models.flamingo import FlamingoConfig, initialize, stacked
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import flat
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.models.vision.vit import VitConfig
from launch.config import load_config
from launch.experiment import read_experiment
from launch.importing import import_checkpoint
from launch.pretrained import open_tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEOX = dict(vocab_size=40, hidden_size=16, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
WIDTH = 12  # of the media


def run(*arguments: object) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "launch.cli", "import", *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def save(model, folder: pathlib.Path, **options) -> dict[str, np.ndarray]:
  """Writes a model of transformers and returns its state dict."""
  model.save_pretrained(folder, **options)
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> pathlib.Path:
  """The folder of a tiny GPT-NeoX without Flamingo's tokens."""
  folder = tmp_path_factory.mktemp("neox") / "model"
  torch.manual_seed(0)
  config = transformers.GPTNeoXConfig(**NEOX, rotary_pct=0.25)
  save(transformers.GPTNeoXForCausalLM(config), folder)
  return folder


def of_config() -> FlamingoConfig:
  return FlamingoConfig(
    vision=FeaturesConfig(width=WIDTH),
    resampler=PerceiverResamplerConfig(layers=2, latents=3, heads=8, head_width=2, frames=0, activation="gelu"),
    cross_attention=GatedCrossAttentionConfig(every=2, offset=1, heads=8, head_width=2, activation="gelu"),
    language=DecoderConfig(
      vocabulary=40,
      width=16,
      layers=4,
      heads=2,
      key_value_heads=2,
      feed_forward_width=64,
      activation="gelu",
      gated_feed_forward=False,
      bias=True,
      norm="layer",
      residual="parallel",
      rope_base=10_000.0,
      rotary_share=0.25,
      tied_embeddings=False,
      extra_tokens=3,
    ),
    dtype="float32",
  )


def random_model(config: FlamingoConfig, seed: int = 0) -> dict[str, np.ndarray]:
  """Random parameters, laid out as they are stored."""
  random = np.random.default_rng(seed)
  shapes = flat(jax.eval_shape(lambda key: initialize(config, key), jax.random.key(0)))
  return stacked({path: random.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()})


def write_pt(path: pathlib.Path, parameters: dict, rules: list, prefix: str = "") -> dict[str, np.ndarray]:
  named = {names[0]: array for names, array in foreign_from(parameters, rules)}
  tensors = {prefix + name: torch.from_numpy(np.array(array)) for name, array in named.items()}
  torch.save({"epoch": 3, "model_state_dict": tensors}, path)
  return named


def test_a_sharded_language_model_is_imported_with_its_tokenizer(tmp_path):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
  )  # fmt: skip
  state = save(transformers.LlamaForCausalLM(config), tmp_path / "llama", max_shard_size="20KB")
  assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
  save_bpe(tmp_path / "llama", ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], "gpt-2")
  done = run("--from=hf-lm", f"--path={tmp_path / 'llama'}", f"--out={tmp_path / 'out'}")
  assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "out")), done.stderr
  parameters, described = load_model(tmp_path / "out")
  assert (described["kind"], described["family"]) == ("language", "llama")
  assert DecoderConfig(**described["config"]).key_value_heads == 2
  query = state["model.layers.1.self_attn.q_proj.weight"]
  np.testing.assert_array_equal(parameters["layers/attention/query/kernel"][1].reshape(16, 16), query.T)
  assert (tmp_path / "out" / "tokenizer.json").exists()


def gpt2_like(folder: pathlib.Path, **ids: object) -> None:
  """A tiny GPT-2 whose tokenizer, like GPT-2's own, has "!" first and <|endoftext|> last."""
  config = transformers.GPT2Config(vocab_size=257, n_embd=16, n_layer=1, n_head=2, n_positions=32, **ids)
  save(transformers.GPT2LMHeadModel(config), folder)
  bytes_but = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"!"})
  save_bpe(folder, ["!", *bytes_but, "<|endoftext|>"], [], "gpt-2")


@pytest.mark.parametrize("folder", ["out", "theirs"])  # transformers' own folder serves as a tokenizer too
@pytest.mark.parametrize(
  ("ids", "expected"),
  [
    (dict(bos_token_id=256, eos_token_id=256), (256, 256)),
    (dict(bos_token_id=1, eos_token_id=[2, 256]), (1, 2)),
    (dict(bos_token_id=None, eos_token_id=256), (256, 256)),
    (dict(bos_token_id=None, eos_token_id=None), (0, 0)),
  ],
)
def test_a_run_begins_and_ends_documents_as_the_imported_model_does(tmp_path, ids, expected, folder):
  gpt2_like(tmp_path / "theirs", **ids)
  import_checkpoint("hf-lm", str(tmp_path / "theirs"), str(tmp_path / "out"))
  overrides = {"tokenizer.path": str(tmp_path / folder), "tokenizer.bos": "None", "tokenizer.eos": "None"}
  experiment = read_experiment(load_config("configs/tiny.py", overrides), "tiny.py")
  tokenizer, kept = experiment.tokenizer(), experiment.raw["tokenizer"]
  assert (tokenizer.bos, tokenizer.eos) == (kept["bos"], kept["eos"]) == expected
  text = tokenizer.decode(tokenizer.encode("Stop! Go!"))
  assert text == ("Stop! Go!" if 0 not in expected else "Stop Go")
  chosen = read_experiment(load_config("configs/tiny.py", overrides | {"tokenizer.eos": "3"}), "tiny.py").tokenizer()
  assert (chosen.bos, chosen.eos) == (expected[0], 3)


def test_an_id_that_is_no_token_is_refused_with_the_setting_to_change(tmp_path):
  gpt2_like(tmp_path / "theirs", bos_token_id=50256, eos_token_id=50256)
  import_checkpoint("hf-lm", str(tmp_path / "theirs"), str(tmp_path / "out"))
  with pytest.raises(
    UserError, match=r"out/tokenizer\.json: bos is 50256, but tokens are 0 to 256\. Set tokenizer\.bos\."
  ):
    open_tokenizer(str(tmp_path / "out"), None, None)


def test_an_imported_flamingo_has_the_ids_of_its_language_model(tmp_path, neox):
  write_pt(tmp_path / "checkpoint.pt", random_model(of_config()), trainable_rules(of_config(), "gpt_neox"))
  import_checkpoint("openflamingo", str(tmp_path / "checkpoint.pt"), str(tmp_path / "out"), language=str(neox))
  described, theirs = load_model(tmp_path / "out")[1], transformers.AutoConfig.from_pretrained(neox)
  assert (described["bos"], described["eos"]) == (theirs.bos_token_id, theirs.eos_token_id) == (0, 2)


@pytest.mark.parametrize("form", ["hf-clip", "hf-siglip"])
def test_a_vision_tower_is_imported_out_of_a_whole_model(tmp_path, form):
  torch.manual_seed(0)
  sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
  vision = sizes | dict(image_size=16, patch_size=8)
  kinds = {"hf-clip": (transformers.CLIPConfig, transformers.CLIPModel),
           "hf-siglip": (transformers.SiglipConfig, transformers.SiglipModel)}  # fmt: skip
  make_config, make_model = kinds[form]
  state = save(make_model(make_config(text_config=sizes, vision_config=vision)), tmp_path / "theirs")
  import_checkpoint(form, str(tmp_path / "theirs"), str(tmp_path / "out"))
  parameters, described = load_model(tmp_path / "out")
  config = VitConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in described["config"].items()})
  assert (described["kind"], config.image_size, config.layers) == ("vision", 16, 2)
  expected = state["vision_model.encoder.layers.1.mlp.fc1.weight"].T
  np.testing.assert_array_equal(parameters["encoder/layers/feed_forward/up/kernel"][1], expected)
  assert all(path.startswith(("encoder/", "patch_", "position_", "class_", "pre_norm")) for path in parameters)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_openflamingo_publishes_is_joined_with_its_language_model(tmp_path, neox, prefix):
  """The trained part alone, as published, and the language model of its own folder."""
  parameters = random_model(of_config())
  write_pt(tmp_path / "checkpoint.pt", parameters, trainable_rules(of_config(), "gpt_neox"), prefix)
  done = run(
    "--from=openflamingo", f"--path={tmp_path / 'checkpoint.pt'}", f"--language={neox}", f"--out={tmp_path / 'out'}"
  )
  assert done.returncode == 0, done.stderr
  found, described = load_model(tmp_path / "out")
  language = transformers.GPTNeoXForCausalLM.from_pretrained(neox).state_dict()
  assert described["config"] == json.loads(json.dumps(dataclasses.asdict(of_config())))
  assert found.keys() == parameters.keys()
  own = {path for path in found if path.startswith("resampler/") or "gated" in path or "embeddings" in path}
  assert all(np.array_equal(found[path], parameters[path]) for path in own)
  up = language["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"].numpy().T
  np.testing.assert_array_equal(found["language/layers/feed_forward/up/kernel"][2], up)


def test_a_full_state_dict_that_names_tensors_twice_is_read(tmp_path, neox):
  config, parameters = of_config(), random_model(of_config())
  rules = openflamingo_rules(config, "gpt_neox")
  twice = {
    name: torch.from_numpy(np.array(array)) for names, array in foreign_from(parameters, rules) for name in names
  }
  torch.save(twice, tmp_path / "full.pt")
  import_checkpoint("openflamingo", str(tmp_path / "full.pt"), str(tmp_path / "out"), language=str(neox))
  found, _ = load_model(tmp_path / "out")
  assert all(np.array_equal(found[path], array) for path, array in parameters.items())


def test_names_that_disagree_about_one_tensor_are_refused(tmp_path, neox):
  rules = openflamingo_rules(of_config(), "gpt_neox")
  tensors = {
    n: torch.from_numpy(np.array(a)) for names, a in foreign_from(random_model(of_config()), rules) for n in names
  }
  tensors["lang_encoder.gated_cross_attn_layers.1.attn_gate"] += 1
  torch.save(tensors, tmp_path / "full.pt")
  with pytest.raises(UserError, match=r"gated_cross_attn_layers\.1\.attn_gate are one tensor, but their values differ"):
    import_checkpoint("openflamingo", str(tmp_path / "full.pt"), str(tmp_path / "out"), language=str(neox))
  assert not (tmp_path / "out").exists()


def test_everything_that_does_not_fit_is_named_at_once(tmp_path, neox):
  config = of_config()
  named = write_pt(tmp_path / "checkpoint.pt", random_model(config), trainable_rules(config, "gpt_neox"))
  tensors = {name: torch.from_numpy(np.array(array)) for name, array in named.items()}
  gate = "lang_encoder.gpt_neox.layers.3.gated_cross_attn_layer."
  tensors.pop(f"{gate}ff_gate")
  tensors[f"{gate}attn.to_q.weight"] = torch.zeros(16, 17)
  tensors["perceiver.norm.weight"] = tensors["perceiver.norm.weight"].to(torch.int32)
  tensors["perceiver.surprise"] = torch.zeros(2)
  torch.save(tensors, tmp_path / "checkpoint.pt")
  done = run(
    "--from=openflamingo", f"--path={tmp_path / 'checkpoint.pt'}", f"--language={neox}", f"--out={tmp_path / 'out'}"
  )
  assert done.returncode == USER_FAULT
  for line in (
    f"missing: {gate}ff_gate [1] (our language/gated_cross_attention/feed_forward_gate[1])",
    f"{gate}attn.to_q.weight: is [16, 17], should be [16, 16] "
    "(our language/gated_cross_attention/attention/query/kernel[1])",
    "perceiver.norm.weight: is of type int32, should be of floats (our resampler/norm/scale)",
    "not known: perceiver.surprise [2]",
    "made for gpt_neox of width 16, gated before layers 1, 3",
  ):
    assert line in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "out").exists()


def test_another_language_model_is_told_by_the_places_of_the_gated_layers(tmp_path):
  write_pt(tmp_path / "checkpoint.pt", random_model(of_config()), trainable_rules(of_config(), "gpt_neox"))
  deeper = transformers.GPTNeoXConfig(**NEOX | dict(num_hidden_layers=6), rotary_pct=0.25)
  save(transformers.GPTNeoXForCausalLM(deeper), tmp_path / "deeper")
  with pytest.raises(UserError, match=r"gated layers stand at \(1, 3\), but the language model has 6 layers"):
    import_checkpoint(
      "openflamingo", str(tmp_path / "checkpoint.pt"), str(tmp_path / "out"), language=str(tmp_path / "deeper")
    )


def with_tokenizer(folder: pathlib.Path, neox: pathlib.Path, tokens: int, **special: dict) -> pathlib.Path:
  """The language model with a tokenizer of so many tokens, and the files beside it by name."""
  shutil.copytree(neox, folder)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  save_bpe(folder, ["<|endoftext|>", *alphabet[: tokens - 1]], [], "gpt-2")
  for name, content in special.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


@pytest.mark.parametrize(
  ("extra_tokens", "special"),
  [
    (3, {}),
    (3, dict(tokenizer_config=dict(pad_token=None), special_tokens_map={})),
    (2, dict(tokenizer_config=dict(pad_token="<pad>"))),
    (2, dict(tokenizer_config={}, special_tokens_map=dict(pad_token=dict(content="<pad>")))),
  ],
)
def test_a_published_openflamingo_has_a_row_for_each_token(tmp_path, neox, extra_tokens, special):
  language = dataclasses.replace(of_config().language, extra_tokens=extra_tokens)
  config = dataclasses.replace(of_config(), language=language)
  write_pt(tmp_path / "checkpoint.pt", random_model(config), trainable_rules(config, "gpt_neox"))
  fitting = with_tokenizer(tmp_path / "fitting", neox, 40, **special)
  out = import_checkpoint("openflamingo", str(tmp_path / "checkpoint.pt"), str(tmp_path / "out"), language=str(fitting))
  assert load_model(out)[1]["config"]["language"] == json.loads(json.dumps(dataclasses.asdict(language)))
  longer = with_tokenizer(tmp_path / "longer", neox, 41, **special)
  message = (
    rf"has {40 + extra_tokens} rows\. .*longer/tokenizer\.json has 41 tokens, .* adds {extra_tokens}, .* makes 4"
  )
  with pytest.raises(UserError, match=message):
    import_checkpoint("openflamingo", str(tmp_path / "checkpoint.pt"), str(tmp_path / "out"), language=str(longer))


class Hostile:
  """A pickle that would leave a file behind."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_pickle_that_pretends_to_be_a_checkpoint_is_refused_and_not_run(tmp_path, neox):
  (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps({"model_state_dict": Hostile(tmp_path / "ran")}))
  done = run(
    "--from=openflamingo", f"--path={tmp_path / 'checkpoint.pt'}", f"--language={neox}", f"--out={tmp_path}/out"
  )
  assert done.returncode == USER_FAULT
  assert str(tmp_path / "checkpoint.pt") in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "ran").exists()
  assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_leaves_the_model_that_was_there(tmp_path, neox):
  import_checkpoint("hf-lm", str(neox), str(tmp_path / "out"))
  before = load_model(tmp_path / "out")[1]
  (tmp_path / "broken").mkdir()
  whole = (neox / "model.safetensors").read_bytes()
  (tmp_path / "broken" / "model.safetensors").write_bytes(whole[:-100])
  (tmp_path / "broken" / "config.json").write_bytes((neox / "config.json").read_bytes())
  with pytest.raises(UserError, match=r"model\.safetensors"):
    import_checkpoint("hf-lm", str(tmp_path / "broken"), str(tmp_path / "out"))
  assert load_model(tmp_path / "out")[1] == before
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
  ("path", "out"),
  [("theirs", "theirs"), ("theirs", "."), ("theirs/model.safetensors", "theirs"), ("theirs", "link"), ("ours", "ours")],
)
def test_an_import_never_deletes_what_it_reads(tmp_path, neox, path, out):
  shutil.copytree(neox, tmp_path / "theirs")
  import_checkpoint("hf-lm", str(neox), str(tmp_path / "ours"))
  (tmp_path / "link").symlink_to("theirs")
  before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
  with pytest.raises(UserError, match=r"^--out is .*, which holds --path, .*; it would be deleted\. Choose another\.$"):
    import_checkpoint("hf-lm", str(tmp_path / path), str(tmp_path / out))
  assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("option", ["language", "vision"])
def test_an_import_never_deletes_what_an_openflamingo_was_built_on(tmp_path, neox, option):
  write_pt(tmp_path / "checkpoint.pt", random_model(of_config()), trainable_rules(of_config(), "gpt_neox"))
  shutil.copytree(neox, tmp_path / "other")
  built_on = dict(language=str(neox)) | {option: str(tmp_path / "other")}
  with pytest.raises(UserError, match=rf"which holds --{option}, .*; it would be deleted"):
    import_checkpoint("openflamingo", str(tmp_path / "checkpoint.pt"), str(tmp_path / "other"), **built_on)


def test_a_folder_that_another_program_wrote_is_not_replaced(tmp_path, neox):
  """It has the file names of ours."""
  shutil.copytree(neox, tmp_path / "other", ignore=shutil.ignore_patterns("generation_config.json"))
  before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
  assert before.keys() == {"config.json", "model.safetensors"}
  done = run("--from=hf-lm", f"--path={neox}", f"--out={tmp_path / 'other'}")
  assert done.returncode == USER_FAULT
  assert "other: not empty, and not a model folder: config.json is not one that `flamingo import` wrote" in done.stderr
  assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == before


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--from=hf-lm", "--path=nowhere"], "nowhere: no such file or folder"),
    (["--from=hf-lm", "--path={neox}/model.safetensors", "--vision=x"], "what an OpenFlamingo was built on"),
    (["--from=openflamingo", "--path={neox}/model.safetensors"], "--language is missing"),
    (["--from=openflamingo", "--path={neox}/model.safetensors", "--language={neox}"], "not an OpenFlamingo checkpoint"),
    (["--from=idefics", "--path={neox}"], "model_type is 'gpt_neox', not 'idefics'"),
    (["--from=timm-nfnet", "--path={neox}"], "architecture is"),
    (["--from=open-clip", "--path={neox}"], "open_clip_config.json: cannot be read"),
    (["--from=gguf", "--path={neox}/config.json"], "not a readable GGUF file"),
  ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, neox, arguments, message):
  done = run(*(argument.format(neox=neox) for argument in arguments), f"--out={tmp_path / 'out'}")
  assert done.returncode == USER_FAULT
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "out").exists()


def test_the_added_tokens_come_in_our_order():
  """Theirs: <|endofchunk|>, <image>, <PAD>; ours: <image>, <EOC>."""
  rules = {rule.names[0]: rule for rule in trainable_rules(of_config(), "gpt_neox")}
  table = rules["lang_encoder.gpt_neox.embed_in.weight"]
  rows = np.arange(43.0)[:, None] * np.ones(16)
  _, extra = table.split(rows)
  assert extra[:, 0].tolist() == [41, 40, 42]
  np.testing.assert_array_equal(table.join(*table.split(rows)), rows)
  assert OPENFLAMINGO_ADDED == (1, 0, 2)
