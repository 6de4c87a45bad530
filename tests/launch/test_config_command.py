"""`flamingo config`, and `flamingo train --reproduce`, on the config of a run that is there."""

import json
import shutil

import pytest
import yaml
from finished import write_work

from launch.cli import main
from launch.config import load_config


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_gguf):
  return write_work(tmp_path_factory.mktemp("work"), write_gguf)


def printed(capsys, *arguments: str, code: int = 0) -> str:
  assert main(["config", *arguments]) == code
  captured = capsys.readouterr()
  return captured.err if code else captured.out


def test_show_prints_every_field_of_a_file_with_overrides(capsys):
  shown = yaml.safe_load(printed(capsys, "show", "configs/tiny.py", "--config.total_steps=7"))
  assert shown == json.loads(json.dumps(load_config("configs/tiny.py", {"total_steps": "7"})))
  assert shown["total_steps"] == 7
  assert json.loads(printed(capsys, "show", "configs/tiny.py", "--config.total_steps=7", "--json")) == shown


def test_show_prints_what_a_run_was_made_with(work, capsys):
  shown = yaml.safe_load(printed(capsys, "show", str(work / "run")))
  assert shown == json.loads((work / "run" / "config.json").read_text())


def test_diff_names_the_fields_that_differ_and_no_others(work, capsys):
  assert printed(capsys, "diff", "configs/tiny.py", "configs/tiny.py").strip() == "no difference"
  changed = ["--config.optimizer.learning_rate=0.5", "--config.streams.pages.media=2"]
  told = printed(capsys, "diff", "configs/tiny.py", "configs/tiny.py", *changed)
  assert told.splitlines() == ["optimizer.learning_rate: 0.01 -> 0.5", "streams.pages.media: 3 -> 2"]
  found = json.loads(printed(capsys, "diff", str(work / "run"), "configs/tiny.py", "--json"))
  assert found["model.language.vocabulary"][0] == 40 and "optimizer.learning_rate" not in found


def test_validate_says_every_fault_at_once(capsys):
  assert "whole" in printed(capsys, "validate", "configs/tiny.py")
  assert "whole" in printed(capsys, "validate", "configs/evaluation/paper.py")
  wrong = ["--config.total_steps=0", "--config.streams.pages.frames=99", "--config.guard.spike=-1.0"]
  told = printed(capsys, "validate", "configs/tiny.py", *wrong, code=2)
  for part in ("total_steps is 0", "streams.pages.frames is 99", "guard.spike"):
    assert part in told


def test_a_value_of_the_wrong_kind_hides_no_fault_of_another_group(capsys):
  faults = {
    "streams.pages.length": "long",
    "streams.captions.media": "0",
    "model.remat": "most",
    "optimizer.beta2": "2",
  }
  told = printed(
    capsys, "validate", "configs/tiny.py", *(f"--config.{name}={text}" for name, text in faults.items()), code=2
  )
  assert sorted(line.partition("tiny.py: ")[2].split(" is ")[0] for line in told.splitlines()) == sorted(faults)


def test_what_is_no_config_is_an_error(tmp_path, capsys):
  assert "config.json: missing" in printed(capsys, "show", str(tmp_path), code=2)
  assert "no such config file" in printed(capsys, "show", "configs/nothing.py", code=2)


@pytest.mark.parametrize("job", [["show"], ["diff", "configs/tiny.py"], ["validate"]])
@pytest.mark.parametrize(
  ("name", "message"),
  [("nosuch", "nosuch: no such field"), ("streams.x", "streams.x is 3"), ("optimizer.beta3", "did you mean opt")],
)
def test_an_override_that_names_nothing_is_refused(job, name, message, capsys):
  assert message in printed(capsys, *job, "configs/tiny.py", f"--config.{name}=3", code=2)


def test_a_field_that_a_config_leaves_out_can_be_set(tmp_path, capsys):
  path = tmp_path / "mine.py"
  body = ["config = tiny.get_config()", "del config.seed", "return config"]
  path.write_text("\n  ".join(["from configs import tiny\ndef get_config():", *body]))
  assert yaml.safe_load(printed(capsys, "show", str(path), "--config.seed=5"))["seed"] == 5


@pytest.mark.parametrize("job", [["show"], ["show", "--json"], ["diff", "configs/tiny.py"], ["validate"]])
@pytest.mark.parametrize("value", ["{2}", "b'x'", "print", "(1, {2})"])
def test_a_field_that_no_file_can_hold_is_named(tmp_path, capsys, job, value):
  path = tmp_path / "mine.py"
  group = f"ConfigDict(dict(a=dict(b={value})))"
  path.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return {group}")
  assert f"{path}: a.b holds " in printed(capsys, *job, str(path), code=2)


@pytest.mark.parametrize("job", [["show"], ["diff", "configs/tiny.py"], ["validate"]])
def test_a_work_directory_whose_config_is_no_group_is_refused(tmp_path, capsys, job):
  (tmp_path / "config.json").write_text("[1]")
  assert f"{tmp_path / 'config.json'}: is a JSON list" in printed(capsys, *job, str(tmp_path), code=2)


def test_a_run_is_reproduced_only_with_the_records_it_had(work, tmp_path, capsys):
  """That of `work` was written without records: any are others."""
  shards = work / "captions"
  shutil.copytree(shards / "train", shards / "heldout", dirs_exist_ok=True)
  assert main(["train", f"--reproduce={work / 'run'}", f"--workdir={tmp_path / 'again'}"]) == 2
  assert "data.captions: trained with none, found" in capsys.readouterr().err
  assert not (tmp_path / "again" / "checkpoints").exists()


def test_a_run_is_not_reproduced_over_itself_nor_from_nothing(work, tmp_path, capsys):
  assert main(["train", f"--reproduce={work / 'run'}", f"--workdir={work / 'run'}"]) == 2
  assert "the run itself" in capsys.readouterr().err
  assert main(["train", f"--reproduce={tmp_path}", f"--workdir={tmp_path / 'again'}"]) == 2
  assert "config.json: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments",
  [
    ["--config=c.py"],
    ["--workdir=w"],
    ["--config=c.py", "--reproduce=r", "--workdir=w"],
    ["--replay=b", "--config=c.py"],
  ],
)
def test_one_thing_is_trained_at_a_time(arguments, capsys):
  assert main(["train", *arguments]) == 2
  assert "--workdir is needed with --config or --reproduce" in capsys.readouterr().err
