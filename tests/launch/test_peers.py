"""Processes of a job of which one is lost: real ones, which meet over localhost and sum over all devices."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from flamingo_jax.errors import DONE, PEER_LOST, USER_FAULT
from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.metrics import METRICS, read_metrics, untimed
from flamingo_jax.training.peers import Loss, Watch
from launch.local import launch_local, places
from launch.supervisor import last_step
from launch.train_command import Run

ROOT = pathlib.Path(__file__).parent.parent.parent
# `flamingo train`, which does nothing but wait for the others, again and again; says when it has begun to.
PROGRAM = """
import os, signal, sys, types
import numpy as np
from flamingo_jax.errors import UserError
from launch.cli import main

def steps(*_):
  from jax.experimental import multihost_utils
  end = sys.argv[1]
  for step in range(10**6):
    multihost_utils.process_allgather(np.ones(3))
    if step == 3:
      print("going", flush=True)
    if step == 100 and end == "fails":
      raise KeyError("a bug")
    if step == 100 and end == "is wrong":
      raise UserError("no such file: a.txt")
    if step == 100 and end == "stops":
      os.kill(os.getpid(), signal.SIGSTOP)
    if step == 200 and end == "ends":
      return

# The real ones take seconds to import.
sys.modules["launch.train"] = types.SimpleNamespace(train_config=steps, read_resume=lambda *_: None)
sys.modules["launch.replay"] = types.SimpleNamespace(replay=None)
sys.exit(main(sys.argv[2:]))
"""


def start(ends: list[str], timeout: float) -> list[subprocess.Popen]:
  """A process for each, which ends as told; "" goes on. All have made some steps."""
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, end, "train", "--config=none", "--workdir=none", *place],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for end, place in zip(ends, places(len(ends), timeout), strict=True)
  ]
  for process in processes:
    while (line := process.stdout.readline()) != "going\n":
      assert line, process.communicate(timeout=60)[1]
  return processes


def endings(processes: list[subprocess.Popen]) -> list[tuple[int, list[str]]]:
  """Exit codes, and what was said to the user."""
  said = [process.communicate(timeout=120)[1].splitlines() for process in processes]
  lines = [[line for line in each if line.startswith(("flamingo", "KeyError"))] for each in said]
  return list(zip([process.returncode for process in processes], lines, strict=True))


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (4, 2)])
def test_the_others_name_a_process_that_is_killed(count, victim):
  processes = start([""] * count, 100.0)
  processes[victim].kill()
  found = endings(processes)
  assert found.pop(victim)[0] == -signal.SIGKILL
  host = os.uname().nodename
  for code, lines in found:
    assert code == PEER_LOST
    assert len(lines) == 1 and lines[0].startswith(f"flamingo: process {victim} ({host}) has died; process ")


def test_a_process_that_is_not_heard_of_is_lost_after_the_timeout():
  processes = start(["", "stops"], 4.0)
  code, lines = endings(processes[:1])[0]
  processes[1].kill()
  endings(processes[1:])
  assert code == PEER_LOST and "has not been heard of for 4 s" in lines[0] and "process 1 " in lines[0]


@pytest.mark.parametrize(
  ("victim", "end", "code", "said"),
  [(1, "fails", 1, "KeyError: 'a bug'"), (0, "is wrong", USER_FAULT, "no such file: a.txt")],
)
def test_a_process_that_fails_says_why_and_the_others_who(victim, end, code, said):
  ends = ["", ""]
  ends[victim] = end
  found = endings(start(ends, 100.0))
  assert found[victim][0] == code
  assert [line for line in found[victim][1] if said in line]
  other, lines = found[1 - victim]
  assert other == PEER_LOST
  assert len(lines) == 1 and f"process {victim} (" in lines[0] and said in lines[0]


def test_nobody_is_lost_when_all_end():
  assert endings(start(["ends"] * 2, 4.0)) == [(0, [])] * 2


@pytest.fixture
def first():
  """The first process's part of a job of three, and how another one says hello."""
  door = socket.create_server(("localhost", 0))
  yield Watch(0, 3, 100.0, door, "word"), lambda: socket.create_connection(door.getsockname())
  door.close()


