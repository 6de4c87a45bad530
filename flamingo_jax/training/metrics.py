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
  """
  if not path.exists():
    return 0
  lines = complete_lines(path)
  steps = [json.loads(line)["step"] for line in lines]
  kept = [line + "\n" for line, its_step in zip(lines, steps, strict=True) if its_step <= step]
  replace_durably(path, "".join(kept))
  return max((its_step for its_step in steps if its_step <= step), default=0)


def untimed(line: dict) -> dict:
  """A line without what is measured."""
  return {name: value for name, value in line.items() if name.split("/")[0] not in TIMING}


def read_metrics(workdir: str | pathlib.Path) -> list[dict]:
  """The steps of a run.

  Raises:
    UserError: there is no metrics.jsonl.
  """
  path = pathlib.Path(workdir) / METRICS
  if not path.is_file():
    raise UserError(f"{path}: missing. Give the work directory of a `flamingo train` run.")
  return [json.loads(line) for line in complete_lines(path)]


def complete_lines(path: pathlib.Path) -> list[str]:
  """Only a line that ends was written whole."""
  text = path.read_text()
  return text[: text.rfind("\n") + 1].splitlines()
