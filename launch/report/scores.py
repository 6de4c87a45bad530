"""The page of an evaluation: what it scored, beside what was published, and examples of what the model answered."""

import collections
import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from flamingo_jax.credentials import redacted, redacted_config
from flamingo_jax.evaluation.compare import Comparison, Finished, compare
from flamingo_jax.evaluation.published import FLAMINGO_3B, FLAMINGO_9B, FLAMINGO_80B, OPENFLAMINGO_9B
from flamingo_jax.evaluation.tasks import TASKS
from launch.report.evaluations import Evaluation, open_evaluation
from launch.report.examples import Answer, ShownPrompt, answer, counted, shown_prompt
from launch.report.page import MEDIA_COLORS, MINUS
from launch.report.score_chart import Chart, Line, Measured, score_chart
from launch.report.templates import template, write_page

PUBLISHED = {
  "Flamingo-3B": FLAMINGO_3B,
  "Flamingo-9B": FLAMINGO_9B,
  "Flamingo-80B": FLAMINGO_80B,
  "OpenFlamingo-9B": OPENFLAMINGO_9B,
}
SELECTIONS = {"random": "at random", "fixed": "the same for all", "nearest": "the nearest (RICES)"}
EACH = 2  # of the best, the worst and random examples of a setting
SEED = 0  # of the random ones


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table: settings that differ by their seed alone.

  Attributes:
    results: objects of scores.json, in the order of their seeds.
    published: scores of other models, times 100, by name; empty: there are none, or another row has them.
    changes: for a control, what it changed against the same seed without it.
  """

  results: tuple[dict, ...]
  published: dict[str, float]
  changes: tuple[Comparison, ...]

  @property
  def scored(self) -> list[dict]:
    return [result for result in self.results if result["score"] is not None]

  @property
  def mean(self) -> float | None:
    return statistics.fmean(result["score"] for result in self.scored) if self.scored else None

  @property
  def spread(self) -> float | None:
    """Standard deviation over seeds, of as many as there are less one."""
    scores = [result["score"] for result in self.scored]
    return statistics.stdev(scores) if len(scores) > 1 else None

  @property
  def change(self) -> float | None:
    differences = [each.difference for each in self.changes if each.difference is not None]
    return statistics.fmean(differences) if differences else None

  @property
  def change_interval(self) -> tuple[float, float] | None:
    return self.changes[0].interval if len(self.changes) == 1 else None


@dataclasses.dataclass(frozen=True)
class ShownExample:
  """A prediction in the gallery, and why it is there."""

  why: str
  id: str
  prompt: ShownPrompt
  answer: Answer
  references: list[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Part:
  """What the page has of one benchmark; `galleries` go by setting."""

  name: str
  task: str
  metric: str
  split: str
  other_split: str  # that the published figures are of; empty: the same
  examples: str
  rows: tuple[Row, ...]
  chart: Chart | None
  galleries: tuple[tuple[dict, tuple[ShownExample, ...]], ...]


def write_scores_page(folder: str | pathlib.Path) -> pathlib.Path:
  """Writes `report.html` into the folder of an evaluation, finished or not, and returns its path.

  Raises:
    UserError: the folder holds no evaluation, no finished setting, or is damaged; or the disk refuses.
  """
  evaluation = open_evaluation(folder)
  parts = dict.fromkeys((result["benchmark"], result["task"], result["split"]) for result in evaluation.results)
  config = json.dumps(redacted_config(evaluation.config), indent=2, ensure_ascii=False)
  filters = dict(percent=percent, change=change, known=known, direction=direction, choice=choice)
  page = template("scores.html.j2", **filters).render(
    title=redacted(str(folder)),
    facts=facts(evaluation),
    parts=[part(evaluation, *key) for key in parts],
    unfinished=evaluation.unfinished,
    models=list(PUBLISHED),
    config=config,
    media_colors=MEDIA_COLORS,
  )
  return write_page(evaluation.folder / "report.html", page)


def facts(evaluation: Evaluation) -> dict[str, str]:
  """The evaluation in a few words."""
  levels = sorted({result["level"] for result in evaluation.results if result["score"] is not None})
  intervals = f"{', '.join(f'{level:.0%}' for level in levels)}, by resampling the examples"
  return {
    "model": evaluation.checkpoint,
    "settings": f"{len(evaluation.results)} done" + f", {len(evaluation.unfinished)} not" * bool(evaluation.unfinished),
  } | ({"intervals": intervals} if levels else {})


def part(evaluation: Evaluation, name: str, task: str, split: str) -> Part:
  """Gathers what is shown of a benchmark; predictions are read a setting at a time."""
  key = (name, task, split)
  results = [each for each in evaluation.results if (each["benchmark"], each["task"], each["split"]) == key]
  return Part(
    name=name,
    task=task,
    metric=results[0]["metric"],
    split=split,
    other_split=TASKS[task].query if TASKS[task].query != split and published(task) else "",
    examples=in_words(results),
    rows=tuple(rows(evaluation, results)),
    chart=chart(results, published(task)),
    galleries=tuple((result, gallery(evaluation.finished(result))) for result in results),
  )


def published(task: str) -> dict[str, dict[int, float]]:
  """What others reported for a task: model -> shots -> score times 100."""
  return {model: scores[task] for model, scores in PUBLISHED.items() if task in scores}


def in_words(results: Sequence[dict]) -> str:
  """How many examples there are, and how many films are not there any more, or cannot be decoded."""
  counts = sorted({(result["examples"], result["absent"], result.get("unreadable", 0)) for result in results})

  def told(there: int, absent: int, unreadable: int) -> str:
    missing = f" ({absent:,} without their film left out)" * bool(absent)
    return (
      f"{there:,} examples" + missing + f" ({unreadable:,} whose film cannot be decoded left out)" * bool(unreadable)
    )

  return " or ".join(told(*each) for each in counts)


def way(result: dict) -> tuple:
  """What a setting is, apart from its seed."""
  return result["shots"], result["selection"], result["orders"], result["control"]


def in_order(key: tuple) -> tuple:
  """Few shots first, random ones before others, and controls after what they control."""
  shots, chosen, orders, control = key
  return shots, list(SELECTIONS).index(chosen), orders, control


def rows(evaluation: Evaluation, results: Sequence[dict]) -> Iterator[Row]:
  """The lines of a benchmark's table."""
  groups: dict[tuple, list[dict]] = {}
  for result in results:
    groups.setdefault(way(result), []).append(result)
  told = set()
  for shots, chosen, orders, control in sorted(groups, key=in_order):
    own = sorted(groups[shots, chosen, orders, control], key=lambda result: result["seed"])
    is_first = not control and shots not in told
    beside = {model: by[shots] for model, by in published(own[0]["task"]).items() if is_first and shots in by}
    told |= {shots} if is_first else set()
    bases = groups.get((shots, chosen, orders, ""), []) if control else []
    yield Row(tuple(own), beside, tuple(against(evaluation, bases, own)))


