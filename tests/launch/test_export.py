"""`flamingo export` as a user runs it; what it wrote is read by the programs it was written for."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from finished import STEP, write_run, write_work

from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.interop.model_folder import load_model
from flamingo_jax.models.flamingo import Flamingo, stacked
from flamingo_jax.models.parameters import nested
from flamingo_jax.training.step import is_trainable
from launch.cli import main
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.exporting import FORMS, export_model
from launch.generate import open_run, read_trained, trained_parameters
from launch.importing import import_checkpoint

ROOT = pathlib.Path(__file__).parent.parent.parent


pytestmark = pytest.mark.usefixtures("few_optimizations")


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_gguf) -> pathlib.Path:
  return write_work(tmp_path_factory.mktemp("work"), write_gguf)


@pytest.fixture(scope="module")
def exported(work):
  """Exports the run once to a format."""

  @functools.cache
  def export(form: str) -> pathlib.Path:
    return export_model(str(work / "run"), form, str(work / "exports" / form))

  return export


def run_script(script: str, folder: pathlib.Path, *arguments: object) -> str:
  """Runs a script in an export's folder, which must do without flamingo_jax, and returns what it printed."""
  whole = f"import sys\nsys.modules['flamingo_jax'] = None  # an import of it would fail\n{script}"
  command = [sys.executable, "-c", whole, *map(str, arguments)]
  environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout


def snippet(folder: pathlib.Path) -> str:
  """The code in an export's README.md."""
  _, code = (folder / "README.md").read_text().split("```python\n", 1)
  return code.split("```", 1)[0]


def test_the_command_writes_what_the_function_writes(work, exported):
  arguments = [f"--workdir={work / 'run'}", "--to=safetensors", f"--out={work / 'by_command'}"]
  command = [sys.executable, "-m", "launch.cli", "export", *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stdout.strip()) == (0, str(work / "by_command")), done.stderr
  for path in exported("safetensors").iterdir():
    assert (work / "by_command" / path.name).read_bytes() == path.read_bytes()


def test_a_model_folder_is_read_in_every_place_that_a_config_names_bit_for_bit(work, exported):
  folder = exported("safetensors")
  config = json.loads((work / "run" / "config.json").read_text())
  config["frozen"] = {"vision": str(folder), "language": str(folder)}
  config["start"] = config["tokenizer"]["path"] = str(folder)
  again = read_experiment(config, "again")
  frozen = again.frozen()
  run = open_run(work / "run")
  expected = read_trained(run, work / "run").parameters
  found = frozen.parameters | frozen.start
  assert found.keys() == expected.keys()
  assert all(found[path].dtype == np.float32 and np.array_equal(found[path], expected[path]) for path in expected)
  assert frozen.start.keys() == {path for path in expected if is_trainable(path, run.training.trainable)}
  assert again.tokenizer().encode("AB") == run.tokenizer().encode("AB") != []
  described = load_model(folder)[1]
  assert described["family"] == "llama"
  assert (described["bos"], described["eos"]) == (run.tokenizer().bos, run.tokenizer().eos)


def test_orbax_alone_reads_its_checkpoint(exported, tmp_path):
  expected, _ = load_model(exported("safetensors"))
  script = """
from flax import traverse_util
import numpy as np
np.savez(sys.argv[1], **traverse_util.flatten_dict(parameters, sep="/"))
"""
  run_script(snippet(exported("orbax")) + script, exported("orbax"), tmp_path / "found.npz")
  with np.load(tmp_path / "found.npz") as found:
    assert set(found) == expected.keys()
    assert all(np.array_equal(found[path], array) for path, array in expected.items())