def hear(watch: Watch) -> None:
  for _ in range(5):
    watch.look(0.02)
    watch.judge()


@pytest.mark.parametrize(
  "said",
  [b"GET / HTTP/1.1\n\n", b"hello world 1 host\nfailed x\n", b"\xff\xfe\n", b"x" * 10_000, b"hello\n", b"lost 1 x\n"],
)
def test_strangers_are_sent_away(first, said):
  watch, connect = first
  with connect() as stranger:
    stranger.sendall(said)
    hear(watch)
    stranger.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
      assert stranger.recv(100) == b""
  assert watch.loss is None and watch.suspected is None


def test_who_died_comes_before_who_failed_of_it(first):
  watch, connect = first
  one, two = connect(), connect()
  one.sendall(b"hello word 1 alpha\n")
  two.sendall(b"hello word 2 beta\n")
  hear(watch)
  assert watch.loss is None
  one.sendall(b"failed ValueError: Connection closed by peer\n")
  hear(watch)
  assert watch.loss is None
  two.close()
  hear(watch)
  assert watch.loss == Loss(2, "(beta) has died")
  one.close()


STEPS = 60
# `flamingo train` of a run that learns one number (tests/flamingo_jax/number_runs.py), a row of each batch a process.
NUMBERS = """
import dataclasses, pathlib, sys, time, types
import jax
sys.path.insert(0, "tests/flamingo_jax")
jax.config.update("jax_disable_most_optimizations", True)
from number_runs import Recorder, run
from flamingo_jax.training.config import AS_BEFORE
from launch.cli import main

class Share(Recorder):
  def __init__(self):
    super().__init__()
    self.feed = dataclasses.replace(self.feed, rows={"numbers": jax.process_count()})

  def batches_from(self, step):
    for batches, counts in super().batches_from(step):
      time.sleep(0.05)
      own = {name: array[:1] for name, array in batches["numbers"].items()}
      yield {"numbers": own | {"target": own["target"] + jax.process_index()}}, counts

def train(config, overrides, workdir, resume):
  run(pathlib.Path(workdir), Share(), resume, total_steps=STEPS)

sys.modules["launch.train"] = types.SimpleNamespace(train_config=train, read_resume=lambda *_: AS_BEFORE)
sys.exit(main(sys.argv[1:]))
""".replace("STEPS", str(STEPS))


@pytest.mark.parametrize(("count", "victim"), [(2, 1), (4, 0)])
def test_a_run_that_loses_a_process_goes_on_exactly(count, victim, tmp_path, monkeypatch):
  monkeypatch.setattr("launch.local.FLAMINGO", [sys.executable, "-c", NUMBERS])
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.chdir(ROOT)

  def launch(name: str) -> int:
    return launch_local(Run("none", str(tmp_path / name), {}), processes=count, restarts=1)

  def kill_one() -> None:
    while last_step(tmp_path / "killed" / METRICS) < 10:
      time.sleep(0.01)
    numbers = re.findall(r"\d is (\d+)", (tmp_path / "killed.logs" / "launch.log").read_text())
    os.kill(int(numbers[victim]), signal.SIGKILL)

  killer = threading.Thread(target=kill_one, daemon=True)
  killer.start()
  assert [launch("killed"), launch("straight")] == [DONE, DONE]
  killer.join()
  log = (tmp_path / "killed.logs" / "launch.log").read_text()
  assert f"process {victim} was killed by SIGKILL" in log and "start 2: " in log
  killed, straight = ([untimed(line) for line in read_metrics(tmp_path / name)] for name in ("killed", "straight"))
  assert killed == straight and [line["step"] for line in killed] == list(range(1, STEPS + 1))
  found, expected = (load_trainable(tmp_path / name) for name in ("killed", "straight"))
  assert found[1] == expected[1] == STEPS
  assert found[0].keys() == expected[0].keys()
  for path, array in found[0].items():
    np.testing.assert_array_equal(array, expected[0][path])