def against(evaluation: Evaluation, bases: Sequence[dict], controls: Sequence[dict]) -> Iterator[Comparison]:
  """What a control changed, for each seed that was evaluated without it too."""
  by_seed = {base["seed"]: base for base in bases}
  for control in controls:
    if control["seed"] in by_seed:
      yield compare(evaluation.finished(by_seed[control["seed"]]), evaluation.finished(control))


def chart(results: Sequence[dict], beside: dict[str, dict[int, float]]) -> Chart | None:
  """The lines of a benchmark; None where nothing has a score."""
  lines: dict[tuple, dict[int, list[Measured]]] = {}
  for result in results:
    if result["score"] is not None:
      shots, *rest = way(result)
      ends = (known(result["low"]), known(result["high"]))
      scores = (100 * result["score"], *(None if end is None else 100 * end for end in ends))
      lines.setdefault(tuple(rest), collections.defaultdict(list))[shots].append(scores)
  if not lines:
    return None
  drawn = [
    Line(described(*rest), MEDIA_COLORS[place % len(MEDIA_COLORS)], bool(rest[-1]), scores)
    for place, (rest, scores) in enumerate(lines.items())
  ]
  return score_chart(drawn, beside)


def described(chosen: str, orders: int, control: str) -> str:
  """A line of the chart in words."""
  words = [f"shots {SELECTIONS[chosen]}", f"{orders} orders" * (orders > 1), control.replace("_", " ")]
  return ", ".join(filter(None, words))


def gallery(setting: Finished) -> tuple[ShownExample, ...]:
  """Some of a setting's predictions: the best, the worst, and others at random."""
  scores = setting.own_scores
  shown = []
  for why, place in picked(scores, len(setting.predictions)):
    line = setting.predictions[place]
    said = answer(line, None if scores is None else scores[place])
    shown.append(ShownExample(why, line["id"], shown_prompt(line), said, counted(line["references"])))
  return tuple(shown)


def picked(scores: Float64[np.ndarray, "n"] | None, count: int) -> list[tuple[str, int]]:
  """Places of examples to show, each once, and why: EACH of the best, of the worst, and at random.

  Equal scores are drawn among; where all are equal or there are none, all places are random.
  """
  order = np.random.default_rng(SEED).permutation(count)
  if scores is None or np.ptp(scores) == 0:
    return [("at random", int(place)) for place in order[: 3 * EACH]]
  ranked = order[np.argsort(-scores[order], kind="stable")].tolist()
  best = ranked[:EACH]
  worst = [place for place in ranked[::-1] if place not in best][:EACH]
  rest = [place for place in order.tolist() if place not in best + worst][:EACH]
  return [(why, place) for why, places in (("best", best), ("worst", worst), ("at random", rest)) for place in places]


def known(value: float | None) -> float | None:
  """A number, or None where it is none: an interval that could not be found is not a number."""
  return None if value is None or math.isnan(value) else value


def percent(value: float | None) -> str:
  """A score times 100, as papers give it."""
  return "" if known(value) is None else f"{100 * value:.1f}".replace("-", MINUS)


def change(value: float | None) -> str:
  return "" if known(value) is None else f"{100 * value:+.1f}".replace("-", MINUS)


def direction(interval: tuple[float, float] | None) -> str:
  """The class of a difference: neither better nor worse where its interval has zero in it, or there is none."""
  if interval is None or not (interval[0] > 0 or interval[1] < 0):
    return "level"
  return "better" if interval[0] > 0 else "worse"


def choice(result: dict) -> str:
  """How a setting's shots were chosen and in how many orders, in words; without shots there is nothing to choose."""
  if not result["shots"]:
    return ""
  orders = f", {result['orders']} orders" * (result["orders"] > 1)
  return SELECTIONS[result["selection"]] + orders
