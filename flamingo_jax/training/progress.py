"""What a person sees while a run goes on: a live line on a terminal, plain lines in a log."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class TrainingProgress:
  """Loss per stream, tokens a second and time left."""

  def __init__(self, name: str, total_steps: int, start_step: int, *, active: bool = True, plain_every: float = 10.0):
    self.name, self.total_steps, self.plain_every = name, total_steps, plain_every
    self.console = Console(quiet=not active)
    self.last_plain = 0.0
    self.started, self.start_step = time.monotonic(), start_step
    columns = (
      SpinnerColumn(),
      TextColumn("[bold]{task.description}"),
      BarColumn(bar_width=20),
      MofNCompleteColumn(),
      TextColumn("{task.fields[losses]}"),
      TimeRemainingColumn(),
    )
    self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
    self.task = self.progress.add_task(name, total=total_steps, completed=start_step, losses="compiling")

  def __enter__(self):
    self.progress.start()
    return self

  def __exit__(self, *_):
    self.progress.stop()

  def update(self, step: int, metrics: dict[str, float]) -> None:
    losses = describe(metrics)
    self.progress.update(self.task, completed=step, losses=losses)
    now = time.monotonic()
    due = now - self.last_plain > self.plain_every or step == self.total_steps
    if not self.console.is_terminal and due:
      self.last_plain = now
      left = (now - self.started) / (step - self.start_step) * (self.total_steps - step)
      self.say(f"{self.name} {step}/{self.total_steps}  {losses}  {left:.0f} s left")

  def say(self, message: str) -> None:
    self.console.print(message, highlight=False)


def describe(metrics: dict[str, float]) -> str:
  losses = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in metrics.items() if name.startswith("loss/")]
  return "  ".join([*losses, f"{metrics['tokens_per_second']:.0f} tokens/s"])
