"""Scores against shots: the places of lines, whiskers and ticks in an SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 270  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 34, 106, 14, 40  # what is left around the plot
ROOM_BETWEEN_NAMES = 13
SEED_GAP = 7  # between the whiskers of seeds
PADDING = 0.08  # of the plot's height, above and below

# What a score was, and the ends of its interval, all times 100; None where there is none.
Measured = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Line:
  """Scores of one way to choose shots, or of one control: for each number of shots one score a seed."""

  label: str
  color: str
  dashed: bool
  scores: Mapping[int, Sequence[Measured]]


@dataclass(frozen=True)
class DrawnLine:
  """A line in the drawing: its points with what they say, and vertical whiskers (x, low, high)."""

  label: str
  color: str
  dashed: bool
  points: tuple[tuple[float, float, str], ...]
  whiskers: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Name:
  """What a published line is called, beside its end."""

  text: str
  y: float


@dataclass(frozen=True)
class Chart:
  """The whole drawing; ticks are places with labels."""

  lines: tuple[DrawnLine, ...]
  published: tuple[DrawnLine, ...]
  names: tuple[Name, ...]
  x_ticks: tuple[tuple[float, str], ...]
  y_ticks: tuple[tuple[float, str], ...]
  width: int = WIDTH
  height: int = HEIGHT
  left: int = LEFT
  right: int = WIDTH - RIGHT  # where the plot ends


def score_chart(lines: Sequence[Line], published: Mapping[str, Mapping[int, float]]) -> Chart:
  """Draws measured lines before published ones (name -> shots -> score times 100).

  Shots stand by the logarithm of one more than their number, so that 0 has a place and 4 to 32 have room.
  """
  shots = sorted({count for scores in (*(line.scores for line in lines), *published.values()) for count in scores})
  heights = [height for line in lines for seeds in line.scores.values() for each in seeds for height in each]
  heights += [score for scores in published.values() for score in scores.values()]
  low, high = _range([height for height in heights if height is not None])

  def across(count: int) -> float:
    first, last = math.log2(1 + shots[0]), math.log2(1 + shots[-1])
    share = (math.log2(1 + count) - first) / (last - first) if last > first else 0.5
    return LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20)

  def up(score: float) -> float:
    return HEIGHT - BOTTOM - (score - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

  faint = tuple(
    DrawnLine(
      name,
      "",
      False,
      tuple(
        (across(count), up(score), f"{name}, {count} shots: {score:.1f}") for count, score in sorted(scores.items())
      ),
    )
    for name, scores in published.items()
  )
  return Chart(
    lines=tuple(_drawn(line, across, up) for line in lines),
    published=faint,
    names=tuple(_spread_names([(line.label, line.points[-1][1]) for line in faint])),
    x_ticks=tuple((across(count), str(count)) for count in shots),
    y_ticks=tuple((up(tick), f"{tick:g}") for tick in ticks(low, high)),
  )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers from low to high, at most so many, 1, 2 or 5 times a power of ten apart."""
  least = (high - low) / (most - 1)
  power = 10.0 ** math.floor(math.log10(least))
  step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least)
  return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _drawn(line: Line, across, up) -> DrawnLine:
  points, whiskers = [], []
  for count, seeds in sorted(line.scores.items()):
    mean = sum(score for score, _, _ in seeds) / len(seeds)
    of = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    points.append((across(count), up(mean), f"{line.label}, {count} shots: {mean:.1f}{of}"))
    for number, (_, low, high) in enumerate(seeds):
      if low is not None and high is not None:
        whiskers.append((across(count) + SEED_GAP * (number - (len(seeds) - 1) / 2), up(low), up(high)))
  return DrawnLine(line.label, line.color, line.dashed, tuple(points), tuple(whiskers))


def _range(heights: Sequence[float]) -> tuple[float, float]:
  low, high = min(heights), max(heights)
  if low == high:
    low, high = low - 1, high + 1
  return low - PADDING * (high - low), high + PADDING * (high - low)


def _spread_names(names: Iterable[tuple[str, float]]) -> list[Name]:
  """Names beside the ends of their lines, moved apart until none covers another, and kept in the drawing."""
  placed: list[Name] = []
  for text, y in sorted(names, key=lambda name: name[1]):
    least = placed[-1].y + ROOM_BETWEEN_NAMES if placed else TOP
    placed.append(Name(text, max(y, least)))
  bottom: float = HEIGHT - BOTTOM
  for place in reversed(range(len(placed))):
    placed[place] = Name(placed[place].text, min(placed[place].y, bottom))
    bottom = placed[place].y - ROOM_BETWEEN_NAMES
  return placed
