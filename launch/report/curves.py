"""The curves of a report: lines of metrics.jsonl in, bokeh figures out.

The colours are chosen to read on a light and on a dark page, because a drawn canvas does not follow the reader's theme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bokeh.embed import components
from bokeh.models import BasicTickFormatter, ColumnDataSource, HoverTool, NumeralTickFormatter, Span
from bokeh.palettes import Plasma256
from bokeh.plotting import figure
from bokeh.resources import Resources
from bokeh.transform import dodge

TRAIN, HELD_OUT, QUIET = "#3b7dd8", "#d9822b", "#858c96"
STREAM_COLORS = ("#2f9e6e", "#8e63ce", "#d1495b", "#2a9aa8", "#9a6b45", "#b8860b")
GATES = (("attention", TRAIN), ("feed_forward", HELD_OUT))
MOST_POINTS = 1500  # of one line: more cannot be told apart on a screen, and make the file heavy
SMOOTHING = 25  # the moving average looks back over one part in this many of the run
SMOOTHED = "smoothed"  # the sources that have such an average


@dataclass(frozen=True)
class Key:
  """One entry of a legend; `mark` is line, faint, dash, dot, ring or bar."""

  label: str
  color: str
  mark: str


@dataclass(frozen=True)
class Chart:
  """A drawing with the words around it."""

  title: str
  note: str
  keys: tuple[Key, ...]
  drawing: figure


@dataclass(frozen=True)
class Series:
  """The values of one metric where it was logged."""

  steps: np.ndarray
  values: np.ndarray

  def __bool__(self) -> bool:
    return len(self.steps) > 0


def series(metrics: Sequence[dict], name: str) -> Series:
  """Reads one metric out of the lines that have it; values that are not finite become gaps."""
  lines = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
  steps, values = np.asarray(lines, np.float64).reshape(-1, 2).T
  return Series(steps, np.where(np.isfinite(values), values, np.nan))


def latest(metrics: Sequence[dict], name: str) -> float | None:
  """The newest value of a metric, finite or not; None where it was never logged."""
  return next((float(line[name]) for line in reversed(metrics) if line.get(name) is not None), None)


def is_finite(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def smooth(values: np.ndarray) -> np.ndarray:
  """Exponential moving average without the pull towards zero at the start; gaps are stepped over."""
  decay = math.exp(-1 / max(1.0, len(values) / SMOOTHING))
  total, weight, averages = 0.0, 0.0, []
  for value in values:
    if np.isfinite(value):
      total, weight = decay * total + value, decay * weight + 1
    averages.append(total / weight if weight else math.nan)
  return np.asarray(averages)


def embed(charts: Sequence[Chart]) -> tuple[str, tuple[str, ...]]:
  """The scripts that draw the charts, bokeh itself included, and one element a chart to draw it in."""
  if not charts:
    return "", ()
  script, places = components(tuple(chart.drawing for chart in charts))
  return Resources(mode="inline", components=["bokeh"], log_level="warn").render() + script, places


def smoothed_sources(charts: Sequence[Chart]) -> list[str]:
  """The ids of what a slider smooths anew."""
  found = (chart.drawing.select({"type": ColumnDataSource, "name": SMOOTHED}) for chart in charts)
  return sorted(source.id for each in found for source in each)


def loss_charts(metrics: Sequence[dict], streams: Sequence[str]) -> tuple[Chart, ...]:
  """One chart a stream: the text loss, which the frozen LM can be held against, or else the objective's loss."""
  charts = (_loss_chart(metrics, stream) for stream in streams)
  return tuple(chart for chart in charts if chart)


def progress_charts(metrics: Sequence[dict], streams: Sequence[str]) -> tuple[Chart, ...]:
  """Small charts of the update itself: the whole loss, learning rate, gradient norm, speed."""
  wanted = [
    ("loss", "Whole loss", "0.00"),
    ("learning_rate", "Learning rate", None),
    ("gradient_norm", "Gradient norm", "0.0[00]"),
    ("tokens_per_second", "Tokens per second", "0.[00]a"),
  ]
  if len(streams) == 1:  # the whole loss is the stream's own, times a constant
    wanted = wanted[1:]
  charts = (_small_chart(series(metrics, name), title, numerals) for name, title, numerals in wanted)
  return tuple(chart for chart in charts if chart)


def visual_gain_charts(metrics: Sequence[dict], streams: Sequence[str]) -> tuple[Chart, ...]:
  """What looking is worth as training goes on, against other examples' media and against none."""
  titles = {"other_media": "Against other examples' media", "no_media": "Against no media"}
  charts = []
  for rival, title in titles.items():
    lines = [(stream, series(metrics, f"visual_gain/{stream}/{rival}")) for stream in streams]
    colored = [(stream, line, stream_color(streams, stream)) for stream, line in lines if line]
    if colored:
      drawing = canvas(230)
      drawing.add_layout(Span(location=0, dimension="width", line_color=QUIET, line_dash="dashed", line_width=1))
      keys = tuple(_draw_dotted(drawing, *line) for line in colored)
      charts.append(Chart(title, "nats per token; below zero, looking helps", keys, drawing))
  return tuple(charts)


