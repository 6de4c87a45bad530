"""What happens to a run does not change what it learns, and costs nothing that was saved."""

import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from number_runs import ROOT, Recorder, one_number, run

from flamingo_jax.errors import HUNG, PREEMPTED, Preempted, UserError
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.training import crash, goodput
from flamingo_jax.training.checkpoints import About, CheckpointConfig, load_trainable
from flamingo_jax.training.config import Resume
from flamingo_jax.training.guards import GuardConfig
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.metrics import untimed as without_timing
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.rewind import Rewind
from flamingo_jax.training.step import initial_state
from flamingo_jax.training.workdir import read_history

ALL = CheckpointConfig(every=2, keep=10)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of twelve steps to which nothing happens."""
  workdir = tmp_path_factory.mktemp("runs") / "straight"
  run(workdir, Recorder(), total_steps=12)
  return workdir


def untimed(workdir) -> list[dict]:
  return [without_timing(line) for line in read_metrics(workdir)]


def guess(workdir) -> float:
  return float(load_trainable(workdir)[0]["guess"])


def test_a_run_that_is_asked_to_stop_saves_says_so_and_goes_on_exactly(straight, tmp_path):
  workdir = tmp_path / "run"
  with pytest.raises(Preempted, match=r"after step \d+ of 12. It is saved"):
    run(workdir, Recorder(stop_at=6), total_steps=12)
  (stopped,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert stopped in (4, 5, 6)  # batches are read ahead of the step
  assert [line["step"] for line in read_metrics(workdir)] == list(range(1, stopped + 1))
  again = Recorder()
  run(workdir, again, total_steps=12)
  assert again.started_at == [stopped]
  assert untimed(workdir) == untimed(straight)
  assert guess(workdir) == guess(straight)


def test_an_update_that_is_not_finite_moves_nothing_and_is_counted(tmp_path):
  run(tmp_path / "run", Recorder(poison=(3, 4)), total_steps=5)
  lines = read_metrics(tmp_path / "run")
  assert [line.get("skipped_update/nonfinite", 0) for line in lines] == [0, 0, 1, 1, 0]
  assert math.isinf(lines[2]["loss"]) and math.isfinite(lines[4]["loss"])
  rewound = tmp_path / "without"
  run(rewound, Recorder(), total_steps=2)
  assert lines[4]["heldout/loss/numbers"] != lines[2]["heldout/loss/numbers"] == guess(rewound)


def test_the_optimizer_counts_the_updates_that_are_made(tmp_path):
  """Two updates with a hole between them end where two without one do: bias correction and rate included."""

  class Same(Recorder):
    def batches_from(self, step):
      for batches, counts in super().batches_from(step):
        batches["numbers"]["target"] = np.minimum(batches["numbers"]["target"], 1e9) * 0 + 5.0
        yield batches, counts

  run(tmp_path / "holes", Same(poison=(2, 3)), total_steps=4)
  run(tmp_path / "whole", Same(), total_steps=4)
  assert guess(tmp_path / "holes") == guess(tmp_path / "whole")  # minimum() has mended the poison

  class Holes(Same):
    def batches_from(self, step):
      for number, (batches, counts) in enumerate(super().batches_from(step), step + 1):
        if number in (2, 3):
          batches["numbers"]["target"] += np.inf
        yield batches, counts

  run(tmp_path / "skipping", Holes(), total_steps=4)
  run(tmp_path / "short", Same(), total_steps=2)
  assert guess(tmp_path / "skipping") == guess(tmp_path / "short")
  rates = [line["learning_rate"] for line in read_metrics(tmp_path / "skipping")]
  assert rates[3] == read_metrics(tmp_path / "short")[1]["learning_rate"]


def test_too_many_in_a_row_end_the_run_with_a_bundle_that_names_the_records(tmp_path):
  workdir = tmp_path / "run"
  with pytest.raises(UserError) as error:
    run(workdir, Recorder(poison=range(4, 9)), total_steps=12, guard=GuardConfig(skips_in_a_row=3))
  assert "3 updates in a row were left out, the last at step 6" in str(error.value)
  assert "numbers, row 1, is not finite by itself: shard:61" in str(error.value)
  bundle = workdir / "crashes" / "step-6"
  assert str(bundle) in str(error.value)
  facts = json.loads((bundle / "crash.json").read_text())
  assert facts["streams"]["numbers"]["rows"] == [1]
  assert [line["step"] for line in facts["metrics"]] == [1, 2, 3, 4, 5, 6]
  assert sorted(path.name for path in bundle.iterdir()) == [
    "batches.safetensors",
    "checkpoints",
    "config.json",
    "crash.json",
  ]
  trained, step, _ = load_trainable(bundle)
  assert step == 6
  without = tmp_path / "without"
  run(without, Recorder(), total_steps=3)
  assert float(trained["guess"]) == guess(without)


def test_a_bundle_that_a_kill_cut_short_is_written_anew(tmp_path, monkeypatch):
  """Killed before its rename, it has a whole checkpoint of the step, and is no bundle."""
  workdir = tmp_path / "run"
  changes = dict(total_steps=12, guard=GuardConfig(skips_in_a_row=3), checkpoint=CheckpointConfig(every=12))

  def killed(arrays, path):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(crash.safetensors.numpy, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
      run(workdir, Recorder(poison=range(4, 9)), **changes)
  assert [path.name for path in (workdir / "crashes").iterdir()] == [".step-6"]
  (workdir / "crashes" / ".step-6" / "left").touch()
  with pytest.raises(UserError, match="the last at step 6") as error:
    run(workdir, Recorder(poison=range(4, 9)), **changes)
  [bundle] = (workdir / "crashes").iterdir()
  assert bundle.name == "step-6" and str(bundle) in str(error.value)
  assert sorted(path.name for path in bundle.iterdir()) == [
    "batches.safetensors",
    "checkpoints",
    "config.json",
    "crash.json",
  ]
  assert load_trainable(bundle)[1] == 6


def test_a_bundle_made_after_going_back_can_be_read_anywhere(tmp_path):
  """A refused rewind writes nothing; one that is made leads on to a bundle, which has no rewinds.json beside it."""
  workdir = tmp_path / "run"
  run(workdir, Recorder(), total_steps=6, checkpoint=ALL)
  before = sorted(path.name for path in workdir.iterdir())
  with pytest.raises(UserError, match="no checkpoint of that step"):
    run(workdir, Recorder(), Resume(rewind=Rewind(to=3, first=6, last=7)), total_steps=6, checkpoint=ALL)
  assert sorted(path.name for path in workdir.iterdir()) == before
  back = Resume(rewind=Rewind(to=4, first=5, last=7))
  with pytest.raises(UserError, match=r"numbers, row 1, is not finite by itself: shard:81"):
    run(workdir, Recorder(poison=(7, 8)), back, total_steps=6, checkpoint=ALL, guard=GuardConfig(skips_in_a_row=2))
  objective, config = one_number()
  mesh = make_mesh(config.mesh)
  optimizer = make_optimizer(config.optimizer, learning_rate(config.optimizer, config.total_steps))
  with jax.set_mesh(mesh):
    like = initial_state(objective, optimizer, mesh, config.trainable, seed=1)
    about = About({"offset": "hash"})
    state, batches = crash.read_bundle(workdir / "crashes" / "step-6", mesh, like, about, print)
    faults = crash.find_faults(objective, state, {"offset": jax.numpy.float32(0.5)}, batches, {"numbers": 1.0}, mesh)
  assert faults["numbers"]["rows"] == [1]
  assert float(batches["numbers"]["target"][0, 0]) == 8


def test_going_back_leaves_batches_out_and_loses_nothing_that_was_written(straight, tmp_path):
  workdir = tmp_path / "run"
  run(workdir, Recorder(), total_steps=12, checkpoint=ALL)
  before = read_metrics(workdir)
  recorder, back = Recorder(), Resume(rewind=Rewind(to=4, first=6, last=9))
  run(workdir, recorder, back, total_steps=12, checkpoint=ALL)
  after = read_metrics(workdir)
  assert recorder.started_at == [4, 8]
  assert [line["step"] for line in after] == list(range(1, 13))
  assert after[:4] == before[:4]
  assert [line["batch"] for line in after[4:]] == [5, 9, 10, 11, 12, 13, 14, 15]
  assert after[4]["loss"] == before[4]["loss"] and after[5]["loss"] != before[5]["loss"]
  kept = [json.loads(line) for line in (workdir / "metrics-before-rewind-1.jsonl").read_text().splitlines()]
  assert kept == before
  aside = sorted(int(path.name) for path in (workdir / "checkpoints-rewound").iterdir())
  assert aside == [6, 8, 10, 12]
  idle = Recorder()
  run(workdir, idle, back, total_steps=12, checkpoint=ALL)  # the same command again
  assert idle.started_at == [] and read_metrics(workdir) == after


def test_a_rewind_cut_short_is_made_good_by_the_next_start(tmp_path):
  """Killed after the rewind was written down and before anything else."""
  workdir, other = tmp_path / "run", tmp_path / "other"
  for folder in (workdir, other):
    run(folder, Recorder(), total_steps=12, checkpoint=ALL)
  back = Rewind(to=4, first=6, last=9)
  run(other, Recorder(), Resume(rewind=back), total_steps=12, checkpoint=ALL)
  (workdir / "rewinds.json").write_text(json.dumps([dataclasses.asdict(back)]))
  run(workdir, Recorder(), total_steps=12, checkpoint=ALL)
  assert untimed(workdir) == untimed(other)
  assert guess(workdir) == guess(other)


def test_the_account_of_time_adds_up_over_starts(tmp_path):
  workdir = tmp_path / "run"
  with pytest.raises(OSError, match="the disk is gone"):
    run(workdir, Recorder(fail_at=8), total_steps=12)
  deadline = time.monotonic() + 30
  while not (workdir / "checkpoints" / "6").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
  written = read_metrics(workdir)
  run(workdir, Recorder(), total_steps=12)
  lines, history = read_metrics(workdir), read_history(workdir)
  starts = [event for event in history if event["event"] == "start"]
  assert [event["step"] for event in starts] == [0, 6]
  again = sum(line["seconds"] for line in written if line["step"] > 6)
  assert starts[1]["seconds"]["replayed"] == pytest.approx(again)
  account = goodput.spent(lines, history)
  assert account["useful"] + account["input_wait"] == pytest.approx(sum(line["seconds"] for line in lines))
  for cause in ("start_up", "restore", "compile", "evaluation", "save"):
    assert account[cause] > 0, cause
  (end,) = (event for event in history if event["event"] == "end")
  last = goodput.spent(lines, [event for event in history if event is not end])
  assert lines[-1]["goodput"] == pytest.approx(last["useful"] / sum(last.values()))


def start_process(workdir, recorder: str, changes: str = "") -> subprocess.CompletedProcess:
  """A run in a process of its own."""
  program = f"""
