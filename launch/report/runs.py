"""The page of several runs: their curves over each other, their numbers, configs and samples side by side."""

import dataclasses
from collections.abc import Callable, Sequence

from markupsafe import Markup

from launch.report import curves, overlay
from launch.report.page import MEDIA_COLORS, MINUS, Generation, picture, text_pieces
from launch.report.templates import template

ABSENT = "(absent)"


@dataclasses.dataclass(frozen=True)
class ShownRun:
  """A run on the page.

  Attributes:
    name: that tells it from the others.
    workdir: of the run.
    streams: names, as its config has them.
    metrics: lines of metrics.jsonl.
    facts: the run in a few words.
    config: without credentials; field, written with dots -> value.
    samples: of its checkpoints; empty where it writes nothing.
    note: why there are no samples, where there should be; or empty.
  """

  name: str
  workdir: str
  streams: tuple[str, ...]
  metrics: list[dict]
  facts: dict[str, str]
  config: dict[str, object]
  samples: tuple[Generation, ...]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the results; `best` are the places of the runs that no other beats, none where all are alike.

  A value that is not finite beats none.
  """

  stream: str
  label: str
  values: tuple[float | None, ...]

  @property
  def best(self) -> set[int]:
    known = {place: value for place, value in enumerate(self.values) if curves.is_finite(value)}
    best = {place for place, value in known.items() if value == min(known.values())}
    return best if len(best) < sum(value is not None for value in self.values) else set()


def render(runs: Sequence[ShownRun]) -> str:
  """One HTML document that needs nothing beside it; sections without data are left out."""
  lines = [overlay.Line(run.name, run.metrics, place) for place, run in enumerate(runs)]
  streams = list(dict.fromkeys(stream for run in runs for stream in run.streams))
  groups = {
    "Training loss": overlay.loss_overlays(lines, streams),
    "Held-out loss": overlay.held_out_overlays(lines, streams),
    "Visual gain": overlay.gain_overlays(lines, streams),
    "Benchmarks": overlay.score_overlays(lines),
    "Gates": overlay.gate_overlays(lines),
    "The update, and what it took": overlay.progress_overlays(lines),
  }
  charts = [chart for group in groups.values() for chart in group]
  scripts, places = curves.embed(charts)
  remaining = iter(places)  # Bokeh's own HTML, as the scripts are; it escapes what it was given
  filters = dict(number=number, picture=picture, text_pieces=text_pieces)
  return template("runs.html.j2", **filters).render(
    runs=list(zip(runs, lines, strict=True)),
    groups={name: [(c, Markup(next(remaining))) for c in group] for name, group in groups.items() if group},  # nosec B704
    scripts=Markup(scripts),  # nosec B704
    sources=curves.smoothed_sources(charts),
    share=100 / curves.SMOOTHING,
    results=results(runs, streams),
    facts=facts(runs),
    differences=differences(runs),
    samples=samples(runs),
    media_colors=MEDIA_COLORS,
  )


def results(runs: Sequence[ShownRun], streams: Sequence[str]) -> list[Row]:
  """The losses and gains at the end, lower ones better; only what was measured in some run."""
  rows = []
  for stream in streams:
    kind = "text_loss" if any(curves.latest(run.metrics, f"text_loss/{stream}") is not None for run in runs) else "loss"
    wanted: list[tuple[str, Callable[[Sequence[dict], str], float | None], str]] = [
      ("training loss, smoothed", last_smoothed, f"{kind}/{stream}"),
      ("held-out loss", curves.latest, f"heldout/{kind}/{stream}"),
      ("least held-out loss", least, f"heldout/{kind}/{stream}"),
      ("visual gain, others' media", curves.latest, f"visual_gain/{stream}/other_media"),
      ("visual gain, no media", curves.latest, f"visual_gain/{stream}/no_media"),
    ]
    found = [Row(stream, label, tuple(of(run.metrics, name) for run in runs)) for label, of, name in wanted]
    rows += [row for row in found if any(value is not None for value in row.values)]
  return rows


def last_smoothed(metrics: Sequence[dict], name: str) -> float | None:
  """The end of the smoothed line; where the newest value is not finite, that, which the line steps over."""
  newest = curves.latest(metrics, name)
  return float(curves.smooth(curves.series(metrics, name).values)[-1]) if curves.is_finite(newest) else newest


def least(metrics: Sequence[dict], name: str) -> float | None:
  """The least of all finite values; where there is none, the newest."""
  known = [value for value in curves.series(metrics, name).values.tolist() if curves.is_finite(value)]
  return min(known, default=curves.latest(metrics, name))


def facts(runs: Sequence[ShownRun]) -> list[tuple[str, list[str]]]:
  names = dict.fromkeys(name for run in runs for name in run.facts)
  return [(name, [run.facts.get(name, "") for run in runs]) for name in names]


def differences(runs: Sequence[ShownRun]) -> list[tuple[str, list[str]]]:
  """The fields in which not all configs agree, and their values."""
  names = sorted({name for run in runs for name in run.config})
  found = [(name, [run.config.get(name, ABSENT) for run in runs]) for name in names]
  return [(name, [str(value) for value in values]) for name, values in found if any(v != values[0] for v in values)]


def samples(runs: Sequence[ShownRun]) -> list[tuple[Generation, list[tuple[int, Generation]]]]:
  """The samples of one prompt together: one of them, and (place of the run, its own) of all that have it."""
  together: dict[tuple, list[tuple[int, Generation]]] = {}
  for place, run in enumerate(runs):
    for sample in run.samples:
      together.setdefault((sample.stream, sample.prompt, sample.reference), []).append((place, sample))
  return [(found[0][1], found) for found in together.values()]


def number(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}".replace("-", MINUS)