def gate_charts(metrics: Sequence[dict]) -> tuple[Chart, ...]:
  """How far each gated layer has opened: at the end, and over the steps."""
  layers = {kind: _gate_layers(metrics, kind) for kind, _ in GATES}
  present = [(kind, color) for kind, color in GATES if layers[kind]]
  if not present:
    return ()
  over_steps = (_gates_over_steps(metrics, kind, layers[kind]) for kind, _ in present)
  return (_final_gates(metrics, present, sorted(set().union(*layers.values()))), *over_steps)


def stream_color(streams: Sequence[str], stream: str) -> str:
  """The colour of a stream, the same in the whole report."""
  return STREAM_COLORS[list(streams).index(stream) % len(STREAM_COLORS)] if stream in streams else QUIET


def _loss_chart(metrics: Sequence[dict], stream: str) -> Chart | None:
  kind = "text_loss" if series(metrics, f"text_loss/{stream}") else "loss"
  raw = series(metrics, f"{kind}/{stream}")
  if not raw:
    return None
  drawing = canvas(280, numerals="0.0[0]")
  keys = _draw_raw_and_smooth(drawing, raw, TRAIN)
  for part, color, mark, label in (
    ("train", TRAIN, "ring", "fixed training batches"),
    ("heldout", HELD_OUT, "dot", "held-out"),
  ):
    points = series(metrics, f"{part}/{kind}/{stream}")
    if points:
      _draw_points(drawing, points, color, filled=mark == "dot")
      keys.append(Key(label, color, mark))
    baseline = latest(metrics, f"baseline/{part}/{kind}/{stream}")
    if is_finite(baseline):
      _draw_level(drawing, baseline, color, raw)
      keys.append(Key("frozen LM, held-out" if part == "heldout" else "frozen LM, training text", color, "dash"))
  note = "text tokens only, nats per token" if kind == "text_loss" else "loss of the objective"
  return Chart(stream, note, tuple(keys), drawing)


def _small_chart(line: Series, title: str, numerals: str | None) -> Chart | None:
  """Without `numerals` the line is a schedule: without noise to smooth, and too small to write without an exponent."""
  if not line:
    return None
  drawing = canvas(170, numerals=numerals)
  if numerals:
    _draw_raw_and_smooth(drawing, line, TRAIN)
  else:
    _draw_plain(drawing, line, TRAIN)
  return Chart(title, "", (), drawing)


def _gate_layers(metrics: Sequence[dict], kind: str) -> list[int]:
  prefix = f"gates/{kind}/"
  return sorted({int(name.removeprefix(prefix)) for line in metrics for name in line if name.startswith(prefix)})


def _final_gates(metrics: Sequence[dict], kinds: Sequence[tuple[str, str]], layers: Sequence[int]) -> Chart:
  drawing = canvas(230, x_range=[str(layer) for layer in layers], x_label="layer of the language model")
  drawing.xgrid.grid_line_color = None
  drawing.add_layout(Span(location=0, dimension="width", line_color=QUIET, line_width=1))
  for place, (kind, color) in enumerate(kinds):
    heights = [latest(metrics, f"gates/{kind}/{layer}") for layer in layers]
    shown = [(str(layer), height) for layer, height in zip(layers, heights, strict=True) if is_finite(height)]
    source = ColumnDataSource({"layer": [layer for layer, _ in shown], "gate": [height for _, height in shown]})
    shift = 0.36 * (place - (len(kinds) - 1) / 2)
    where = dodge("layer", shift, range=drawing.x_range)
    bars = drawing.vbar(x=where, top="gate", width=0.32, color=color, alpha=0.85, source=source)
    _hover(drawing, bars, [("layer", "@layer"), ("gate", "@gate{0.0000}")], mode="mouse")
  keys = tuple(Key(kind.replace("_", " "), color, "bar") for kind, color in kinds)
  return Chart("At the end, by layer", "tanh of the gate, 0 is closed", keys, drawing)


