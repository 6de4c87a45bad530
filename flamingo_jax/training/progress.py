"""What a person sees while a run goes on: a live line on a terminal, plain lines in a log."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Column


class TrainingProgress:
  """Loss per stream, tokens a second and time left."""

  def __init__(self, name: str, total_steps: int, start_step: int, *, active: bool = True, plain_every: float = 10.0):
    self.name, self.total_steps, self.plain_every = name, total_steps, plain_every
    self.console = Console(quiet=not active)
    self.live = self.console.is_terminal and not self.console.is_dumb_terminal
    self.last_plain = -math.inf
    self.first: tuple[float, int] | None = None  # when the first step ended, which; it waited for compilation
    what_is_left = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # of the width, when all else has its own
    columns = (
      SpinnerColumn(),
      TextColumn("[bold]{task.description}"),
      BarColumn(bar_width=20),
      MofNCompleteColumn(),
      TextColumn("{task.fields[losses]}", table_column=what_is_left),
      TimeRemainingColumn(),
    )
    self.progress = Progress(*columns, console=self.console, expand=True, disable=not self.live)
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
    began, first = self.first = self.first or (now, step)
    due = now - self.last_plain > self.plain_every or step == self.total_steps
    if not self.live and due:
      self.last_plain = now
      left = f"  {(now - began) / (step - first) * (self.total_steps - step):.0f} s left" if step > first else ""
      self.say(f"{self.name} {step}/{self.total_steps}  {losses}{left}")

  def say(self, message: str) -> None:
    self.console.print(message, highlight=False, soft_wrap=True)


def describe(metrics: dict[str, float]) -> str:
  losses = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in metrics.items() if name.startswith("loss/")]
  return "  ".join([*losses, f"{metrics['tokens_per_second']:.0f} tokens/s"])
