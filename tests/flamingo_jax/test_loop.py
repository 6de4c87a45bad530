import dataclasses
import os
import pickle
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from number_runs import ROOT, Recorder, one_number, run

from flamingo_jax.errors import Preempted, UserError
from flamingo_jax.models.flamingo import initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.training import loop
from flamingo_jax.training.checkpoints import CheckpointConfig, load_trainable, saved_steps
from flamingo_jax.training.config import Frozen, Resume, TrainingConfig
from flamingo_jax.training.loop import train
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.optimizer import OptimizerConfig
from flamingo_jax.training.placing import check_parameters
from flamingo_jax.training.rewind import Rewind
from flamingo_jax.training.step import is_trainable
from flamingo_jax.training.workdir import LOCK, locked


def test_frozen_weights_that_do_not_fit_are_named_at_once():
  expected = {path: types.SimpleNamespace(shape=(2, 3)) for path in ("right", "missing", "turned")}
  check_parameters(expected, {path: np.zeros((2, 3)) for path in expected})
  with pytest.raises(UserError) as error:
    check_parameters(expected, {"right": np.zeros((2, 3)), "turned": np.zeros((3, 2)), "left_over": np.zeros(4)})
  assert str(error.value).splitlines()[1:] == [
    "  missing (2, 3): missing",
    "  left_over (4,): not in the model",
    "  turned: the model has (2, 3), the weights (3, 2)",
  ]


def test_a_run_is_evaluated_before_the_first_step_at_each_interval_and_after_the_last(tmp_path):
  recorder = Recorder()
  state = run(tmp_path, recorder)
  lines = read_metrics(tmp_path)
  assert [line["step"] for line in lines] == list(range(1, 8))
  assert [line["step"] for line in lines if "heldout/loss/numbers" in line] == [3, 6, 7]
  assert [line["step"] for line in lines if "baseline/heldout/loss/numbers" in line] == [1]
  assert [baseline for _, baseline in recorder.evaluated] == [True, False, False, False]
  assert recorder.evaluated[0][0] == 1.0
  assert recorder.evaluated[-1][0] == lines[-1]["heldout/loss/numbers"] == float(state.trainable["guess"])


def test_a_run_that_is_beyond_its_last_step_is_told_so_and_keeps_its_config(tmp_path):
  run(tmp_path, Recorder())
  before = (tmp_path / "config.json").read_text()
  fewer = dict(total_steps=5, record={"seed": 0, "total_steps": 5})
  with pytest.raises(UserError, match="has made 7 steps; total_steps is 5"):
    run(tmp_path, Recorder(), Resume(("total_steps",)), **fewer)
  assert (tmp_path / "config.json").read_text() == before


def test_a_stop_between_evaluations_is_saved_where_the_best_are_kept(tmp_path):
  best = CheckpointConfig(every=3, keep=1, best="heldout/loss/numbers")
  with pytest.raises(Preempted):
    run(tmp_path, Recorder(stop_at=5), checkpoint=best)
  stopped = read_metrics(tmp_path)[-1]["step"]
  assert 3 < stopped < 6 and stopped in saved_steps(tmp_path)
  run(tmp_path, Recorder(), checkpoint=best)
  assert saved_steps(tmp_path) == [3, 7]  # the guess only grows


def test_the_log_counts_tokens_without_padding_and_passes_on_what_the_feed_counts(tmp_path):
  run(tmp_path, Recorder())
  for line in read_metrics(tmp_path):
    assert line["tokens"] == 3
    assert line["tokens_per_second"] == pytest.approx(3 / line["seconds"])
    assert 0 <= line["input_wait"] <= 1
    assert line.get("skipped/numbers/truncated", 0) == (line["step"] if line["step"] % 2 else 0)


def test_a_step_that_waits_for_its_batch_says_so(tmp_path):
  run(tmp_path, Recorder(slow_at=5))
  waits = [line["input_wait"] * line["seconds"] for line in read_metrics(tmp_path)]
  assert np.argmax(waits) in (3, 4) and max(waits) > 0.5  # it is asked for while the step before it is made


def test_a_run_that_stopped_asks_for_the_batches_after_its_checkpoint(tmp_path):
  straight, stopped, again, finished = Recorder(), Recorder(fail_at=6), Recorder(), Recorder()
  expected = run(tmp_path / "straight", straight)
  with pytest.raises(OSError, match="the disk is gone"):
    run(tmp_path / "run", stopped)
  assert os.listdir(tmp_path / "run" / "checkpoints") == ["4"]  # saved to the end, and the one before it removed
  state = run(tmp_path / "run", again)
  assert (stopped.started_at, again.started_at) == ([0], [4])
  assert [baseline for _, baseline in again.evaluated] == [False, False]
  assert [line["loss"] for line in read_metrics(tmp_path / "run")] == [
    line["loss"] for line in read_metrics(tmp_path / "straight")
  ]
  assert float(state.trainable["guess"]) == float(expected.trainable["guess"])
  run(tmp_path / "run", finished)
  assert finished.evaluated == []
  assert len(read_metrics(tmp_path / "run")) == 7