import sys, pathlib, jax
jax.config.update("jax_disable_most_optimizations", True)  # as the tests here
sys.path.insert(0, "tests/flamingo_jax")
from number_runs import Recorder, run
from flamingo_jax.training.guards import GuardConfig
run(pathlib.Path({str(workdir)!r}), {recorder}, total_steps=12{changes})
"""
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", program]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_run_that_hangs_leaves_its_stacks_and_ends(straight, tmp_path):
  done = start_process(tmp_path / "run", "Recorder(hang_at=6)", ", guard=GuardConfig(hang_seconds=1.0)")
  assert done.returncode == HUNG, done.stderr
  assert "No step has ended for 1 s" in done.stderr
  (stacks,) = (tmp_path / "run" / "hangs").iterdir()
  assert "batches_from" in stacks.read_text()  # where the reading thread stands
  run(tmp_path / "run", Recorder(), total_steps=12)
  assert untimed(tmp_path / "run") == untimed(straight)


TOGETHER = """
import pathlib, sys, time, jax
jax.config.update("jax_disable_most_optimizations", True)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, "tests/flamingo_jax")
from number_runs import Recorder, run
from flamingo_jax.errors import PREEMPTED, Preempted

class Half(Recorder):
  def batches_from(self, step):
    for batches, counts in super().batches_from(step):
      time.sleep(0.1)
      own = jax.process_index()
      yield {"numbers": {name: array[own : own + 1] for name, array in batches["numbers"].items()}}, counts

