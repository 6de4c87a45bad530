"""The record of a run: `metrics.jsonl`, one object a step, and the same numbers for TensorBoard."""

import collections
import json
import os
import pathlib
import sys

from flamingo_jax.errors import UserError
from flamingo_jax.training.durable import replace_durably

METRICS = "metrics.jsonl"
TAIL = 20  # lines that a crash bundle has
# What is measured, in seconds or bytes; everything else is the same in every run of one config on the same devices.
TIMING = (
  "seconds",
  "tokens_per_second",
  "input_wait",
  "evaluation_seconds",
  "save_seconds",
  "goodput",
  "host_seconds",
  "device_memory",
)
TIMED = ("tokens", "seconds", "tokens_per_second", "input_wait")  # what every step has, and reports add up


class MetricsLog:
  """Appends to `metrics.jsonl` and TensorBoard; on resume, what a killed run wrote beyond its checkpoint is dropped.

  Where the record ends before the checkpoint, that is said on stderr: the steps between are lost to it.

  One host of a job is active; the logs of the others do nothing. A context: closed at its end.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int, *, active: bool = True):
    self.active = active
    if not active:
      return
    from flamingo_jax.training.tensorboard import Board

    self.path = workdir / METRICS
    kept = keep_until(self.path, resume_step)
    if kept < resume_step:
      print(
        f"{self.path} ends at step {kept}, but the run goes on from step {resume_step}: the steps between are missing "
        "from the record. If there is a copy of it, end the run, bring the copy back, and start the run again.",
        file=sys.stderr,
        flush=True,
      )
    self.last: collections.deque[dict] = collections.deque(maxlen=TAIL)
    self.file = self.path.open("a")
    self.board = Board(workdir / "tensorboard", resume_step)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    if not self.active:
      return
    line = {"step": step} | metrics
    self.last.append(line)
    self.file.write(json.dumps(line) + "\n")
    self.file.flush()
    self.board.write(step, metrics)

  def sync(self) -> None:
    """Waits until the disk has what was written."""
    if self.active:
      os.fsync(self.file.fileno())
      self.board.flush()

  def tail(self) -> list[dict]:
    """The last lines that were written."""
    return list(self.last) if self.active else []

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_) -> None:
    if self.active:
      self.board.close()
      self.file.close()


def keep_until(path: pathlib.Path, step: int) -> int:
  """Rewrites the log without the lines after `step`, and without a last line that a kill cut short.

  Returns:
    The step of its last line; 0 where there is none.

  Raises:
    UserError: a line is damaged.
  """
  if not path.exists():
    return 0
  kept = [(text, line["step"]) for text, line in complete_lines(path) if line["step"] <= step]
  replace_durably(path, "".join(text + "\n" for text, _ in kept))
  return max((its_step for _, its_step in kept), default=0)


def untimed(line: dict) -> dict:
  """A line without what is measured."""
  return {name: value for name, value in line.items() if name.split("/")[0] not in TIMING}


def read_metrics(workdir: str | pathlib.Path) -> list[dict]:
  """The steps of a run.

  Raises:
    UserError: there is no metrics.jsonl, or a line of it is damaged.
  """
  path = pathlib.Path(workdir) / METRICS
  if not path.is_file():
    raise UserError(f"{path}: missing. Give the work directory of a `flamingo train` run.")
  lines = [line for _, line in complete_lines(path)]
  for number, line in enumerate(lines, 1):
    if absent := [name for name in TIMED if name not in line]:
      raise damaged(path, number, f"it has no {absent[0]}")
    if wrong := [name for name, value in line.items() if type(value) not in (int, float)]:
      raise damaged(path, number, f"{wrong[0]} is {line[wrong[0]]!r}, and no number")
  return lines


def complete_lines(path: pathlib.Path) -> list[tuple[str, dict]]:
  """The lines of a record of steps, as text and as the object in it. Only a line that ends was written whole.

  Raises:
    UserError: a line has no step.
  """
  return [parse_line(path, number, line) for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]


def parse_line(path: pathlib.Path, number: int, line: bytes) -> tuple[str, dict]:
  try:
    text = line.decode()
    parsed = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise damaged(path, number, str(error)) from error
  if not isinstance(parsed, dict) or type(parsed.get("step")) is not int:
    raise damaged(path, number, "it has no step")
  return text, parsed


def damaged(path: pathlib.Path, number: int, fault: str) -> UserError:
  return UserError(
    f"{path}, line {number}: is not a step of a run ({fault}). Bring the file back from a copy, or take the line out."
  )
