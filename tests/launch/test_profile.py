"""`flamingo profile` on runs that go on, in processes of their own."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

import pytest
from jax.profiler import ProfileData

from flamingo_jax.errors import PREEMPTED
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.profiling import REQUEST, Profiler
from flamingo_jax.training.workdir import note
from launch import cli
from launch.profiling import own_seconds, traces

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = """
import pathlib, sys, time, jax
jax.config.update("jax_disable_most_optimizations", True)
if len(sys.argv) > 2:
  jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
sys.path.insert(0, "tests/flamingo_jax")
from number_runs import Recorder, run
from flamingo_jax.errors import PREEMPTED, Preempted

class Slow(Recorder):
  def batches_from(self, step):
    for batches, counts in super().batches_from(step):
      time.sleep(0.1)
      own = slice(None) if jax.process_count() == 1 else slice(jax.process_index(), jax.process_index() + 1)
      yield {"numbers": {name: array[own] for name, array in batches["numbers"].items()}}, counts

workdir = pathlib.Path(sys.argv[1])
try:
  run(workdir, Slow(), total_steps=90, evaluate_every=100)
except Preempted:
  sys.exit(PREEMPTED)
"""


def start(workdir: pathlib.Path, *where: str, **environment) -> subprocess.Popen:
  command = [sys.executable, "-c", RUN, str(workdir), *where]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
  return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_steps(workdir: pathlib.Path) -> None:
  """The config that `flamingo train` has written by then is not there: nothing but the loop runs here."""
  deadline = time.monotonic() + 120
  while not (workdir / "metrics.jsonl").exists() or not read_metrics(workdir):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def traced_steps(path: pathlib.Path) -> list[int]:
  events = [event for plane in ProfileData.from_file(str(path)).planes for line in plane.lines for event in line.events]
  return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")


def test_all_processes_of_a_job_trace_the_same_steps(tmp_path, capsys):
  workdir = tmp_path / "run"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [start(workdir, address, str(number)) for number in range(2)]
  try:
    wait_for_steps(workdir)
    assert cli.main(["profile", str(workdir), "--steps=3", "--patience=60"]) == 0
    said = capsys.readouterr().out
    first, last, folder = re.search(r"Steps (\d+) to (\d+) are traced in (.*)\.", said).groups()
    assert int(last) == int(first) + 2
    deadline = time.monotonic() + 60
    while len(traces(pathlib.Path(folder))) < 2 and time.monotonic() < deadline:
      time.sleep(0.05)
  finally:
    processes[0].terminate()
    ends = [process.communicate(timeout=60) for process in processes]
  assert [process.returncode for process in processes] == [PREEMPTED] * 2, ends
  assert [traced_steps(path) for path in traces(pathlib.Path(folder))] == [[*range(int(first), int(last) + 1)]] * 2
  assert "The costliest operations" in said and "100.0%" not in said.split("share")[0]
  assert not (workdir / "profile.request").exists()


def test_a_trace_ends_with_its_run_which_loses_nothing(tmp_path, capsys):
  workdir = tmp_path / "run"
  process = start(workdir)
  wait_for_steps(workdir)
  assert cli.main(["profile", str(workdir), "--steps=1000", "--patience=60"]) == 0
  process.communicate(timeout=60)
  assert process.returncode == 0
  assert re.search(r"Steps \d+ to 90 are traced", capsys.readouterr().out)
  assert [line["step"] for line in read_metrics(workdir)] == list(range(1, 91))
  assert cli.main(["profile", str(workdir)]) == 2
  assert "the run ended after step 90" in capsys.readouterr().err


def test_a_run_that_cannot_be_traced_says_why_and_goes_on(tmp_path, capsys):
  """A file is where the folder of the traces should be."""
  workdir = tmp_path / "run"
  process = start(workdir)
  wait_for_steps(workdir)
  (workdir / "profiles").write_text("in the way")
  assert cli.main(["profile", str(workdir), "--steps=2", "--patience=60"]) == 2
  assert "the run goes on, but cannot be traced" in capsys.readouterr().err
  step = read_metrics(workdir)[-1]["step"]
  process.terminate()
  process.communicate(timeout=60)
  assert process.returncode == PREEMPTED and read_metrics(workdir)[-1]["step"] >= step


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"id": "a", "steps": "many"}', '{"id": "a", "steps": 0}', '{"id": "a", "steps": 1.5}']
)
def test_what_is_no_request_asks_for_nothing(tmp_path, text):
  (tmp_path / REQUEST).write_text(text)
  assert Profiler(tmp_path, leads=True).asked() == 0
  (tmp_path / REQUEST).write_text('{"id": "a", "steps": 3}')
  assert [Profiler(tmp_path, leads=leads).asked() for leads in (True, False)] == [3, 0]


def test_a_run_that_is_dead_is_given_up_and_the_request_withdrawn(tmp_path, capsys):
  (tmp_path / "config.json").write_text("{}")
  note(tmp_path, "start", step=0)
  assert cli.main(["profile", str(tmp_path), "--patience=0.3"]) == 2
  assert "no step has ended for 0.3 s" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "history.jsonl"]


def test_a_second_one_does_not_take_the_place_of_the_first(tmp_path, capsys):
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "profile.request").write_text(json.dumps({"id": "first", "steps": 3}))
  assert cli.main(["profile", str(tmp_path), "--patience=0.3"]) == 2
  assert "another trace is being asked for" in capsys.readouterr().err
  assert json.loads((tmp_path / "profile.request").read_text())["id"] == "first"


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
  assert cli.main(["profile", str(tmp_path)]) == 2
  assert "config.json: missing" in capsys.readouterr().err


@pytest.mark.parametrize("order", [1, -1])
def test_an_operation_is_not_charged_for_what_runs_inside_it(order):
  """A loop of 100 with two of 20 in it, the first of which has one of 5; then one of 30. Others are no operations."""
  runs = [("while", 0, 100), ("dot", 10, 20), ("exp", 12, 5), ("dot", 60, 20), ("dot", 100, 30)]
  events = [
    types.SimpleNamespace(name="thunk", start_ns=start, duration_ns=length, stats=[("hlo_op", name)])
    for name, start, length in runs
  ] + [types.SimpleNamespace(name="Await", start_ns=0, duration_ns=500, stats=[])]
  line = types.SimpleNamespace(name="a thread", events=events[::order])
  found = sorted((name, round(seconds * 1e9)) for name, seconds in own_seconds(line))
  assert found == [("dot", 15), ("dot", 20), ("dot", 30), ("exp", 5), ("while", 60)]
