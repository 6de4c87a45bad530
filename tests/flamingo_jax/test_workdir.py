import json

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.training.workdir import claim_workdir, note, read_history

CONFIG = {"seed": 0, "streams": {"pages": {"length": 64}, "captions": {"length": 24}}, "trainable": ("a", "b")}


def test_a_work_directory_is_claimed_once_and_known_again(tmp_path):
  workdir = tmp_path / "runs" / "mine"
  claim_workdir(workdir, CONFIG)
  assert [path.name for path in workdir.iterdir()] == ["config.json"]
  before = (workdir / "config.json").read_bytes()
  (workdir / "metrics.jsonl").write_text("")
  claim_workdir(workdir, CONFIG)
  assert (workdir / "config.json").read_bytes() == before


def test_another_config_is_refused_with_every_difference(tmp_path):
  claim_workdir(tmp_path / "run", CONFIG)
  other = {"seed": 1, "streams": {"pages": {"length": 64, "crop": 0.5}}, "trainable": ("a", "b")}
  with pytest.raises(UserError) as error:
    claim_workdir(tmp_path / "run", other)
  first, *differences, last = str(error.value).splitlines()
  assert first == f"{tmp_path / 'run'} belongs to another config:"
  assert last.endswith("--allow-changed=seed,streams.captions,streams.pages.crop.")
  assert differences == [
    "  seed: 0 there, 1 here",
    "  streams.captions: {'length': 24} there, '(absent)' here",
    "  streams.pages.crop: '(absent)' there, 0.5 here",
  ]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(UserError, match=r"not empty, and not the work directory of a run"):
    claim_workdir(tmp_path, CONFIG)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_claim_that_was_interrupted_is_taken_up(tmp_path):
  (tmp_path / "config.json.new").write_text('{"seed": ')
  claim_workdir(tmp_path, CONFIG)
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
  assert not (tmp_path / "config.json.new").exists()


def test_what_changes_nothing_that_is_learnt_may_change_and_is_told(tmp_path):
  before = {"mesh": {"fsdp": 1}, "seed": 0, "streams": {"pages": {"source": "a", "length": 4}}}
  claim_workdir(tmp_path / "run", before)
  after = {"mesh": {"fsdp": 4}, "seed": 0, "streams": {"pages": {"source": "b", "length": 4}}}
  assert claim_workdir(tmp_path / "run", after) == [("mesh.fsdp", 1, 4), ("streams.pages.source", "a", "b")]
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == before  # until it is known to be restored


@pytest.mark.parametrize("allowed", [("optimizer.learning_rate",), ("optimizer",)])
def test_who_insists_may_change_what_he_names_and_nothing_else(tmp_path, allowed):
  claim_workdir(tmp_path / "run", {"seed": 0, "optimizer": {"learning_rate": 1.0}})
  assert claim_workdir(tmp_path / "run", {"seed": 0, "optimizer": {"learning_rate": 2.0}}, allowed) == [
    ("optimizer.learning_rate", 1.0, 2.0)
  ]
  with pytest.raises(UserError) as error:
    claim_workdir(tmp_path / "run", {"seed": 1, "optimizer": {"learning_rate": 2.0}}, allowed)
  assert "seed: 0 there, 1 here" in str(error.value) and "learning_rate" not in str(error.value)


def test_history_goes_on_after_a_line_that_was_cut_short(tmp_path):
  note(tmp_path, "start", step=0)
  with (tmp_path / "history.jsonl").open("a") as file:
    file.write('{"event": "en')
  assert read_history(tmp_path) == [{"event": "start", "step": 0}]
  note(tmp_path, "start", step=5)
  assert [event["step"] for event in read_history(tmp_path)] == [0, 5]