def make_batch(experiment: Experiment, rows: int, length: int, slots: int, frames: int) -> dict[str, np.ndarray]:
  random = np.random.default_rng(length)
  model = experiment.model
  known, size = model.language.vocabulary + model.language.extra_tokens, model.vision.image_size
  return dict(
    tokens=random.integers(0, known, (rows, length), np.int32),
    segments=(np.arange(length) < random.integers(length // 2, length + 1, (rows, 1))).astype(np.int32),
    media=random.integers(0, 256, (rows, slots, frames, size, size, 3), np.uint8),
    media_mask=random.random((rows, slots, frames)) < 0.8,
    media_index=random.integers(-1, slots, (rows, length), np.int32),
  )


def test_the_program_runs_without_flamingo_jax_at_any_batch_size_and_length(work, exported, tmp_path):
  experiment = open_run(work / "run")
  parameters = read_trained(experiment, work / "run").parameters
  sizes = [(2, 9, 3, 1), (3, 14, 3, 1), (1, 14, 1, 4)]
  batches = [make_batch(experiment, *size) for size in sizes]
  named = {f"{number}/{name}": array for number, batch in enumerate(batches) for name, array in batch.items()}
  np.savez(tmp_path / "batches.npz", **named)
  script = """
names = ("tokens", "segments", "media", "media_mask", "media_index")
with np.load(sys.argv[1]) as arrays:
  results = {str(i): forward(parameters, *(arrays[f"{i}/{name}"] for name in names)) for i in range(int(sys.argv[3]))}
np.savez(sys.argv[2], **results)
"""
  folder = exported("stablehlo")
  printed = run_script(snippet(folder) + script, folder, tmp_path / "batches.npz", tmp_path / "logits.npz", len(sizes))
  assert printed.split("\n")[0] == "(1, 3, 42) float32"
  with np.load(tmp_path / "logits.npz") as found:
    for number, batch in enumerate(batches):
      ours = jax.jit(Flamingo(experiment.model).apply)(nested(parameters), batch)
      np.testing.assert_allclose(found[str(number)], ours, rtol=1e-5, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("form", [form for form in FORMS if form != "openflamingo"])
def test_a_card_says_what_the_model_was_made_of(work, exported, form):
  folder = exported(form)
  card = json.loads((folder / "model_card.json").read_text())
  assert (card["format"], card["step"], card["origin"]) == (form, STEP, f"run, step {STEP}")
  assert card["config"] == json.loads((work / "run" / "config.json").read_text())
  (captions,) = card["data"]
  assert (captions["stream"], captions["weight"], captions["records"]) == ("captions", 0.2, 2)
  assert captions["source"] == str(work / "captions")
  assert len(captions["manifest"]) == 64
  assert card["licences"] == ["CC0-1.0", "MIT"]
  assert [(part["part"], part["origin"]) for part in card["frozen"]] == [
    ("vision", "drawn for a test"),
    ("language", "model.gguf"),
  ]
  for part in card["frozen"]:
    assert part["hash"] == json.loads((work / part["part"] / "config.json").read_text())["hash"]
  expected, described = load_model(exported("safetensors"))
  assert sum(card["parameters"].values()) == sum(array.size for array in expected.values())
  if form != "stablehlo":  # there the layers of the language model are grouped
    assert list(card["weights"].values()) == [described["hash"]]
  text = (folder / "README.md").read_text()
  for fact in ("CC0-1.0", "model.gguf", captions["manifest"], *card["weights"].values()):
    assert fact in text
  assert (folder / "tokenizer.json").read_bytes() == (work / "language" / "tokenizer.json").read_bytes()


def test_a_card_names_what_cannot_be_read_and_what_a_run_began_with(work, exported, tmp_path):
  config = json.loads((work / "run" / "config.json").read_text())
  config["streams"]["captions"]["source"] = str(tmp_path / "gone")
  config["start"] = str(work / "run")
  write_run(tmp_path / "run", config)
  folder = export_model(str(tmp_path / "run"), "safetensors", str(tmp_path / "out"))
  card = json.loads((folder / "model_card.json").read_text())
  assert card["data"] == [dict(stream="captions", weight=0.2, source=str(tmp_path / "gone"), manifest=None)]
  (start,) = card["start"]
  assert (start["origin"], start["data"][0]["stream"]) == ("a flamingo run", "captions")
  assert card["licences"] == ["CC0-1.0", "MIT"]  # of what it began with


def test_a_run_whose_beginning_is_gone_is_exported(work, tmp_path):
  config = json.loads((work / "run" / "config.json").read_text())
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(json.dumps(config | dict(start=str(tmp_path / "gone"))))
  (tmp_path / "run" / "checkpoints").symlink_to(work / "run" / "checkpoints")
  folder = export_model(str(tmp_path / "run"), "safetensors", str(tmp_path / "out"))
  (start,) = json.loads((folder / "model_card.json").read_text())["start"]
  assert start == dict(part="start", source=str(tmp_path / "gone"), origin="cannot be read any more")
  assert "| start | cannot be read any more |" in (folder / "README.md").read_text()


def test_an_export_replaces_one_of_its_own_format_only(work, exported, tmp_path):
  export_model(str(work / "run"), "safetensors", str(tmp_path / "out"))
  (tmp_path / "out" / "model.safetensors").write_bytes(b"")
  export_model(str(work / "run"), "safetensors", str(tmp_path / "out"))
  assert load_model(tmp_path / "out")[1] == load_model(exported("safetensors"))[1]
  with pytest.raises(UserError, match=r"out: not empty, and an export to safetensors; an export replaces only one"):
    export_model(str(work / "run"), "orbax", str(tmp_path / "out"))
  (tmp_path / "documents").mkdir()
  (tmp_path / "documents" / "letter.txt").write_text("dear")
  with pytest.raises(UserError, match=r"documents: not empty, and no export \(no model_card\.json of one\)"):
    export_model(str(work / "run"), "orbax", str(tmp_path / "documents"))
  with pytest.raises(UserError, match=r"letter\.txt: is a file; --out names a folder"):
    export_model(str(work / "run"), "orbax", str(tmp_path / "documents" / "letter.txt"))
  (tmp_path / "empty").mkdir()
  assert export_model(str(work / "run"), "safetensors", str(tmp_path / "empty")).is_dir()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "empty", "out"]


def test_an_export_that_is_killed_leaves_nothing_that_looks_like_one(work, tmp_path, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("launch.exporting.write_card", killed)
  with pytest.raises(KeyboardInterrupt):
    export_model(str(work / "run"), "safetensors", str(tmp_path / "out"))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("to", "workdir", "message"),
  [
    ("safetensors", "nowhere", "nowhere/config.json: missing. Give the work directory of a `flamingo train` run"),
    ("safetensors", "language", "config.json: objective is '(absent)'"),
    ("pickle", "run", "invalid choice: 'pickle'"),
    ("openflamingo", "run", "model.cross_attention.activation is 'squared_relu'; OpenFlamingo has only 'gelu'"),
  ],
)
def test_what_cannot_be_exported_is_one_clear_error(work, tmp_path, capsys, to, workdir, message):
  arguments = ["export", f"--workdir={work / workdir}", f"--to={to}", f"--out={tmp_path / 'out'}"]
  assert exit_code(arguments) == USER_FAULT
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def exit_code(arguments: list[str]) -> int:
  """Of the command, run here."""
  try:
    return main(arguments)
  except SystemExit as end:
    return end.code


def test_a_run_that_is_not_ready_or_of_another_kind_is_refused(work, tmp_path):
  (tmp_path / "config.json").write_text((work / "run" / "config.json").read_text())
  with pytest.raises(UserError, match="no checkpoints there"):
    export_model(str(tmp_path), "safetensors", str(tmp_path / "out"))
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config\.json: not JSON"):
    export_model(str(tmp_path), "safetensors", str(tmp_path / "out"))
  vision = load_config("configs/quickstart_vision.py", {"frozen.language": str(work / "language")})
  (tmp_path / "config.json").write_text(json.dumps(vision))
  with pytest.raises(UserError, match="holds a contrastive run; what is exported is a flamingo one"):
    export_model(str(tmp_path), "safetensors", str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_all_that_openflamingo_cannot_hold_is_said_before_weights_are_read(work, tmp_path):
  (tmp_path / "config.json").write_text((work / "run" / "config.json").read_text())  # and no checkpoint
  with pytest.raises(UserError) as error:
    export_model(str(tmp_path), "openflamingo", str(tmp_path / "out"))
  fields = [line.split(" is ")[0].strip() for line in str(error.value).splitlines()[1:]]
  assert fields == [
    "model.cross_attention.activation",
    "model.cross_attention.offset",
    "model.resampler.activation",
  ]


# OpenFlamingo.

SIZES = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, vocab_size=40)


def hugging_face(family: str):
  """A tiny language model, its weights large enough to matter."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  if family == "llama":
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=1, max_position_embeddings=64)
    model = transformers.LlamaForCausalLM(config)
  elif family == "gpt_neox":
    config = transformers.GPTNeoXConfig(**SIZES, intermediate_size=64, rotary_pct=0.25)
    model = transformers.GPTNeoXForCausalLM(config)
  else:
    config = transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=64)
    model = transformers.OPTForCausalLM(config)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim > 1:
        parameter.normal_(std=0.3)
  return model


def openflamingo_run(
  folder: pathlib.Path, vision: pathlib.Path, family: str, extra_tokens: int, *, previous_media: bool = False
) -> pathlib.Path:
  """A run of OpenFlamingo's architecture on a language model of transformers, which is in `folder/theirs`."""
  hugging_face(family).save_pretrained(folder / "theirs")
  import_checkpoint("hf-lm", str(folder / "theirs"), str(folder / "language"))
  config = load_config("configs/tiny.py", {})
  model, described = config["model"], json.loads((folder / "language" / "config.json").read_text())
  model["language"] = described["config"] | {"extra_tokens": extra_tokens}
  model["resampler"].update(heads=8, head_width=2, activation="gelu")
  model["cross_attention"].update(heads=8, head_width=2, offset=1, activation="gelu")
  model["cross_attention"].update(previous_media=previous_media, blind_sees_all=previous_media)
  config["frozen"] = dict(vision=str(vision), language=str(folder / "language"))
  config["tokenizer"]["path"] = str(folder / "language")
  return write_run(folder / "run", config)


PEER = """
import os, types
import numpy as np, torch, transformers

# Their packages' __init__ would import torchvision; the modules themselves do not need it.
root = next(path for folder in sys.path if os.path.isdir(path := os.path.join(folder, "open_flamingo")))
for name, path in (("open_flamingo", root), ("open_flamingo.src", os.path.join(root, "src"))):
  sys.modules[name] = types.ModuleType(name)
  sys.modules[name].__path__ = [path]

class GivenFeatures(torch.nn.Module):
  def forward(self, x):  # "pixels" [n, 1, positions, width] are the features
    return None, x[:, 0]

language = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
vision = types.SimpleNamespace(visual=GivenFeatures())
"""
COMPARE = """
model.eval().requires_grad_(False)
model.perceiver.requires_grad_(True)
model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
model.lang_encoder.get_input_embeddings().requires_grad_(True)
named = model.state_dict(keep_vars=True)
loaded = {id(named[name]) for name in state}
assert all(id(p) in loaded for p in model.parameters() if p.requires_grad), keys.missing_keys

# What their own training would have saved.
text = open(os.path.join(root, "train", "train_utils.py")).read().split("def filter_state_dict_to_trainable")[1]
scope = dict(torch=torch)
exec("def filter_state_dict_to_trainable" + text.split("\\ndef ")[0], scope)
wrapped = torch.nn.Module()
wrapped.module = model
saved = scope["filter_state_dict_to_trainable"](wrapped, wrapped.state_dict())
print(*sorted(set(state) ^ {name.removeprefix("module.") for name in saved}))

with np.load(sys.argv[2]) as given:
  features, tokens, mask = (torch.tensor(given[name]) for name in ("features", "tokens", "mask"))
with torch.no_grad():
  np.save(sys.argv[3], model(features[:, :, :, None], tokens, attention_mask=mask).logits.numpy())
"""


@pytest.mark.parametrize(
  ("family", "extra_tokens", "previous_media", "difference"),
  [
    ("llama", 2, False, ["lang_encoder.lm_head.weight"]),  # it loses its new rows there; ours are trained
    ("gpt_neox", 3, True, []),
    ("opt", 3, False, ["lang_encoder.lm_head.weight", "lang_encoder.model.decoder.embed_positions.weight"]),
  ],  # the last two are theirs: one tensor's second name, and a frozen table
)
def test_openflamingo_itself_computes_the_same_logits(work, tmp_path, family, extra_tokens, previous_media, difference):
  if importlib.util.find_spec("open_flamingo") is None:
    pytest.skip("open_flamingo is not installed")
  workdir = openflamingo_run(tmp_path, work / "vision", family, extra_tokens, previous_media=previous_media)
  folder = export_model(str(workdir), "openflamingo", str(tmp_path / "out"))
  vocabulary, random = SIZES["vocab_size"], np.random.default_rng(1)
  end, image = vocabulary, vocabulary + 1  # their ids
  tokens = random.integers(3, vocabulary, (3, 16))
  tokens[0, [4, 9]], tokens[1, [0, 7]], tokens[2, [5, 6]] = image, image, image
  tokens[:, 11] = end
  mask = np.ones_like(tokens)
  mask[1, 13:] = 0
  experiment = open_run(workdir)
  parameters, size = trained_parameters(experiment, workdir), experiment.model.vision.image_size
  media = random.integers(0, 256, (3, 2, 1, size, size, 3), np.uint8)
  model = Flamingo(experiment.model)
  see = jax.jit(functools.partial(model.apply, method=lambda m, pixels: m.vision(pixels)))
  features = see(nested(parameters), media.reshape(6, size, size, 3))
  np.savez(tmp_path / "given.npz", features=features.reshape(3, 2, 1, -1, features.shape[-1]), tokens=tokens, mask=mask)
  script, arguments = PEER + snippet(folder) + COMPARE, (tmp_path / "theirs", tmp_path / "given.npz")
  printed = run_script(script, folder, *arguments, tmp_path / "logits.npy")
  assert printed.split() == difference
  theirs = np.load(tmp_path / "logits.npy")

  ours_of = np.arange(vocabulary + extra_tokens)
  ours_of[[end, image]] = image, end  # ours are <image>, <EOC>
  batch = dict(
    tokens=ours_of[tokens].astype(np.int32),
    segments=mask.astype(np.int32),
    media=media,
    media_mask=np.ones(media.shape[:3], bool),
    media_index=np.cumsum(tokens == image, axis=1, dtype=np.int32) - 1,
  )
  forward = jax.jit(lambda batch: model.apply(nested(parameters), batch)[..., ours_of])
  present, scale = mask > 0, np.abs(theirs[mask > 0]).max()
  assert np.abs(forward(batch) - theirs)[present].max() < 1e-5 * scale
  blind = batch | dict(media_mask=np.zeros_like(batch["media_mask"]))
  assert np.abs(forward(blind) - theirs)[present].max() > 1e-2 * scale


def test_what_went_to_openflamingo_comes_back_bit_for_bit(work, tmp_path):
  workdir = openflamingo_run(tmp_path, work / "vision", "gpt_neox", 3)
  there = export_model(str(workdir), "openflamingo", str(tmp_path / "there"))
  back = import_checkpoint(
    "openflamingo", str(there / "checkpoint.pt"), str(tmp_path / "back"), language=str(tmp_path / "theirs")
  )
  found, _ = load_model(back)
  expected = stacked(read_trained(open_run(workdir), workdir).parameters)
  assert found.keys() == {path for path in expected if not path.startswith("vision/")}
  assert all(np.array_equal(array, expected[path]) for path, array in found.items())


def changed_run(folder: pathlib.Path, vision: pathlib.Path) -> pathlib.Path:
  """A run with other values of all that no shape in a checkpoint tells, and of the feed-forwards' widths."""
  workdir = openflamingo_run(folder, vision, "gpt_neox", 2, previous_media=True)
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["resampler"].update(heads=2, head_width=8, feed_forward_multiplier=2)
  config["model"]["cross_attention"].update(heads=4, head_width=6, feed_forward_multiplier=3)
  return write_run(folder / "changed", config)


def test_settings_that_no_shape_tells_come_back_too(work, tmp_path):
  workdir = changed_run(tmp_path, work / "vision")
  there = export_model(str(workdir), "openflamingo", str(tmp_path / "there"))
  back = import_checkpoint(
    "openflamingo", str(there / "checkpoint.pt"), str(tmp_path / "back"), language=str(tmp_path / "theirs")
  )
  found, described = load_model(back)
  config = json.loads((workdir / "config.json").read_text())["model"]
  for part in ("resampler", "cross_attention"):
    assert {name: described["config"][part][name] for name in config[part]} == config[part]
  assert described["config"]["language"]["vocabulary"] == SIZES["vocab_size"]
  assert described["config"]["language"]["extra_tokens"] == 2
  expected = stacked(read_trained(open_run(workdir), workdir).parameters)
  assert found.keys() == {path for path in expected if not path.startswith("vision/")}
  assert all(np.array_equal(array, expected[path]) for path, array in found.items())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      dict(rows=43, added_tokens={"<|endofchunk|>": 40, "<image>": 41, "<PAD>": 42}),
      r"there/config\.json: rows is 43, but the token table in .*checkpoint\.pt has 42\. Are both of one export\?",
    ),
    (
      dict(added_tokens={"<image>": 40, "<|endofchunk|>": 41}),
      r"there/config\.json: added_tokens is .*; they are <\|endofchunk\|>, <image> and perhaps <PAD>, the last of 42",
    ),
    (dict(cross_attention={}), r"there/config\.json: the field 'heads' is missing"),
  ],
)
def test_a_description_of_another_checkpoint_is_refused(work, tmp_path, change, message):
  there = export_model(
    str(openflamingo_run(tmp_path, work / "vision", "gpt_neox", 2)), "openflamingo", str(tmp_path / "there")
  )
  described = json.loads((there / "config.json").read_text())
  (there / "config.json").write_text(json.dumps(described | change))
  with pytest.raises(UserError, match=message):
    import_checkpoint(
      "openflamingo", str(there / "checkpoint.pt"), str(tmp_path / "back"), language=str(tmp_path / "theirs")
    )


def test_without_torch_the_error_says_how_to_get_it(work, tmp_path, monkeypatch):
  workdir = openflamingo_run(tmp_path, work / "vision", "gpt_neox", 2)
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match=r"checkpoint\.pt: torch reads and writes such files.*flamingo_jax\[torch\]"):
    export_model(str(workdir), "openflamingo", str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
