"""Starts the processes of a run on this machine, and starts them again until the run is done (docs/launch.md)."""

import contextlib
import dataclasses
import datetime
import enum
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from flamingo_jax.errors import DONE, HUNG, PEER_LOST, PREEMPTED, USER_FAULT
from flamingo_jax.training.metrics import complete_lines
from flamingo_jax.training.workdir import LOCK, locked

TICK = 0.05  # seconds between looks at the processes
SETTLE = 2.0  # seconds in which the others may see by themselves that one has ended, and say so
LONGEST_PAUSE = 60.0  # seconds before a start
TAIL = 64 * 1024  # bytes of a log, of which the last lines are shown
SHOWN = 20  # lines
INTERRUPTED = 130  # as shells have it
MEANINGS = {
  USER_FAULT: "there is something to mend",
  PREEMPTED: "stopped as asked, and saved",
  HUNG: "no step ended in time",
  PEER_LOST: "another process was lost",
}


class Next(enum.Enum):
  """What follows when all processes have ended."""

  DONE = "done"
  STOP = "stop"
  AT_ONCE = "start again at once"
  LATER = "start again after a pause"


@dataclasses.dataclass(frozen=True)
class Job:
  """What is run.

  Attributes:
    commands: makes one argument list a process; called for every start, which may need a free port of its own.
    environment: of all of them.
    logs: the folder of `process-0.log` and so on.
    metrics: the file that has one line more for every step.
  """

  commands: Callable[[], list[list[str]]]
  environment: dict[str, str]
  logs: pathlib.Path
  metrics: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Ended:
  """How the processes of one start ended: their exit codes, minus the signal where one killed; which came first."""

  codes: list[int]
  first: int


def decide(ended: Ended) -> Next:
  """The restart policy."""
  if all(code == DONE for code in ended.codes):
    return Next.DONE
  if USER_FAULT in ended.codes:
    return Next.STOP
  return Next.AT_ONCE if ended.codes[ended.first] == PREEMPTED else Next.LATER


def pause(failures: int) -> float:
  """Seconds before the next start, after so many failures without a new step between them: 1, 2, 4 and so on."""
  return min(2.0 ** (failures - 1), LONGEST_PAUSE)


def first_to_fail(ended: Sequence[tuple[int, int]]) -> int | None:
  """The process that the others followed; None where none has failed.

  Args:
    ended: processes and their exit codes, in the order in which they ended. One that says that another is lost, or
      that JAX aborted, was not the first, whatever we saw first.
  """
  failed = [(number, code) for number, code in ended if code != DONE]
  leading = [number for number, code in failed if code not in (PEER_LOST, -signal.SIGABRT)]
  return next(iter(leading + [number for number, _ in failed]), None)


def how(code: int) -> str:
  """How a process ended, in words."""
  if code < 0:
    return f"was killed by {signal.Signals(-code).name}"
  return f"ended with code {code}" + (f" ({MEANINGS[code]})" if code in MEANINGS else "")


def supervise(job: Job, restarts: int, grace: float) -> int:
  """Runs all processes of a job to their end, as often as it takes.

  SIGTERM, Ctrl-C and the end of the terminal are passed on to them, and waited for; a second one kills.

  Args:
    job: what is run.
    restarts: that may follow each other without a new step.
    grace: seconds between asking a process to end and killing it.

  Returns:
    DONE; USER_FAULT; PREEMPTED after SIGTERM, INTERRUPTED after Ctrl-C; 1 when there were too many restarts.

  Raises:
    UserError: another one is at it.
  """
  job.logs.mkdir(parents=True, exist_ok=True)
  left = "a launch of this run, or processes that one left behind, are still at work. Wait for them, or end them; "
  left += f"{job.logs / 'launch.log'} has their numbers."
  with locked(job.logs / LOCK, left) as lock, hearing() as asked, (job.logs / "launch.log").open("a") as own_log:

    def say(text: str) -> None:
      print(f"{now()} {text}", file=own_log, flush=True)  # first, since nobody may be left to read the other
      print(f"flamingo launch: {text}", flush=True)

    start, failures, reached = 0, 0, last_step(job.metrics)
    while True:
      start += 1
      group = Group(job, start, lock)
      try:
        say(f"start {start}: process " + ", ".join(f"{n} is {child.pid}" for n, child in enumerate(group.children)))
        ended = group.wait(grace, asked, say)
      finally:
        group.kill()  # if the disk of our own log was full, say: nothing goes on unwatched
      outcome, step = decide(ended), last_step(job.metrics)
      if outcome is Next.DONE:
        say(f"done, at step {step}.")
        return DONE
      if outcome is Next.STOP:
        say("not started again: what is said above is to be mended first.")
        return USER_FAULT
      if asked:
        say(f"stopped as asked, at step {step}. The same command goes on from the newest checkpoint.")
        return PREEMPTED if asked[0] == signal.SIGTERM else INTERRUPTED
      failures, reached = (1, step) if step > reached else (failures + 1, reached)
      if failures > restarts:
        say(f"not started again: {restarts} restarts without a step beyond {reached}. See {job.logs}.")
        return 1
      seconds = 0.0 if outcome is Next.AT_ONCE else pause(failures)
      say(f"at step {step}; restart {failures} of {restarts} without a new step, in {seconds:g} s.")
      until = time.monotonic() + seconds
      while time.monotonic() < until and not asked:
        time.sleep(TICK)
      if asked:
        say("stopped as asked before another start.")
        return PREEMPTED if asked[0] == signal.SIGTERM else INTERRUPTED


