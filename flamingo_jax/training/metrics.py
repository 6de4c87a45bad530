"""The record of a run: `metrics.jsonl`, one object a step, and the same numbers for TensorBoard."""

import json
import os
import pathlib

import tensorboardX

from flamingo_jax.errors import UserError


class MetricsLog:
  """Appends to `metrics.jsonl` and TensorBoard; on resume, what a killed run wrote beyond its checkpoint is dropped.

  One host of a job is active; the logs of the others do nothing.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int, *, active: bool = True):
    self.active = active
    if not active:
      return
    self.path = workdir / "metrics.jsonl"
    keep_until(self.path, resume_step)
    self.file = self.path.open("a")
    self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    if not self.active:
      return
    self.file.write(json.dumps({"step": step} | metrics) + "\n")
    self.file.flush()
    for name, value in metrics.items():
      self.board.add_scalar(name, value, step)

  def close(self) -> None:
    if not self.active:
      return
    self.file.close()
    self.board.close()


def keep_until(path: pathlib.Path, step: int) -> None:
  """Rewrites the log without the lines after `step`, and without a last line that a kill cut short."""
  if not path.exists():
    return
  kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= step]
  replacement = path.with_suffix(".jsonl.new")
  replacement.write_text("".join(line + "\n" for line in kept))
  os.replace(replacement, path)


def read_metrics(workdir: str | pathlib.Path) -> list[dict]:
  """The steps of a run.

  Raises:
    UserError: there is no metrics.jsonl.
  """
  path = pathlib.Path(workdir) / "metrics.jsonl"
  if not path.is_file():
    raise UserError(f"{path}: missing. Give the work directory of a `flamingo train` run.")
  return [json.loads(line) for line in complete_lines(path)]


def complete_lines(path: pathlib.Path) -> list[str]:
  """Only a line that ends was written whole."""
  text = path.read_text()
  return text[: text.rfind("\n") + 1].splitlines()
