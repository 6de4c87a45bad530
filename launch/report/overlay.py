"""The curves of several runs over each other: one chart a metric, one line a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Span
from bokeh.plotting import figure

from launch.report.curves import GATES, QUIET, Chart, Series, canvas, series, smoothed_source, thin_out

COLORS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#8e63ce", "#d1495b", "#2a9aa8", "#9a6b45", "#c2559d")
DASHES = ("solid", (6, 3), (2, 2))  # of the first so many runs as there are colours, the next, and the rest
SCHEDULES = ("learning_rate",)  # without noise to smooth
BENCHMARKS = ("few_shot/", "zero_shot/", "heldout/text_at_", "heldout/picture_at_")  # of the metrics
PROGRESS = {
  "loss": "Whole loss",
  "learning_rate": "Learning rate",
  "gradient_norm": "Gradient norm",
  "tokens_per_second": "Tokens per second",
  "input_wait": "Share of a step that waits for input",
  "goodput": "Goodput",
}


@dataclass(frozen=True)
class Line:
  """What is drawn of a run; `place` is its number among them."""

  name: str
  metrics: Sequence[dict]
  place: int

  @property
  def color(self) -> str:
    return COLORS[self.place % len(COLORS)]

  @property
  def dash(self) -> str | tuple[int, int]:
    return DASHES[min(self.place // len(COLORS), len(DASHES) - 1)]


def loss_overlays(lines: Sequence[Line], streams: Sequence[str]) -> list[Chart]:
  """Training losses of every stream: of its text where any run has that, else of the objective."""
  charts = []
  for stream in streams:
    kind = kind_of_loss(lines, stream)
    note = "text tokens only, nats per token" if kind == "text_loss" else "loss of the objective"
    charts.append(smoothed_overlay(lines, f"{kind}/{stream}", stream, note))
  return present(charts)


def held_out_overlays(lines: Sequence[Line], streams: Sequence[str]) -> list[Chart]:
  names = {stream: f"heldout/{kind_of_loss(lines, stream)}/{stream}" for stream in streams}
  return present(dotted_overlay(lines, name, stream, "held out") for stream, name in names.items())


def gain_overlays(lines: Sequence[Line], streams: Sequence[str]) -> list[Chart]:
  rivals = {"other_media": "against other examples' media", "no_media": "against no media"}
  wanted = [(stream, rival) for stream in streams for rival in rivals]
  return present(
    dotted_overlay(lines, f"visual_gain/{stream}/{rival}", stream, rivals[rival], zero=True) for stream, rival in wanted
  )


def score_overlays(lines: Sequence[Line]) -> list[Chart]:
  """Benchmarks that were put to the models while they trained."""
  names = sorted({name for line in lines for metrics in line.metrics for name in metrics})
  scores = [name for name in names if name.startswith(BENCHMARKS)]
  return present(dotted_overlay(lines, name, name.partition("/")[2], "") for name in scores)


def gate_overlays(lines: Sequence[Line]) -> list[Chart]:
  """How far the gates of a run opened, over all of its layers."""
  charts = []
  for kind, _ in GATES:
    opened = [(line, mean_gate(line.metrics, kind)) for line in lines]
    charts.append(draw_dotted(opened, kind.replace("_", " "), "mean of |tanh gate| over layers"))
  return present(charts)


def progress_overlays(lines: Sequence[Line]) -> list[Chart]:
  return present(
    dotted_overlay(lines, name, title, "", dots=False)
    if name in SCHEDULES
    else smoothed_overlay(lines, name, title, "", height=190)
    for name, title in PROGRESS.items()
  )


def kind_of_loss(lines: Sequence[Line], stream: str) -> str:
  return "text_loss" if any(series(line.metrics, f"text_loss/{stream}") for line in lines) else "loss"


def mean_gate(metrics: Sequence[dict], kind: str) -> Series:
  """The mean size of all gates of a kind, wherever they were logged."""
  prefix = f"gates/{kind}/"
  found = [(line["step"], [abs(line[name]) for name in line if name.startswith(prefix)]) for line in metrics]
  points = [(step, np.mean(gates)) for step, gates in found if gates]
  steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
  return Series(steps, values)


def smoothed_overlay(lines: Sequence[Line], name: str, title: str, note: str, height: int = 280) -> Chart | None:
  found = with_points((line, series(line.metrics, name)) for line in lines)
  if not found:
    return None
  drawing = canvas(height)
  for line, points in found:
    source = smoothed_source(points)
    drawing.line("step", "raw", source=source, color=line.color, alpha=0.16, line_width=1)
    drawing.line("step", "smooth", source=source, color=line.color, line_width=2, line_dash=line.dash)
  hover_over_all(drawing, found)
  return Chart(title, note, (), drawing)


def dotted_overlay(
  lines: Sequence[Line], name: str, title: str, note: str, *, zero: bool = False, dots: bool = True
) -> Chart | None:
  return draw_dotted([(line, series(line.metrics, name)) for line in lines], title, note, zero=zero, dots=dots)


def draw_dotted(
  lines: Sequence[tuple[Line, Series]], title: str, note: str, *, zero: bool = False, dots: bool = True
) -> Chart | None:
  """A chart of what is measured now and then; with `zero`, a line at 0."""
  found = with_points(lines)
  if not found:
    return None
  drawing = canvas(230 if dots else 190)
  if zero:
    drawing.add_layout(Span(location=0, dimension="width", line_color=QUIET, line_dash="dashed", line_width=1))
  for line, points in found:
    thin = thin_out(len(points.steps))
    source = ColumnDataSource({"step": points.steps[thin], "value": points.values[thin]})
    drawing.line("step", "value", source=source, color=line.color, line_width=2, line_dash=line.dash)
    if dots:
      drawing.scatter("step", "value", source=source, color=line.color, size=5)
  hover_over_all(drawing, found)
  return Chart(title, note, (), drawing)


def with_points(lines: Iterable[tuple[Line, Series]]) -> list[tuple[Line, Series]]:
  return [(line, points) for line, points in lines if np.isfinite(points.values).any()]


def present(charts: Iterable[Chart | None]) -> list[Chart]:
  return [chart for chart in charts if chart]


def hover_over_all(drawing: figure, found: Sequence[tuple[Line, Series]]) -> None:
  """One box that has every run's value at a step, as it was logged; a line that is not seen carries it."""
  steps = np.unique(np.concatenate([points.steps for _, points in found]))
  steps = steps[thin_out(len(steps))]
  columns: dict[str, object] = {"step": steps}
  height = np.full(len(steps), np.nan)
  for number, (_, points) in enumerate(found):
    at = np.minimum(np.searchsorted(points.steps, steps), len(points.steps) - 1)
    values = np.where(points.steps[at] == steps, points.values[at], np.nan)
    height = np.where(np.isfinite(height), height, values)
    columns[f"of_{number}"] = [f"{value:.5g}" if np.isfinite(value) else "" for value in values]
  carrier = drawing.line("step", "height", source=ColumnDataSource(columns | {"height": height}), line_alpha=0)
  rows = [("step", "@step{0,0}"), *((line.name, f"@of_{number}") for number, (line, _) in enumerate(found))]
  drawing.add_tools(HoverTool(renderers=[carrier], tooltips=rows, mode="vline", visible=False))