class Group:
  """The processes of one start. What they print goes to their logs; the first one's is also shown."""

  def __init__(self, job: Job, start: int, lock: int):
    commands = job.commands()
    self.logs = [job.logs / f"process-{number}.log" for number in range(len(commands))]
    self.began = time.monotonic()
    self.sizes, self.children = [], []
    try:
      for number, (command, path) in enumerate(zip(commands, self.logs, strict=True)):
        with path.open("ab") as log:
          log.write(f"=== {now()} start {start}, process {number} of {len(commands)}\n".encode())
          log.flush()
          self.sizes.append(log.tell())
          self.children.append(
            subprocess.Popen(
              command,
              stdin=subprocess.DEVNULL,
              stdout=log,
              stderr=subprocess.STDOUT,
              env=job.environment,
              process_group=0,  # a terminal's Ctrl-C comes by way of us
              pass_fds=[lock],  # held as long as any of them lives, should we be killed
            )
          )
    except BaseException:
      self.kill()  # those that were started before it, which nobody would watch
      raise
    self.shown = self.sizes[0]

  def wait(self, grace: float, asked: list[int], say: Callable[[str], None]) -> Ended:
    """Until all have ended. When one has failed, or when `asked`, the rest are asked to end, and killed after that."""
    ended: dict[int, int] = {}  # in the order in which they do
    first, ask_at, kill_at = None, math.inf, math.inf
    while len(ended) < len(self.children):
      time.sleep(TICK)
      self.show()
      ended |= {
        n: code for n, child in enumerate(self.children) if n not in ended and (code := child.poll()) is not None
      }
      moment = time.monotonic()
      if first_to_fail(list(ended.items())) is not None:
        ask_at = min(ask_at, moment + SETTLE)
      if asked:
        ask_at = min(ask_at, moment)
      if moment >= ask_at and kill_at == math.inf:
        first = self.tell(ended, say)
        self.signal(signal.SIGTERM)
        kill_at = moment + grace
      if moment >= kill_at or len(asked) > 1:
        self.signal(signal.SIGKILL)
    if first is None:
      first = self.tell(ended, say)
    return Ended([ended[number] for number in range(len(ended))], first or 0)

  def signal(self, number: int) -> None:
    for child in self.children:
      child.send_signal(number)  # to one that has ended, nothing

  def kill(self) -> None:
    """Ends those that are left, and waits until there are none."""
    self.signal(signal.SIGKILL)
    for child in self.children:
      child.wait()

  def tell(self, ended: dict[int, int], say: Callable[[str], None]) -> int | None:
    """Says which process failed first, if any, with its last lines, unless they are shown anyway."""
    number = first_to_fail(list(ended.items()))
    if number is None:
      return None
    if number > 0:
      text = read_from(self.logs[number], max(self.sizes[number], self.logs[number].stat().st_size - TAIL))
      lines = text.decode(errors="replace").splitlines()[-SHOWN:]
      sys.stdout.write("".join(f"[{number}] {line}\n" for line in lines))
    which = f"process {number}" if len(self.children) > 1 else "the process"
    say(f"{which} {how(ended[number])}, within {time.monotonic() - self.began:.1f} s of its start.")
    return number

  def show(self) -> None:
    new = read_from(self.logs[0], self.shown)
    self.shown += len(new)
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()


def read_from(path: pathlib.Path, offset: int) -> bytes:
  with path.open("rb") as file:
    file.seek(offset)
    return file.read()


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def last_step(metrics: pathlib.Path) -> int:
  """Of the last whole line of metrics.jsonl; 0 before there is one.

  Raises:
    UserError: that line is damaged.
  """
  if not metrics.exists():
    return 0
  with metrics.open("rb") as file:
    size, chunk = file.seek(0, os.SEEK_END), TAIL
    while True:
      file.seek(max(0, size - chunk))
      whole, end, _ = file.read().rpartition(b"\n")
      _, begin, last = whole.rpartition(b"\n")
      if begin or chunk >= size:
        break
      chunk *= 2
  if not end:
    return 0
  with contextlib.suppress(ValueError, TypeError, KeyError):
    if type(step := json.loads(last)["step"]) is int:
      return step
  return complete_lines(metrics)[-1][1]["step"]  # finds the number of the line, and says what is wrong with it


@contextlib.contextmanager
def hearing() -> Iterator[list[int]]:
  """The signals that ask to end, as they come. The end of the terminal asks as SIGTERM does, if not under nohup."""
  asked: list[int] = []
  terminal = [number for number in (1, 2) if os.isatty(number)]  # of stdout and stderr

  def hear(got: int, _) -> None:
    asked.append(got)

  def hang_up(*_) -> None:
    with open(os.devnull, "w") as nowhere:
      for number in terminal:  # which takes no more words
        os.dup2(nowhere.fileno(), number)
    if not asked:  # shell and system may both tell of it, and it is no second wish
      asked.append(signal.SIGTERM)

  handlers = {signal.SIGINT: hear, signal.SIGTERM: hear, signal.SIGHUP: hang_up}
  if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    del handlers[signal.SIGHUP]
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