try:
  run(pathlib.Path(sys.argv[3]), Half(), total_steps=90)
except Preempted as stopped:
  print(stopped)
  sys.exit(PREEMPTED)
"""


def test_one_process_that_is_asked_to_stop_stops_all_after_the_same_step(tmp_path):
  """Two real processes; the run then goes on in one, as if there had always been one."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", TOGETHER, address, str(number), str(tmp_path / "run")],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
  while not (log.exists() and len(log.read_text().splitlines()) > 4) and time.monotonic() < deadline:
    time.sleep(0.05)
  processes[1].terminate()
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [PREEMPTED, PREEMPTED], outputs
  (step,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
  assert 5 <= step < 90
  assert all(f"after step {step} of 90" in output for output, _ in outputs)
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, step + 1))
  run(tmp_path / "run", Recorder(), total_steps=90)
  run(tmp_path / "alone", Recorder(), total_steps=90)
  losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("run", "alone")]
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of one mebibyte."""
  folder = tmp_path / "disk"
  folder.mkdir()
  made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
  if made.returncode:
    pytest.skip(f"no file system can be mounted here: {made.stderr}")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(straight, tmp_path, small_disk):
  """Filled after some steps; what was saved before is as it was."""
  workdir, filler = small_disk / "run", small_disk / "filler"

  class Filling(Recorder):
    def batches_from(self, step):
      for batches in super().batches_from(step):
        if int(batches[0]["numbers"]["target"][0, 0]) == 8:
          fill(filler)
        yield batches

  with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
    run(workdir, Filling(), total_steps=12)
  saved = sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
  assert saved
  filler.unlink()
  run(workdir, Recorder(), total_steps=12)
  assert untimed(workdir) == untimed(straight)
  assert guess(workdir) == guess(straight)


def fill(path) -> None:
  with path.open("wb", buffering=0) as file:
    for size in (2**16, 2**10, 1):
      try:
        while True:
          file.write(b"x" * size)
      except OSError:
        continue


def test_a_work_directory_that_may_not_be_written_is_told_before_any_step(tmp_path):
  """Made immutable as a mount: root, who runs the tests in containers, may write whatever the permissions say."""
  workdir = tmp_path / "run"
  run(workdir, Recorder(), total_steps=4)
  before = read_metrics(workdir)
  mounted = subprocess.run(["mount", "--bind", "-o", "ro", str(workdir), str(workdir)], capture_output=True, text=True)
  if mounted.returncode:
    pytest.skip(f"nothing can be mounted here: {mounted.stderr}")
  try:
    with pytest.raises(UserError, match=r"cannot be written: .*Read-only file system"):
      run(workdir, Recorder(), total_steps=12, record={"seed": 0})
  finally:
    subprocess.run(["umount", str(workdir)], check=True)
  assert read_metrics(workdir) == before


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_jumps_changes_nothing(straight, tmp_path, monkeypatch, years):
  """Orbax waits by that clock: a save under way then may be given up, which ends the run, and it goes on again."""
  true, jumped = time.time, []
  monkeypatch.setattr(time, "time", lambda: true() + len(jumped) * years * 365 * 24 * 3600)

  class Jumping(Recorder):
    def batches_from(self, step):
      for batches in super().batches_from(step):
        if int(batches[0]["numbers"]["target"][0, 0]) == 8:
          jumped.append(True)
        yield batches

  workdir = tmp_path / "run"
  try:
    run(workdir, Jumping(), total_steps=12)
  except UserError as error:
    assert "timed out" in str(error)
    run(workdir, Recorder(), total_steps=12)
  assert jumped
  assert untimed(workdir) == untimed(straight)
  assert all(line["seconds"] > 0 and 0 <= line["goodput"] <= 1 for line in read_metrics(workdir))


def test_too_little_memory_is_told_with_what_takes_less_and_costs_nothing_saved(straight, tmp_path):
  class Huge(Recorder):
    def evaluate(self, parameters, mesh, baseline):
      if len(self.evaluated) == 3:
        jax.numpy.zeros((1 << 46,), jax.numpy.uint8).sum().block_until_ready()
      return super().evaluate(parameters, mesh, baseline)

  with pytest.raises(UserError, match=r"too little memory: .*(?s:.)*flamingo plan"):
    run(tmp_path / "run", Huge(), total_steps=12)
  saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
  assert saved and 0 < max(saved) < 12
  again = Recorder()
  run(tmp_path / "run", again, total_steps=12)
  assert again.started_at == [max(saved)]
  assert untimed(tmp_path / "run") == untimed(straight)


def test_nothing_of_a_run_is_lost_when_its_folder_moves(straight, tmp_path):
  run(tmp_path / "here", Recorder(), total_steps=6)
  shutil.move(tmp_path / "here", tmp_path / "there")
  with pytest.raises(UserError, match="total_steps"):
    run(tmp_path / "there", Recorder(), record={"seed": 0, "total_steps": 12}, total_steps=12)
  run(tmp_path / "there", Recorder(), total_steps=12)
  assert guess(tmp_path / "there") == guess(straight)