def test_a_run_keeps_others_out_of_its_work_directory_and_is_not_touched_by_them(tmp_path, monkeypatch, capfd):
  run(tmp_path / "run", Recorder())
  monkeypatch.setattr(loop, "LOCK_PATIENCE", 0.1)
  before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
  with locked(tmp_path / "run" / LOCK, "held"), pytest.raises(UserError, match="run/lock: another process trains here"):
    run(tmp_path / "run", Recorder())
  assert "run/lock is held; waiting for up to 0.1 s" in capfd.readouterr().err
  assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
time.sleep(1)
"""


def test_a_run_waits_for_a_lock_that_is_about_to_be_free(tmp_path, capfd):
  run(tmp_path / "run", Recorder())
  with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run" / LOCK], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    run(tmp_path / "run", Recorder())
  assert "run/lock is held; waiting for up to 120 s" in capfd.readouterr().err


def test_going_back_in_a_run_that_is_not_there_leaves_nothing_behind(tmp_path):
  with pytest.raises(UserError, match=r"no checkpoint of that step\. It has: none"):
    run(tmp_path / "run", Recorder(), resume=Resume(rewind=Rewind(4, 6, 7)))
  assert not (tmp_path / "run").exists()


def test_nothing_is_claimed_when_the_frozen_weights_do_not_fit(tmp_path):
  objective, config = one_number()
  recorder, frozen = Recorder(), Frozen({"offset": np.zeros(3, np.float32)})
  with pytest.raises(UserError, match=r"offset: the model has \(\), the weights \(3,\)"):
    train(objective, config, recorder.feed, frozen, recorder.evaluate, tmp_path / "run", {"seed": 0})
  assert not (tmp_path / "run").exists()
  assert recorder.started_at == []


WITHOUT_TENSORFLOW = """
import pathlib, pickle, sys
sys.modules["tensorflow"] = None  # from here on, importing it fails
import jax
jax.config.update("jax_disable_most_optimizations", True)
from flamingo_jax.training.config import Feed, Frozen
from flamingo_jax.training.loop import train
from flamingo_jax.training.objectives import flamingo_objective
model, config, frozen, batches, workdir = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
feed = Feed(lambda step: ((batches, {}) for _ in range(step, 100)), {"pages": 0.5}, {"pages": 2})
train(flamingo_objective(model), config, feed, Frozen(frozen, {"all": "hash"}), lambda *_: {}, workdir, {"seed": 0})
assert not any(name.split(".")[0] in ("data_pipelines", "launch", "configs") for name in sys.modules)
"""


def test_flamingo_trains_on_arrays_without_tensorflow(tiny, random_parameters, make_batch, tmp_path):
  language, cross_attention = dataclasses.replace(tiny.language, layers=1), GatedCrossAttentionConfig(heads=2)
  model = dataclasses.replace(tiny, language=language, cross_attention=cross_attention)
  parameters = random_parameters(lambda key: initialize(model, key))
  config = TrainingConfig(
    total_steps=8,
    frozen_dtype="float32",
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
  )
  frozen = {path: array for path, array in parameters.items() if not is_trainable(path, config.trainable)}
  batches = {"pages": make_batch(seed=1)}
  given = tmp_path / "given.pickle"
  given.write_bytes(pickle.dumps((model, config, frozen, batches, tmp_path / "run")))
  command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(given)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  lines = read_metrics(tmp_path / "run")
  assert len(lines) == 8
  assert lines[-1]["loss/pages"] < lines[0]["loss/pages"]
  assert lines[0]["loss"] == pytest.approx(0.5 * lines[0]["loss/pages"])
  trained, step, hashes = load_trainable(tmp_path / "run")
  assert (step, hashes) == (8, {"all": "hash"})
  assert trained.keys() | frozen.keys() == parameters.keys()


def test_memory_is_handed_back_once_for_each_program(monkeypatch):
  asked = []
  monkeypatch.setattr(loop, "give_back_freed", lambda: asked.append(1))
  programs = loop.Programs(jax.jit(lambda state, held, batches: state + batches["pages"]), {})
  for _ in range(2):
    batches = {"pages": jnp.ones(3)}
    assert programs.of(jnp.zeros(3), batches)(jnp.zeros(3), {}, batches).sum() == 3
  assert asked == [1]
