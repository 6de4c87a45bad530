"""Secrets that are planted in configs, variables and errors reach no file and no terminal."""

import dataclasses
import json
import pathlib
import types

import pytest

from flamingo_jax.errors import UserError
from launch import cli, reporting
from launch.config import load_config
from launch.experiment import read_experiment
from launch.generate import Trained
from launch.model_card import make_card, render_card, write_card

SECRET = "Zq8vT3mLw0pXc5Rb"
LEAKY = f"https://user:{SECRET}@host/data?token={SECRET}"
CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "tiny.py")


@pytest.fixture
def experiment():
  """A run whose config.json was written before credentials were refused there."""
  sound = read_experiment(load_config(CONFIG, {}), CONFIG)
  raw = sound.raw | dict(start=LEAKY, tokenizer=dict(path=f"/cwd/https:/user:{SECRET}@host"))
  streams = {name: dataclasses.replace(stream, source=LEAKY) for name, stream in list(sound.stream_configs.items())}
  return dataclasses.replace(sound, raw=raw, stream_configs=streams)


def assert_clean(folder: pathlib.Path) -> None:
  files = [path for path in folder.rglob("*") if path.is_file()]
  assert files
  for path in files:
    assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("field", ["frozen.language", "tokenizer.path", "start", "streams.pages.source"])
def test_a_config_with_a_credential_is_refused_at_the_door(field):
  config = load_config(CONFIG, {})
  group, names = config, field.split(".")
  for name in names[:-1]:
    group = group.setdefault(name, {})
  group[names[-1]] = LEAKY
  with pytest.raises(UserError, match=f"{field} holds a password") as error:
    read_experiment(config, "config.json")
  assert SECRET not in str(error.value)


def test_a_config_with_the_value_of_a_secret_variable_is_refused(monkeypatch):
  monkeypatch.setenv("HF_TOKEN", SECRET)
  with pytest.raises(UserError, match=r"tokenizer\.path holds"):
    read_experiment(load_config(CONFIG, {"tokenizer.path": f"models/{SECRET}"}), CONFIG)


def test_the_command_refuses_it_without_repeating_it(tmp_path, capsys):
  given, overrides = cli.take_overrides(
    ["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", f"--config.frozen.language={LEAKY}"]
  )
  options = cli.make_parser().parse_args(given)
  options.overrides = overrides
  assert cli.exit_code(options) == 2
  printed = capsys.readouterr()
  assert "frozen.language holds a password" in printed.err and SECRET not in printed.out + printed.err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [UserError, RuntimeError])
def test_what_an_exception_quotes_is_hidden(kind, monkeypatch, capsys):
  monkeypatch.setenv("WANDB_API_KEY", "my-key-of-wandb")

  def run(options):
    raise kind(f"{LEAKY} answers 401 to my-key-of-wandb")

  monkeypatch.setitem(cli.RUN, "train", run)
  assert cli.exit_code(types.SimpleNamespace(verb="train"))
  said = capsys.readouterr().err
  assert "answers 401" in said and SECRET not in said and "my-key-of-wandb" not in said


def test_a_model_card_hides_what_an_older_config_holds(experiment, tmp_path, monkeypatch):
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key-in-the-environment")
  monkeypatch.setattr(
    "launch.model_card.source_card", lambda part, source: dict(part=part, source=source, origin=source)
  )
  trained = Trained({}, 3, {}, ())
  card = make_card("orbax", f"a run of key-in-the-environment, {LEAKY}", experiment, trained) | dict(weights={})
  write_card(tmp_path, card, render_card(card, experiment.model))
  assert_clean(tmp_path)
  assert "key-in-the-environment" not in (tmp_path / "README.md").read_text()
  assert json.loads((tmp_path / "model_card.json").read_text())["config"]["start"] == (
    "https://[hidden]@host/data?token=[hidden]"
  )


def test_a_report_hides_what_an_older_config_holds(experiment, tmp_path, monkeypatch):
  monkeypatch.setattr(reporting, "open_run", lambda workdir: experiment)
  monkeypatch.setattr(type(experiment), "tokenizer", lambda self: None)
  for name in ("training_examples", "generations"):
    monkeypatch.setattr(reporting, name, lambda *arguments: ())
  monkeypatch.setattr(reporting, "read_metrics", lambda workdir: [])
  reporting.write_report(tmp_path)
  assert "[hidden]@host/data" in (tmp_path / "report.html").read_text()
  assert_clean(tmp_path)
