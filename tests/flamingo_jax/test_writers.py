"""Weights & Biases (offline) and MLflow (in SQLite) have each step once, whatever happened to the run."""

import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
from mlflow import MlflowClient
from number_runs import ROOT, Recorder, run
from wandb.proto.wandb_internal_pb2 import Record

from flamingo_jax.errors import UserError
from flamingo_jax.training import writers
from flamingo_jax.training.checkpoints import CheckpointConfig
from flamingo_jax.training.config import Resume
from flamingo_jax.training.metrics import read_metrics, untimed
from flamingo_jax.training.rewind import Rewind
from flamingo_jax.training.writers import unknown_writers

BOTH = ("wandb", "mlflow")
STEPS = 12
BLOCK = 32768  # of a log of LevelDB, which is what Weights & Biases writes
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> pathlib.Path:
  """A database that MLflow has made, which takes it seconds."""
  path = tmp_path_factory.mktemp("mlflow") / "empty.db"
  MlflowClient(f"sqlite:///{path}").search_experiments()
  return path


@pytest.fixture
def places(tmp_path, monkeypatch, empty_store) -> str:
  """Where both write, as a user says it; the address of MLflow's store."""
  store = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'runs.db')}"
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
  return store


def wandb_records(path: pathlib.Path) -> list[Record]:
  data, at, found, parts = path.read_bytes(), 7, [], b""
  while at + 7 <= len(data):
    if BLOCK - at % BLOCK < 7:
      at += BLOCK - at % BLOCK
      continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    parts = (b"" if kind in (1, 2) else parts) + data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
      found.append(Record.FromString(parts))
  return found


def in_wandb(workdir: pathlib.Path) -> dict[str, list[dict]]:
  """The lines of every run, over all of its starts."""
  runs: dict[str, list[dict]] = {}
  for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
    records = wandb_records(path)
    (name,) = {record.run.run_id for record in records if record.HasField("run")}
    for record in records:
      if record.HasField("history"):
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        line = {name: value for name, value in items.items() if not name.startswith("_")}
        runs.setdefault(name, []).append({"step": record.history.step.num} | line)
  return runs


def in_mlflow(store: str) -> dict[str, list[dict]]:
  client = MlflowClient(store)
  (experiment,) = client.search_experiments(filter_string="name = 'flamingo_jax'")
  runs = {}
  for each in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]):
    lines: dict[int, dict] = {}
    for name in each.data.metrics:
      for metric in client.get_metric_history(each.info.run_id, name):
        assert name not in lines.setdefault(metric.step, {"step": metric.step}), f"{name} twice at {metric.step}"
        lines[metric.step][name] = metric.value
    runs[each.info.run_id] = [lines[step] for step in sorted(lines)]
  return runs


def one(runs: dict[str, list[dict]]) -> list[dict]:
  (lines,) = runs.values()
  return lines


def without_timing(lines: list[dict]) -> list[dict]:
  return [untimed(line) for line in lines]


def test_both_have_the_numbers_of_the_record(places, tmp_path):
  run(tmp_path / "run", Recorder(), writers=BOTH, total_steps=STEPS)
  record = read_metrics(tmp_path / "run")
  assert [line["step"] for line in record] == list(range(1, STEPS + 1))
  assert one(in_wandb(tmp_path / "run")) == record
  assert one(in_mlflow(places)) == record


KILLED = """
import json, os, pathlib, signal, sys, time, jax
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, "tests/flamingo_jax")
from mlflow import MlflowClient
from number_runs import Recorder, run
workdir = pathlib.Path(sys.argv[1])

def have_some() -> bool:
  path = workdir / "writers.json"
  known = json.loads(path.read_text()) if path.exists() else {}
  if known.keys() != {"wandb", "mlflow"} or not known["wandb"]["open"]:
    return False
  return int(MlflowClient().get_run(known["mlflow"]["id"]).data.tags["flamingo_jax.step"]) > 4

class Killed(Recorder):
  def batches_from(self, step):
    for number, batches in enumerate(super().batches_from(step), step + 1):
      if number == 9:
        while not have_some():
          time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
      yield batches

run(workdir, Killed(), writers=("wandb", "mlflow"), total_steps=12)
"""


def test_a_killed_run_goes_on_in_the_same_ones_each_step_once(places, tmp_path):
  workdir = tmp_path / "run"
  command = [sys.executable, "-c", KILLED, str(workdir)]
  environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == -signal.SIGKILL, done.stderr
  known = json.loads((workdir / "writers.json").read_text())
  run(workdir, Recorder(), writers=BOTH, total_steps=STEPS)
  record = without_timing(read_metrics(workdir))
  assert [line["step"] for line in record] == list(range(1, STEPS + 1))
  assert without_timing(one(in_wandb(workdir))) == without_timing(one(in_mlflow(places))) == record
  assert {*in_wandb(workdir), *in_mlflow(places)} == {known[name]["id"] for name in BOTH}


