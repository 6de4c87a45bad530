"""The supervisor on small programs in the place of training, and `flamingo launch` on what a user may type."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from flamingo_jax.errors import DONE, HUNG, PEER_LOST, PREEMPTED, USER_FAULT, UserError
from flamingo_jax.training.workdir import locked
from launch.local import environment, log_folder, places
from launch.supervisor import (
  INTERRUPTED,
  Ended,
  Job,
  Next,
  decide,
  first_to_fail,
  how,
  last_step,
  pause,
  supervise,
)

ROOT = pathlib.Path(__file__).parent.parent.parent
# A process that ends as told: each start has its own list of endings, and the last one is that of all further starts.
# "7" is a code, "-9" a signal, "wait" goes on until SIGTERM and then ends with 75, "deaf" until SIGKILL; "step" first
# writes one line of metrics.
PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, number, *endings = sys.argv[1:]
folder = pathlib.Path(folder)
starts = folder / f"starts-{number}"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
print(f"process {number}, start {count + 1}")
words = endings[min(count, len(endings) - 1)].split()
if words[0] == "step":
  words.pop(0)
  with (folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps(dict(step=count + 1)) + chr(10))
if words[0] == "deaf":
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
if words[0] == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if words[0] in ("wait", "deaf"):
  (folder / f"waiting-{number}").touch()
  time.sleep(60)
code = int(words[0])
if code < 0:
  os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
  """Makes a job of processes with these endings."""
  monkeypatch.setattr("launch.supervisor.SETTLE", 0.2)
  monkeypatch.setattr("launch.supervisor.pause", lambda failures: 0.0)

  def make(*processes: list[str]) -> Job:
    commands = [
      [sys.executable, "-c", PROGRAM, str(tmp_path), str(number), *endings] for number, endings in enumerate(processes)
    ]
    return Job(lambda: commands, dict(os.environ), tmp_path / "logs", tmp_path / "metrics.jsonl")

  return make


def starts(folder: pathlib.Path, number: int = 0) -> int:
  return len((folder / f"starts-{number}").read_text())


def test_the_policy_by_exit_code():
  killed = -signal.SIGKILL
  for codes, first, expected in [
    ([DONE, DONE], 0, Next.DONE),
    ([USER_FAULT], 0, Next.STOP),
    ([killed, USER_FAULT], 0, Next.STOP),
    ([PREEMPTED, PREEMPTED], 0, Next.AT_ONCE),
    ([DONE, PREEMPTED], 1, Next.AT_ONCE),
    ([PREEMPTED, killed], 1, Next.LATER),
    ([HUNG], 0, Next.LATER),
    ([PEER_LOST, killed], 1, Next.LATER),
    ([1], 0, Next.LATER),
    ([DONE, killed], 1, Next.LATER),
  ]:
    assert decide(Ended(codes, first)) is expected, codes


def test_pauses_double_up_to_a_minute():
  assert [pause(failures) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
  assert pause(1000) == 60


def test_the_first_to_fail_is_not_one_that_followed():
  assert first_to_fail([(1, DONE)]) is None
  assert first_to_fail([(0, PEER_LOST), (3, -signal.SIGABRT), (2, -signal.SIGKILL), (1, 1)]) == 2
  assert first_to_fail([(1, 1), (0, -signal.SIGKILL)]) == 1
  assert first_to_fail([(1, DONE), (2, PEER_LOST), (0, PEER_LOST)]) == 2


def test_how_a_process_ended_is_said_in_words():
  assert how(-signal.SIGKILL) == "was killed by SIGKILL"
  assert how(PREEMPTED) == "ended with code 75 (stopped as asked, and saved)"
  assert how(3) == "ended with code 3"


def test_a_job_that_is_done_is_not_started_again(job, tmp_path):
  assert supervise(job(["0"], ["0"]), 5, 1.0) == DONE
  assert (starts(tmp_path), starts(tmp_path, 1)) == (1, 1)


def test_a_fault_of_the_user_stops_all_and_is_shown(job, tmp_path, capsys):
  assert supervise(job(["wait"], ["2"]), 5, 10.0) == USER_FAULT
  assert starts(tmp_path) == 1
  shown = capsys.readouterr().out
  assert "[1] process 1, start 1\n" in shown  # its own words
  assert "process 1 ended with code 2 (there is something to mend)" in shown


def test_whatever_else_ends_it_all_start_again(job, tmp_path, capsys):
  assert supervise(job(["75", "-9", "76", "1", "0"], ["77", "77", "77", "77", "0"]), 5, 1.0) == DONE
  assert (starts(tmp_path), starts(tmp_path, 1)) == (5, 5)
  shown = capsys.readouterr().out
  for said in ("code 75", "SIGKILL", "code 76", "code 1,"):
    assert said in shown
  assert "process 1 ended" not in shown  # it followed


def test_too_many_restarts_without_a_new_step_are_the_end(job, tmp_path):
  assert supervise(job(["1"]), 3, 1.0) == 1
  assert starts(tmp_path) == 1 + 3


def test_a_new_step_allows_as_many_restarts_again(job, tmp_path):
  assert supervise(job(["1", "step 1", "1", "step 1", "1"]), 2, 1.0) == 1
  assert starts(tmp_path) == 4 + 2  # steps 2 and 4 were new; then two more without


def test_one_that_does_not_hear_is_killed_after_the_grace(job, tmp_path):
  began = time.monotonic()
  assert supervise(job(["deaf", "0"], ["-9", "0"]), 1, 0.5) == DONE
  assert time.monotonic() - began >= 0.5
  assert starts(tmp_path) == 2


def test_logs_say_when_each_start_began(job, tmp_path, capfd):
  supervise(job(["1", "0"], ["1", "0"]), 1, 1.0)
  for number in range(2):
    lines = (tmp_path / "logs" / f"process-{number}.log").read_text().splitlines()
    assert [line for line in lines if not line.startswith("===")] == [f"process {number}, start {n}" for n in (1, 2)]
    begun = [line for line in lines if line.startswith("===")]
    assert [line.partition(" start ")[2] for line in begun] == [f"{n}, process {number} of 2" for n in (1, 2)]
    assert all(line.startswith(f"=== {time.gmtime().tm_year}-") for line in begun)
  assert capfd.readouterr().out.count("process 0, start") == 2  # shown as well
  assert "done" in (tmp_path / "logs" / "launch.log").read_text()


SUPERVISOR = """
import os, pathlib, sys
from launch.supervisor import Job, supervise
folder, program = pathlib.Path(sys.argv[1]), sys.argv[2]
commands = [[sys.executable, "-c", program, str(folder), str(n), ending] for n, ending in enumerate(sys.argv[3:])]
sys.exit(supervise(Job(lambda: commands, dict(os.environ), folder / "logs", folder / "metrics.jsonl"), 5, 60.0))
"""


# What a shell does before it runs a command of its terminal, and what nohup does; the tests may be under it themselves.
HEARD = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
AT_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"


def start_waiting(folder: pathlib.Path, *endings: str, before: str = "", **options) -> subprocess.Popen:
  """A supervisor, once all of its processes wait."""
  command = [sys.executable, "-c", HEARD + before + SUPERVISOR, str(folder), PROGRAM, *endings]
  process = subprocess.Popen(command, cwd=ROOT, text=True, **dict(stdout=subprocess.PIPE) | options)
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline and len(list(folder.glob("waiting-*"))) < len(endings):
    time.sleep(0.02)
  return process


def children(folder: pathlib.Path) -> list[int]:
  line = (folder / "logs" / "launch.log").read_text().splitlines()[0]
  return [int(part.split(" is ")[1]) for part in line.partition("process ")[2].split(", ")]


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, PREEMPTED), (signal.SIGHUP, PREEMPTED), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_is_passed_on_and_waited_for(tmp_path, number, code):
  supervisor = start_waiting(tmp_path, "wait", "wait")
  supervisor.send_signal(number)
  said = supervisor.communicate(timeout=60)[0]
  assert supervisor.returncode == code
  assert "stopped as asked" in said
  assert not [pid for pid in children(tmp_path) if pathlib.Path(f"/proc/{pid}").exists()]


def test_a_second_signal_kills(tmp_path):
  supervisor = start_waiting(tmp_path, "deaf")
  supervisor.send_signal(signal.SIGINT)
  time.sleep(0.3)
  assert supervisor.poll() is None
  supervisor.send_signal(signal.SIGINT)
  assert supervisor.wait(timeout=50) == INTERRUPTED


def test_a_terminal_that_is_closed_asks_to_end_and_takes_no_more_words(tmp_path):
  ours, theirs = pty.openpty()
  at_terminal = dict(stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
  supervisor = start_waiting(tmp_path, "wait", before=AT_TERMINAL, **at_terminal)
  os.close(theirs)
  os.close(ours)
  assert supervisor.wait(timeout=50) == PREEMPTED
  log = (tmp_path / "logs" / "launch.log").read_text()
  assert "ended with code 75" in log and "SIGKILL" not in log  # it could save


def test_a_terminal_that_says_twice_that_it_is_closed_kills_nothing(tmp_path):
  supervisor = start_waiting(tmp_path, "deaf")
  for number, left in ((signal.SIGHUP, True), (signal.SIGHUP, True), (signal.SIGTERM, False)):
    supervisor.send_signal(number)
    time.sleep(0.3)
    assert not left or supervisor.poll() is None
  assert supervisor.wait(timeout=50) == PREEMPTED


def test_nohup_outlives_the_terminal(tmp_path):
  supervisor = start_waiting(tmp_path, "wait", before=NOHUP)
  supervisor.send_signal(signal.SIGHUP)
  time.sleep(0.3)
  assert supervisor.poll() is None and all(pathlib.Path(f"/proc/{pid}").exists() for pid in children(tmp_path))
  supervisor.send_signal(signal.SIGTERM)
  assert supervisor.wait(timeout=50) == PREEMPTED


def test_processes_that_outlive_their_supervisor_keep_others_out(tmp_path):
  supervisor = start_waiting(tmp_path, "wait")
  supervisor.kill()
  supervisor.wait()
  [left] = children(tmp_path)
  with pytest.raises(UserError, match="lock: it is held"), locked(tmp_path / "logs" / "lock", "it is held"):
    pass
  os.kill(left, signal.SIGKILL)
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    try:
      with locked(tmp_path / "logs" / "lock", "it is held"):
        return
    except UserError:
      time.sleep(0.05)
  pytest.fail("the lock is held for good")


def test_words_that_nobody_reads_leave_no_process_behind(tmp_path):
  """As in `flamingo launch ... | true`: the launcher can say nothing, and ends its processes before it ends."""
  reading, writing = os.pipe()
  os.close(reading)
  supervisor = start_waiting(tmp_path, "wait", "wait", stdout=writing, stderr=subprocess.PIPE)
  os.close(writing)
  assert "BrokenPipeError" in supervisor.communicate(timeout=60)[1]
  assert "start 1: process 0 is" in (tmp_path / "logs" / "launch.log").read_text()
  assert not [pid for pid in children(tmp_path) if pathlib.Path(f"/proc/{pid}").exists()]
  with locked(tmp_path / "logs" / "lock", "it is held"):
    pass


def test_a_log_that_cannot_be_opened_leaves_no_process_behind(job, tmp_path):
  (tmp_path / "logs" / "process-1.log").mkdir(parents=True)
  with pytest.raises(IsADirectoryError, match="process-1"):
    supervise(job(["wait"], ["wait"]), 5, 1.0)
  with locked(tmp_path / "logs" / "lock", "it is held"):
    pass


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert last_step(path) == 0
  path.write_text("")
  assert last_step(path) == 0
  lines = [json.dumps(dict(step=step, filler="x" * 50_000)) + "\n" for step in range(1, 5)]
  path.write_text("".join(lines) + '{"step": 5, "fil')
  assert last_step(path) == 4
  path.write_text(lines[0])
  assert last_step(path) == 1
  path.write_text('{"step": 1')
  assert last_step(path) == 0


@pytest.mark.parametrize("damage", ['{"step": 2', "[2]", '{"loss": 2.0}', '{"step": "2"}', "\x00\x00", ""])
def test_a_damaged_last_line_is_named(tmp_path, damage):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1}}\n{damage}\n')
  with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: is not a step of a run"):
    last_step(path)


HOSTILE = [
  "a b",
  "it's",
  '"',
  "; touch pwned",
  "$(touch pwned)",
  "`touch pwned`",
  "two\nlines",
  "--",
  "*",
  "\\",
  "é=1",
  " ",
]
ECHO = """
import json, os, pathlib, sys
pathlib.Path(os.environ["ECHO_TO"]).write_text(json.dumps(sys.argv[1:]))
"""


def test_names_and_values_arrive_as_they_are(tmp_path, monkeypatch):
  """Through the command itself, with a Python in its place that writes down its arguments."""
  python = tmp_path / "python"
  python.write_text(f"#!{sys.executable}\n{ECHO}")
  python.chmod(0o755)
  monkeypatch.setenv("ECHO_TO", str(tmp_path / "echo.json"))
  fields = [f"--config.streams.pages.source={value}" for value in HOSTILE[:-1]]
  program = "import sys; from launch import cli; sys.executable = sys.argv.pop(1); sys.exit(cli.main(sys.argv[1:]))"
  for name, field in zip(HOSTILE, [*fields, "--config.seed=1"], strict=True):
    workdir, config = str(tmp_path / "runs" / name), f"configs/{name}.py"
    arguments = [
      "launch",
      "--on=local",
      f"--config={config}",
      f"--workdir={workdir}",
      field,
      f"--allow-changed=a{name}",
    ]
    done = subprocess.run(
      [sys.executable, "-c", program, str(python), *arguments], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == DONE
    given = json.loads((tmp_path / "echo.json").read_text())
    assert given == ["-m", "launch.cli", "train", *arguments[2:]]
    assert (log_folder(workdir) / "process-0.log").exists()
  assert not list(tmp_path.rglob("pwned"))


def test_the_processes_of_a_job_are_told_where_they_meet():
  first, second = places(2, 7.0)
  assert first[:-1] == second[:-1] and first[0].startswith("--coordinator=localhost:")
  assert first[1:] == ["--processes=2", "--peer-timeout=7.0", "--process=0"]
  assert second[-1] == "--process=1"


def test_devices_are_added_to_what_is_set(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
  assert environment(None)["XLA_FLAGS"] == "--xla_a=1"
  assert environment(4)["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=4"
  assert environment(4)["JAX_PLATFORMS"] == "cpu"
