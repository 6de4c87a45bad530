"""The record of a run: `metrics.jsonl`, one object a step, and the same numbers for TensorBoard."""

import collections
import json
import os
import pathlib

from flamingo_jax.errors import UserError

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

  One host of a job is active; the logs of the others do nothing. A context: closed at its end.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int, *, active: bool = True):
    self.active = active
    if not active:
      return
    from flamingo_jax.training.tensorboard import Board

    self.path = workdir / METRICS
    keep_until(self.path, resume_step)
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


def keep_until(path: pathlib.Path, step: int) -> None:
  """Rewrites the log without the lines after `step`, and without a last line that a kill cut short."""
  if not path.exists():
    return
  kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= step]
  replacement = path.with_suffix(".jsonl.new")
  replacement.write_text("".join(line + "\n" for line in kept))
  os.replace(replacement, path)


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
