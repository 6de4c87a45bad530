"""`flamingo profile`: asks a run that goes on for a trace of its next steps, waits, and says what took longest."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import time
import uuid
from collections.abc import Iterable

from jax.profiler import ProfileData
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flamingo_jax.errors import UserError
from flamingo_jax.training.metrics import METRICS
from flamingo_jax.training.profiling import ANSWER, FOLDER, REQUEST, Request, replace_file, trace_folder
from flamingo_jax.training.workdir import CONFIG, read_history

TICK = 0.2  # seconds between looks
SHOWN = 12  # operations


@dataclasses.dataclass(frozen=True)
class Operation:
  """What an operation of the compiled step took on the devices, without the operations inside it.

  Attributes:
    name: as XLA has it.
    count: how often it ran.
    seconds: in all.
    share: of what all operations took.
  """

  name: str
  count: int
  seconds: float
  share: float


def profile_run(workdir: str, steps: int, patience: float) -> None:
  """Prints where the trace lies, how to look at it, and its costliest operations.

  Args:
    workdir: of a run that goes on.
    steps: to trace.
    patience: seconds after which a run that shows no sign of life is given up.

  Raises:
    UserError: no run is alive there, it refuses, or somebody else is asking.
  """
  folder = pathlib.Path(workdir)
  check_alive(folder)
  answer = ask(folder, steps, patience)
  if answer["state"] == "refused":
    raise UserError(f"{folder}: the run goes on, but cannot be traced: {answer['why']}")
  trace = trace_folder(folder, answer["first"])
  print(f"Steps {answer['first']} to {answer['last']} are traced in {trace}.")
  print(f"To look at it: pip install xprof, then xprof --logdir={folder / FOLDER}.")
  found = operations(traces(trace))
  if found:
    Console(highlight=False).print(table(found, answer["last"] - answer["first"] + 1))


def traces(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of all machines, and of all processes where several share one."""
  folders = [folder, *folder.parent.glob(f"{folder.name}-of-*")]
  return sorted(path for each in folders for path in each.glob("*.xplane.pb"))


def check_alive(folder: pathlib.Path) -> None:
  """Raises UserError where there is no run, or its last start has ended."""
  if not (folder / CONFIG).is_file():
    raise UserError(f"{folder / CONFIG}: missing. Give the work directory of a run that goes on.")
  history = read_history(folder)
  if history and history[-1]["event"] == "end":
    raise UserError(f"{folder}: the run ended after step {history[-1]['step']}; only one that goes on can be traced.")


def ask(folder: pathlib.Path, steps: int, patience: float) -> dict:
  """Leaves a request and returns the answer.

  Raises:
    UserError: there is a request already, the run ends, or shows no sign of life.
  """
  request, path = Request(uuid.uuid4().hex, steps), folder / REQUEST
  if path.exists():
    raise UserError(f"{path}: there, so another trace is being asked for. Wait for it; if nobody is, delete the file.")
  replace_file(path, dataclasses.asdict(request))
  try:
    return wait(folder, request, patience)
  finally:
    with contextlib.suppress(OSError):
      path.unlink()


def wait(folder: pathlib.Path, request: Request, patience: float) -> dict:
  seen, since = None, time.monotonic()
  while True:
    answer = read_answer(folder, request)
    if answer.get("state") in ("done", "refused"):
      return answer
    check_alive(folder)
    record = folder / METRICS
    signs = (answer, record.stat().st_mtime_ns if record.exists() else 0)
    if signs != seen:
      seen, since = signs, time.monotonic()
    if time.monotonic() - since > patience:
      raise UserError(
        f"{folder}: no step has ended for {patience:g} s, so no run seems to be alive there. The request is withdrawn; "
        "--patience=SECONDS waits for longer."
      )
    time.sleep(TICK)


def read_answer(folder: pathlib.Path, request: Request) -> dict:
  """What the run says to this request; empty: nothing yet."""
  path = folder / ANSWER
  answer = json.loads(path.read_text()) if path.exists() else {}
  return answer if answer.get("id") == request.id else {}


def operations(paths: Iterable[pathlib.Path]) -> list[Operation]:
  """Those of all hosts and devices of a trace, the costliest first."""
  seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
  counts: collections.Counter = collections.Counter()
  for path in paths:
    for plane in ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        for name, own in own_seconds(line):
          seconds[name] += own
          counts[name] += 1
  total = sum(seconds.values()) or 1.0
  costliest = sorted(seconds.items(), key=lambda each: -each[1])
  return [Operation(name, counts[name], own, own / total) for name, own in costliest]


def own_seconds(line) -> Iterable[tuple[str, float]]:
  """(operation, seconds) of each of its runs on a line of a trace; what runs inside another is taken from that."""
  found = [(event.start_ns, -event.duration_ns, name) for event in line.events if (name := operation(event, line.name))]
  inside: list[list] = []  # [name, end, own nanoseconds] of those that are running, the outermost first
  for start, negative, name in sorted(found):
    while inside and inside[-1][1] <= start:
      ended, _, own = inside.pop()
      yield ended, own * 1e-9
    if inside:
      inside[-1][2] += negative
    inside.append([name, start - negative, -negative])
  yield from ((name, own * 1e-9) for name, _, own in inside)


def operation(event, line: str) -> str:
  """The name that XLA gave it; empty for what is no operation of a compiled program."""
  named = next((str(value) for key, value in event.stats if key == "hlo_op"), "")
  return named or (event.name.split(" = ")[0].lstrip("%") if line == "XLA Ops" else "")


def table(found: list[Operation], steps: int) -> Table:
  shown = Table(title="The costliest operations, over all devices", title_justify="left", box=box.SIMPLE)
  shown.add_column("operation", overflow="fold")
  for column in ("share", "ms a step", "times a step"):
    shown.add_column(column, justify="right", no_wrap=True)
  for each in found[:SHOWN]:
    numbers = (f"{each.share:.1%}", f"{1000 * each.seconds / steps:.3f}", f"{each.count / steps:g}")
    shown.add_row(escape(each.name), *numbers)
  return shown