def test_a_run_that_was_stopped_goes_on_where_it_was(places, tmp_path):
  """Whatever it wrote is on disk when it has ended, so nothing is sent again."""
  workdir = tmp_path / "run"
  with pytest.raises(OSError, match="the disk is gone"):
    run(workdir, Recorder(fail_at=8), writers=BOTH, total_steps=STEPS)
  first = {name: lines for name, lines in in_wandb(workdir).items()}
  assert one(first) == one(in_mlflow(places)) == read_metrics(workdir)
  run(workdir, Recorder(), writers=BOTH, total_steps=STEPS)
  assert one(in_wandb(workdir))[: len(one(first))] == one(first)
  assert [line["step"] for line in one(in_wandb(workdir))] == list(range(1, STEPS + 1))
  assert len(list(workdir.glob("wandb/offline-run-*"))) == 2
  assert one(in_mlflow(places)) == one(in_wandb(workdir))


def test_after_a_rewind_new_ones_have_the_new_record_and_say_which_they_follow(places, tmp_path):
  workdir = tmp_path / "run"
  kept = CheckpointConfig(every=2, keep=10)
  run(workdir, Recorder(), writers=BOTH, total_steps=STEPS, checkpoint=kept)
  before = read_metrics(workdir)
  back = Resume(rewind=Rewind(to=4, first=6, last=9))
  run(workdir, Recorder(), back, writers=BOTH, total_steps=STEPS, checkpoint=kept)
  after = read_metrics(workdir)
  assert after[4:] != before[4:]
  for runs in (in_wandb(workdir), in_mlflow(places)):
    assert sorted(runs.values(), key=lambda lines: lines == after) == [before, after]
  known = json.loads((workdir / "writers.json").read_text())
  old = next(name for name, lines in in_mlflow(places).items() if lines == before)
  note = MlflowClient(places).get_run(known["mlflow"]["id"]).data.tags["mlflow.note.content"]
  assert note.startswith("Went back to step 4, and on without the batches 6 to 8.") and old in note
  assert known["wandb"]["follows"].startswith("Went back to step 4") and known["wandb"]["id"] not in note


def test_one_that_does_not_answer_is_said_once_and_gets_everything_later(places, tmp_path, monkeypatch, capfd):
  workdir = tmp_path / "run"
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
  run(workdir, Recorder(), writers=("mlflow",), total_steps=STEPS)
  assert capfd.readouterr().err.count("WARNING: MLflow is not written: ") == 1
  assert len(read_metrics(workdir)) == STEPS
  monkeypatch.setenv("MLFLOW_TRACKING_URI", places)
  run(workdir, Recorder(), writers=("mlflow",), total_steps=STEPS)  # nothing is left to train
  assert one(in_mlflow(places)) == read_metrics(workdir)


def test_one_that_never_answers_does_not_hold_the_run_up(tmp_path, monkeypatch, capfd):
  """A server that takes the connection and says nothing."""
  monkeypatch.setattr(writers, "CLOSE_SECONDS", 0.5)
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
  with socket.create_server(("localhost", 0)) as server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{server.getsockname()[1]}")
    run(tmp_path / "run", Recorder(), writers=("mlflow",), total_steps=STEPS)
    assert "MLflow is not written: it takes more than 0.5 s for the last lines." in capfd.readouterr().err
  for thread in threading.enumerate():  # its last attempt must not meet the environment of another test
    if thread.name == "mlflow":
      thread.join(30)
  assert len(read_metrics(tmp_path / "run")) == STEPS


def test_no_credential_of_a_config_is_sent(places, tmp_path):
  record = {"seed": 0, "streams": {"pages": {"source": f"https://me:{SECRET}@example.org/pages"}}}
  run(tmp_path / "run", Recorder(), record=record, writers=BOTH, total_steps=2)
  (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
  (sent,) = [record.run.config for record in wandb_records(path) if record.HasField("run")]
  assert "example.org/pages" in str(sent)
  assert not [
    file for file in (tmp_path / "run" / "wandb").rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()
  ]
  (name,) = in_mlflow(places)
  assert MlflowClient(places).get_run(name).data.params == {
    "seed": "0",
    "streams.pages.source": "https://[hidden]@example.org/pages",
  }


@pytest.mark.parametrize("name", BOTH)
def test_a_package_that_is_missing_is_named_before_anything_is_done(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf"not installed here\. `pip install 'flamingo_jax\[{name}\]'`"):
    run(tmp_path / "run", Recorder(), writers=BOTH)
  assert not (tmp_path / "run").exists()


def test_a_name_that_is_none_is_refused():
  assert unknown_writers(BOTH) == []
  assert unknown_writers(("wandb", "tensorbord")) == ["writers: 'tensorbord' is none; known: wandb, mlflow."]
