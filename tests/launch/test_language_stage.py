"""The language stage end to end: real text trains a language model, which a Flamingo then freezes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import save_model
from flamingo_jax.models.language.decoder import DecoderConfig, ungroup_layers
from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.metrics import read_metrics, untimed
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.exporting import export_model
from launch.generate import continue_prompt
from launch.reporting import write_report
from launch.train import run, train_config

CONFIG = "configs/tiny_language.py"
SHORT = {
  **{"total_steps": "12", "evaluate_every": "6", "checkpoint.every": "6", "streams.pages.batch_size": "4"},
  **{"model.language.layers": "2", "model.remat": "none"},
}


pytestmark = pytest.mark.usefixtures("few_optimizations")


def sizes(quickstart_data: pathlib.Path) -> dict[str, str]:
  """Overrides under which a run takes seconds."""
  language = str(quickstart_data / "language_model")
  return SHORT | {"streams.pages.source": str(quickstart_data / "streams" / "pages"), "tokenizer.path": language}


@pytest.fixture(scope="module")
def trained(quickstart_data, tmp_path_factory) -> pathlib.Path:
  """A finished run."""
  workdir = tmp_path_factory.mktemp("language") / "run"
  train_config(CONFIG, sizes(quickstart_data), str(workdir))
  return workdir


def flamingo(quickstart_data, language: pathlib.Path | str, **changes) -> Experiment:
  """A Flamingo on a language model and the captions."""
  config = load_config("configs/tiny.py", {})
  config |= dict(total_steps=1, evaluate_every=1, frozen=dict(vision="random", language=str(language))) | changes
  if "tokenizer" not in changes:
    config["tokenizer"]["path"] = str(quickstart_data / "language_model")
  config["model"]["remat"], config["model"]["language"]["layers"] = "none", 2
  captions = config["streams"]["captions"] | dict(batch_size=2, length=12)
  config["streams"] = dict(captions=captions | dict(source=str(quickstart_data / "streams" / "captions")))
  return read_experiment(config, "test")


def test_the_loss_falls_and_held_out_text_surprises_less(trained):
  first, *_, last = read_metrics(trained)
  assert last["loss/pages"] < first["loss/pages"] - 0.5
  assert last["text_loss/pages"] == last["loss/pages"]
  assert last["heldout/loss/pages"] < first["baseline/heldout/loss/pages"] - 0.5
  assert last["heldout/perplexity/pages"] == pytest.approx(np.exp(last["heldout/loss/pages"]), rel=1e-6)


def test_a_flamingo_freezes_what_was_trained_and_records_its_hash(trained, quickstart_data, tmp_path):
  experiment = flamingo(quickstart_data, trained)
  frozen = experiment.frozen()
  own = {path.removeprefix("language/"): array for path, array in load_trainable(trained)[0].items()}
  found = {p.removeprefix("language/"): a for p, a in frozen.parameters.items() if p.startswith("language/")}
  stored, expected = ungroup_layers(found), ungroup_layers(own)
  assert stored.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(stored[path], array, err_msg=path)
  run(experiment, tmp_path / "flamingo")
  _, _, hashes = load_trainable(tmp_path / "flamingo")
  assert hashes["language"] == frozen.hashes["language"]
  assert len(hashes["language"]) == 64


def test_the_hash_is_that_of_a_model_folder_with_the_same_weights(trained, quickstart_data, tmp_path):
  own = {path.removeprefix("language/"): array for path, array in load_trainable(trained)[0].items()}
  made_with = json.loads((trained / "config.json").read_text())["model"]["language"]
  save_model(tmp_path, ungroup_layers(own), DecoderConfig(**made_with), "a test")
  sources = (trained, tmp_path)
  ours, folder = (flamingo(quickstart_data, source).frozen() for source in sources)
  assert ours.hashes["language"] == folder.hashes["language"]


def test_training_goes_on_from_a_run(trained, quickstart_data, tmp_path):
  changes = {"start": str(trained), "total_steps": "1", "evaluate_every": "1", "optimizer.warmup_steps": "0"}
  train_config(CONFIG, sizes(quickstart_data) | changes, str(tmp_path / "more"))
  [line] = read_metrics(tmp_path / "more")
  assert line["baseline/heldout/loss/pages"] == read_metrics(trained)[-1]["heldout/loss/pages"]


def test_another_architecture_is_refused_field_by_field(trained, quickstart_data):
  model = load_config("configs/tiny.py", {})["model"]
  model["language"] |= dict(width=24, activation="gelu")
  with pytest.raises(UserError) as raised:
    flamingo(quickstart_data, trained, model=model).frozen()
  lines = str(raised.value).splitlines()
  assert lines[0] == f"{trained}: does not fit the config:"
  assert [line.split()[0] for line in lines[1:]] == ["model.language.activation", "model.language.width"]


def test_a_flamingo_on_other_tokens_than_its_language_model_knows_is_refused(trained, quickstart_data, tmp_path):
  tokenizer = json.loads((quickstart_data / "language_model" / "tokenizer.json").read_text())
  tokenizer["model"]["merges"].pop()
  (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
  own = str(quickstart_data / "language_model")
  known = rf"{trained}: was trained on the tokens of {own}; tokenizer\.path, {tmp_path}, makes others of a text"
  with pytest.raises(UserError, match=known):
    flamingo(quickstart_data, trained, tokenizer=dict(path=str(tmp_path), bos=0, eos=0)).frozen()
  with pytest.raises(UserError, match=r"was trained with tokenizer\.eos=0; here it is 2"):
    flamingo(quickstart_data, trained, tokenizer=dict(path=own, bos=0, eos=2)).frozen()


def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_end(trained, quickstart_data, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / "checkpoints" / "12")
  train_config(CONFIG, sizes(quickstart_data), str(workdir))
  (resumed, step, _), (whole, *_) = load_trainable(workdir), load_trainable(trained)
  assert step == 12
  for path, array in whole.items():
    np.testing.assert_array_equal(resumed[path], array, err_msg=path)
  assert [untimed(line) for line in read_metrics(workdir)] == [untimed(line) for line in read_metrics(trained)]


def test_two_processes_that_cut_the_parameters_learn_what_one_does(trained, quickstart_data, tmp_path):
  changes = [f"--config.{name}={value}" for name, value in (sizes(quickstart_data) | {"mesh.fsdp": "2"}).items()]
  command = [sys.executable, "-m", "launch.cli", "launch", "--on=local", "--processes=2", f"--config={CONFIG}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  workdir = tmp_path / "run"
  subprocess.run([*command, f"--workdir={workdir}", *changes], env=environment, check=True, capture_output=True)
  together, alone = read_metrics(workdir), read_metrics(trained)
  assert len(together) == len(alone)
  for ours, expected in zip(together, alone, strict=True):
    assert ours["loss/pages"] == pytest.approx(expected["loss/pages"], rel=1e-5)
  assert together[-1]["heldout/loss/pages"] == pytest.approx(alone[-1]["heldout/loss/pages"], rel=1e-5)


def test_a_run_of_another_objective_holds_no_language_model(trained, quickstart_data, tmp_path):
  (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
  (tmp_path / "config.json").write_text(json.dumps({"objective": "contrastive"}))
  with pytest.raises(UserError, match="holds a contrastive run; a language model comes from a language run"):
    flamingo(quickstart_data, tmp_path).frozen()


def test_the_report_shows_losses_and_documents(trained):
  page = write_report(trained).read_text()
  assert "&lt;BOS&gt;" in page
  assert "frozen LM" not in page


def test_what_is_not_for_a_language_model_says_so(trained, tmp_path):
  with pytest.raises(UserError, match="holds a language run; text comes from a flamingo one"):
    continue_prompt(str(trained), "a", [], 1)
  with pytest.raises(UserError, match="holds a language run; what is exported is a flamingo one"):
    export_model(str(trained), "safetensors", str(tmp_path / "out"))


def test_settings_that_cannot_be_are_named_together():
  config = load_config(CONFIG, {"model.remat": "some", "model.language.extra_tokens": "2"})
  config["model"]["language"] |= dict(positions="learned", position_rows=16)
  config["frozen"] = dict(language="models/mine")
  config["streams"]["pages"] |= dict(layout="interleaved", pack=False)
  with pytest.raises(UserError) as raised:
    read_experiment(config, "test")
  fields = [line.removeprefix("test: ").split(" is ")[0] for line in str(raised.value).splitlines()]
  pages = ["streams.pages.layout", "streams.pages.length"]
  assert fields == ["model.remat", "frozen.language", "model.language.extra_tokens", *pages]


def test_text_is_for_language_models_alone():
  config = load_config("configs/tiny.py", {})
  config["streams"]["pages"] |= dict(layout="text", flip=False)
  with pytest.raises(UserError, match=r"streams\.pages\.layout is 'text'; Flamingo reads 'interleaved' and 'pairs'"):
    read_experiment(config, "test")
