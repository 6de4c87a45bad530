"""Parallel coordinates: an axis for every field and one for the outcome, a line for every trial."""

import dataclasses
import math
from collections.abc import Sequence

from launch.sweep.outcomes import DONE, Result
from launch.sweep.settings import fields_of

HEIGHT, GAP = 300, 150  # of the drawing and between axes, in its own units
TOP, BOTTOM, SIDE = 34, 16, 70
TICKS = 5  # of an axis of numbers
ROOM = 22  # letters of a label


@dataclasses.dataclass(frozen=True)
class Axis:
  """A vertical line at x; its ticks are heights with labels."""

  name: str
  x: float
  ticks: tuple[tuple[float, str], ...]


@dataclasses.dataclass(frozen=True)
class Path:
  """A trial across the axes; `rank` is 0 for the best and 1 for the worst."""

  points: tuple[tuple[float, float], ...]
  rank: float
  said: str


@dataclasses.dataclass(frozen=True)
class Chart:
  axes: tuple[Axis, ...]
  paths: tuple[Path, ...]
  width: int
  height: int = HEIGHT


def parallel_coordinates(results: Sequence[Result], outcome: str, best: str) -> Chart | None:
  """The chart of the trials that are done; None before there are two that differ in anything."""
  done = [result for result in results if result.state == DONE and result.outcome is not None]
  fields = fields_of(result.trial for result in done)
  if len(done) < 2 or not fields:
    return None
  columns = {field: [result.trial.value(field) for result in done] for field in fields}
  columns[outcome] = [result.outcome for result in done]
  axes, heights = [], []
  for place, (name, values) in enumerate(columns.items()):
    ticks, at = scale(values)
    axes.append(Axis(name, SIDE + place * GAP, ticks))
    heights.append(at)
  ranks = ranking(columns[outcome], best)
  paths = [
    Path(
      tuple((axis.x, at[place]) for axis, at in zip(axes, heights, strict=True)),
      ranks[place],
      ", ".join(f"{name} {label(values[place])}" for name, values in columns.items()),
    )
    for place in range(len(done))
  ]
  worst_first = sorted(paths, key=lambda path: -path.rank)
  return Chart(tuple(axes), tuple(worst_first), 2 * SIDE + (len(axes) - 1) * GAP)


def ranking(values: Sequence[float], best: str) -> list[float]:
  """Each value's place among all, 0 for the best and 1 for the worst."""
  order = sorted(set(values), reverse=best == "max")
  return [order.index(value) / max(len(order) - 1, 1) for value in values]


def scale(values: Sequence) -> tuple[tuple[tuple[float, str], ...], list[float]]:
  """(ticks, the height of each value): numbers by size, or by factors where they span many; others one by one."""
  if not all(type(value) in (int, float) for value in values):
    names = sorted({label(value) for value in values})
    at = {name: height(place / max(len(names) - 1, 1)) for place, name in enumerate(names)}
    return tuple((at[name], name) for name in names), [at[label(value)] for value in values]
  distinct = sorted(set(values))
  low, high = distinct[0], distinct[-1]
  by_factors = low > 0 and high / low >= 10
  turned = math.log if by_factors else float
  span = turned(high) - turned(low) or 1.0
  share = lambda value: (turned(value) - turned(low)) / span  # noqa: E731
  steps = [low + (high - low) * place / (TICKS - 1) for place in range(TICKS)]
  if by_factors:
    steps = [low * (high / low) ** (place / (TICKS - 1)) for place in range(TICKS)]
  shown = distinct if len(distinct) <= TICKS else steps
  return tuple((height(share(value)), label(value)) for value in shown), [height(share(value)) for value in values]


def height(share: float) -> float:
  return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def label(value: object) -> str:
  text = f"{value:.4g}" if isinstance(value, float) else str(value).rpartition("/")[2]
  return text if len(text) <= ROOM else text[: ROOM - 1] + "…"