def _gates_over_steps(metrics: Sequence[dict], kind: str, layers: Sequence[int]) -> Chart:
  drawing = canvas(230)
  keys = []
  for layer, color in zip(layers, _depth_colors(len(layers)), strict=True):
    keys.append(_draw_dotted(drawing, f"layer {layer}", series(metrics, f"gates/{kind}/{layer}"), color))
  if len(keys) > 6:  # the colours run with depth, so the ends and the middle name the rest
    keys = [keys[0], keys[len(keys) // 2], keys[-1]]
  return Chart(f"Over the steps: {kind.replace('_', ' ')}", "tanh of the gate", tuple(keys), drawing)


def _depth_colors(count: int) -> list[str]:
  palette = Plasma256[80:205]
  return [palette[round(place)] for place in np.linspace(0, len(palette) - 1, count)]


def canvas(height: int, *, numerals: str | None = None, x_range=None, x_label: str = "step") -> figure:
  tools = "box_zoom,xwheel_zoom,reset,save"
  options = {} if x_range is None else {"x_range": x_range}
  drawing = figure(height=height, sizing_mode="stretch_width", tools=tools, active_drag=None, **options)
  drawing.toolbar.autohide, drawing.toolbar.logo = True, None
  drawing.background_fill_alpha = drawing.border_fill_alpha = 0
  drawing.outline_line_color = None
  drawing.min_border_right = 12
  drawing.grid.grid_line_color, drawing.grid.grid_line_alpha = QUIET, 0.18
  drawing.xaxis.axis_label = x_label
  drawing.axis.axis_label_text_font_style = "normal"
  drawing.axis.axis_label_standoff = 4
  drawing.axis.axis_line_color = drawing.axis.major_tick_line_color = None
  drawing.axis.minor_tick_line_color = None
  drawing.axis.major_label_text_color = drawing.axis.axis_label_text_color = QUIET
  drawing.axis.major_label_text_font_size = drawing.axis.axis_label_text_font_size = "11px"
  if x_range is None:
    drawing.xaxis.formatter = NumeralTickFormatter(format="0,0")
    drawing.xaxis.ticker.min_interval = 1  # there is no half a step
  if numerals:
    drawing.yaxis.formatter = NumeralTickFormatter(format=numerals)
  else:
    drawing.yaxis.formatter = BasicTickFormatter()  # as many digits as tell the ticks apart
  drawing.yaxis.ticker.desired_num_ticks = 5
  return drawing


def _draw_raw_and_smooth(drawing: figure, line: Series, color: str) -> list[Key]:
  source = smoothed_source(line)
  drawing.line("step", "raw", source=source, color=color, alpha=0.28, line_width=1)
  average = drawing.line("step", "smooth", source=source, color=color, line_width=2)
  _hover(drawing, average, [("step", "@step{0,0}"), ("value", "@raw{0.000a}"), ("smoothed", "@smooth{0.000a}")])
  return [Key("each step", color, "faint"), Key("smoothed", color, "line")]


def smoothed_source(line: Series) -> ColumnDataSource:
  """Columns step, raw and smooth of the points that are drawn; a page's slider finds it by its name."""
  thin = thin_out(len(line.steps))
  columns = {"step": line.steps, "raw": line.values, "smooth": smooth(line.values)}
  return ColumnDataSource({name: values[thin] for name, values in columns.items()}, name=SMOOTHED)


def _draw_plain(drawing: figure, line: Series, color: str) -> None:
  thin = thin_out(len(line.steps))
  labels = [f"{value:.3g}" for value in line.values[thin]]
  source = ColumnDataSource({"step": line.steps[thin], "value": line.values[thin], "label": labels})
  drawn = drawing.line("step", "value", source=source, color=color, line_width=2)
  _hover(drawing, drawn, [("step", "@step{0,0}"), ("value", "@label")])


def _draw_dotted(drawing: figure, label: str, line: Series, color: str) -> Key:
  source = ColumnDataSource({"step": line.steps, "value": line.values, "label": [label] * len(line.steps)})
  drawing.line("step", "value", source=source, color=color, line_width=2)
  dots = drawing.scatter("step", "value", source=source, color=color, size=5)
  _hover(drawing, dots, [("", "@label"), ("step", "@step{0,0}"), ("value", "@value{+0.0000}")], mode="mouse")
  return Key(label, color, "line")


def _draw_points(drawing: figure, points: Series, color: str, *, filled: bool) -> None:
  source = ColumnDataSource({"step": points.steps, "value": points.values})
  fill = {"fill_color": color} if filled else {"fill_alpha": 0}
  dots = drawing.scatter("step", "value", source=source, line_color=color, size=7, line_width=1.5, **fill)
  _hover(
    drawing, dots, [("step", "@step{0,0}"), ("held-out" if filled else "fixed batches", "@value{0.000}")], mode="mouse"
  )


def _draw_level(drawing: figure, level: float, color: str, line: Series) -> None:
  """A dashed line; drawn as data, not as a span, so that the axis always takes it in."""
  drawing.line(line.steps[[0, -1]], [level, level], color=color, line_dash=[6, 4], line_width=1.5, alpha=0.9)


def _hover(drawing: figure, drawn, rows: list[tuple[str, str]], mode: str = "vline") -> None:
  drawing.add_tools(HoverTool(renderers=[drawn], tooltips=rows, mode=mode, visible=False))


def thin_out(count: int) -> np.ndarray:
  """Which of so many points to draw: evenly spread, always the first and the last."""
  return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
