"""The page of a report: what a run did in, one HTML string out.

The page needs no network and takes none: scripts, styles and pictures are inside it, and its content security policy
forbids the rest. Whatever the run read or wrote is escaped.
"""

import base64
import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from PIL import Image

from launch.report import curves
from launch.report.templates import template

SPECIAL = ("<image>", "<EOC>", "<BOS>", "<EOS>")
MEDIA_COLORS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#8e63ce", "#d1495b", "#2a9aa8", "#9a6b45", "#c2559d")
LONGEST_SIDE = 160
NEGLIGIBLE = 0.005  # nats per token: a smaller difference is not called one
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class TrainingExample:
  """What the model sees in one row of a batch, padding removed.

  `tokens` are decoded pieces, one a token; special tokens are "<image>", "<EOC>", "<BOS>". `media_index` is the slot
  each token attends to, -1 for none. `media` holds uint8 [F, H, W, 3] for each slot; a still picture has one frame.

  Raises:
    ValueError: the fields disagree in length, a token attends to a slot out of reach, or media are not such arrays.
  """

  stream: str
  tokens: tuple[str, ...]
  loss_weights: tuple[float, ...]
  media_index: tuple[int, ...]
  media: tuple[np.ndarray, ...]

  def __post_init__(self):
    counts = (len(self.tokens), len(self.loss_weights), len(self.media_index))
    if len(set(counts)) != 1:
      raise ValueError("{} tokens, {} loss weights, {} media indices: give one of each a token.".format(*counts))
    outside = [slot for slot in self.media_index if not -1 <= slot < len(self.media)]
    if outside:
      raise ValueError(f"a token attends to media slot {outside[0]}, but there are {len(self.media)} slots.")
    _check_media(self.media)


@dataclass(frozen=True)
class Generation:
  """One sampled continuation, beside the truth and beside what the model writes when it is shown nothing.

  `step` is that of the checkpoint; `earlier` has (step, text) of those before it, oldest first.

  Raises:
    ValueError: media are not uint8 [F, H, W, 3].
  """

  stream: str
  prompt: str
  media: tuple[np.ndarray, ...]
  text: str
  reference: str
  without_media: str
  step: int = 0
  earlier: tuple[tuple[int, str], ...] = ()

  def __post_init__(self):
    _check_media(self.media)


@dataclass(frozen=True)
class ParameterRow:
  """How many parameters a part of the model has, trained and frozen."""

  part: str
  trained: int
  frozen: int


@dataclass(frozen=True)
class Report:
  """Everything a report shows.

  `metrics` are the lines of metrics.jsonl, `config` is YAML, `facts` head the page; `missing` is why a section is.
  """

  title: str
  metrics: list[dict]
  examples: tuple[TrainingExample, ...]
  generations: tuple[Generation, ...]
  parameters: tuple[ParameterRow, ...]
  config: str
  streams: tuple[str, ...]
  facts: dict[str, str]
  missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
  """A column of the headline table: one value a stream, None where it was not measured."""

  group: str
  label: str
  values: tuple[float | None, ...]
  is_change: bool = False


@dataclass(frozen=True)
class Piece:
  """A stretch of text that is drawn alike."""

  text: str
  special: bool
  carries_loss: bool = True


@dataclass(frozen=True)
class Run:
  """A stretch of tokens that attend to the same media slot."""

  slot: int
  pieces: tuple[Piece, ...]


def render(report: Report) -> str:
  """Writes the report as one HTML document that needs nothing beside it; sections without data are left out."""
  metrics, streams = report.metrics, report.streams
  charts = {
    "loss": curves.loss_charts(metrics, streams),
    "progress": curves.progress_charts(metrics, streams),
    "gain": curves.visual_gain_charts(metrics, streams),
    "gates": curves.gate_charts(metrics),
  }
  scripts, places = curves.embed([chart for group in charts.values() for chart in group])
  remaining = iter(places)  # Bokeh's own HTML, as the scripts are; it escapes what it was given
  placed = {name: [(chart, Markup(next(remaining))) for chart in group] for name, group in charts.items()}  # nosec B704
  filters = dict(number=_number, change=_change, direction=_direction, picture=picture, text_pieces=text_pieces)
  return template("page.html.j2", **filters).render(
    report=report,
    charts=placed,
    scripts=Markup(scripts),  # nosec B704
    sources=curves.smoothed_sources([*charts["loss"], *charts["progress"]]),
    share=100 / curves.SMOOTHING,
    headline=headline(metrics, streams),
    beside_baseline=bool(_against_baseline(metrics, streams)),
    readings=[(stream, text) for stream in streams if (text := reading(metrics, stream))],
    negligible=NEGLIGIBLE,
    examples=[(example, token_runs(example)) for example in report.examples],
    skipped=skipped(metrics, streams) if metrics else [],
    total=ParameterRow("total", sum(r.trained for r in report.parameters), sum(r.frozen for r in report.parameters)),
    media_colors=MEDIA_COLORS,
    stream_color=curves.stream_color,
  )


def headline(metrics: Sequence[dict], streams: Sequence[str]) -> list[Column]:
  """The columns that have a value for some stream: against the frozen LM where it was measured, else start and end."""
  columns = _against_baseline(metrics, streams)
  if not columns:
    columns = _start_and_end(metrics, streams)
  for rival, label in (("other_media", "vs others' media"), ("no_media", "vs no media")):
    gains = tuple(curves.latest(metrics, f"visual_gain/{stream}/{rival}") for stream in streams)
    columns.append(Column("Visual gain", label, gains, is_change=True))
  return [column for column in columns if any(value is not None for value in column.values)]


def reading(metrics: Sequence[dict], stream: str) -> str:
  """One or two plain sentences on what the numbers of a stream say; empty where nothing was measured."""
  other, none = (curves.latest(metrics, f"visual_gain/{stream}/{rival}") for rival in ("other_media", "no_media"))
  return " ".join(filter(None, (_looking(other, none), _carry_over(metrics, stream))))


def token_runs(example: TrainingExample) -> tuple[Run, ...]:
  """Cuts the tokens where the medium they attend to changes, and within that where they are drawn differently."""
  rows = zip(example.media_index, example.tokens, example.loss_weights, strict=True)
  runs = itertools.groupby(rows, key=lambda row: row[0])
  return tuple(Run(slot, tuple(_pieces((token, weight != 0) for _, token, weight in row))) for slot, row in runs)


def text_pieces(text: str) -> tuple[Piece, ...]:
  """Cuts special tokens out of plain text."""
  parts = re.split("({})".format("|".join(map(re.escape, SPECIAL))), text)
  return tuple(Piece(part, part in SPECIAL) for part in parts if part)


def picture(frame: np.ndarray, longest: int = LONGEST_SIDE) -> str:
  """A frame as a data: URI, at most `longest` pixels wide and high, as JPEG or PNG, whichever is smaller."""
  image = Image.fromarray(frame)
  image.thumbnail((longest, longest))
  encodings = {kind: io.BytesIO() for kind in ("jpeg", "png")}
  image.save(encodings["jpeg"], "JPEG", quality=85)
  image.save(encodings["png"], "PNG", optimize=True)
  kind, data = min(((kind, buffer.getvalue()) for kind, buffer in encodings.items()), key=lambda item: len(item[1]))
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def skipped(metrics: Sequence[dict], streams: Sequence[str]) -> list[tuple[str, list[tuple[str, int]]]]:
  """The records each stream left out, by cause, most frequent first: each line of the log counts its own step."""
  names = sorted({name for line in metrics for name in line if name.startswith("skipped/")})
  counts = [(*name.split("/", 2)[1:], sum(int(line.get(name, 0)) for line in metrics)) for name in names]
  rows = {stream: [] for stream in streams}
  for stream, cause, count in counts:
    if count:
      rows.setdefault(stream, []).append((cause, count))
  return [(stream, sorted(causes, key=lambda item: -item[1])) for stream, causes in rows.items()]


def _against_baseline(metrics: Sequence[dict], streams: Sequence[str]) -> list[Column]:
  columns = []
  for group, part in (("Training text", "train"), ("Held-out text", "heldout")):
    before = tuple(curves.latest(metrics, f"baseline/{part}/text_loss/{stream}") for stream in streams)
    after = tuple(curves.latest(metrics, f"{part}/text_loss/{stream}") for stream in streams)
    change = tuple(_difference(new, old) for new, old in zip(after, before, strict=True))
    columns += [Column(group, "frozen LM", before), Column(group, "trained", after)]
    columns += [Column(group, "change", change, is_change=True)]
  return columns if any(value is not None for column in columns for value in column.values) else []


def _start_and_end(metrics: Sequence[dict], streams: Sequence[str]) -> list[Column]:
  columns = []
  for group, prefix, once in (("Training loss", "", "step"), ("Held-out loss", "heldout/", "evaluation")):
    found = [curves.series(metrics, f"{prefix}loss/{stream}") for stream in streams]
    ends = [tuple(float(line.values[end]) if line else None for line in found) for end in (0, -1)]
    if any(len(line.steps) > 1 for line in found):
      columns.append(Column(group, f"first {once}", ends[0]))
    columns.append(Column(group, f"last {once}", ends[1]))
  return columns


def _difference(new: float | None, old: float | None) -> float | None:
  return None if new is None or old is None else new - old


def _looking(other: float | None, none: float | None) -> str:
  """Says whether looking pays, from the gains over other examples' media and over none (negative: it does)."""
  known = [(gain, rival) for gain, rival in ((other, "other examples' media"), (none, "no media")) if gain is not None]
  if not known or not all(math.isfinite(gain) for gain, _ in known):
    return ""
  helps = [gain < -NEGLIGIBLE for gain, _ in known]
  if all(helps):
    verdict = "Looking helps" if other is not None else "Having media helps"
  elif not any(helps):
    verdict = "Looking does not help"
  elif other < -NEGLIGIBLE:
    verdict = "It tells its own media from others', yet does no better than with none"
  else:
    verdict = "Having media helps, but what they show does not"
  return f"{verdict}: held-out loss is {' and '.join(_compared(gain, rival) for gain, rival in known)}."


def _compared(gain: float, rival: str) -> str:
  if abs(gain) <= NEGLIGIBLE:
    return f"the same as with {rival}"
  return f"{abs(gain):.3f} {'lower' if gain < 0 else 'higher'} than with {rival}"


def _carry_over(metrics: Sequence[dict], stream: str) -> str:
  """Says so when what was gained on the training text is not there on held-out text."""
  changes = [
    _difference(curves.latest(metrics, name), curves.latest(metrics, f"baseline/{name}"))
    for name in (f"train/text_loss/{stream}", f"heldout/text_loss/{stream}")
  ]
  if not all(map(curves.is_finite, changes)) or changes[0] >= -NEGLIGIBLE or changes[1] < -NEGLIGIBLE:
    return ""
  return "The gain on training text does not carry over to held-out text."


def _pieces(tokens: Iterable[tuple[str, bool]]) -> Iterable[Piece]:
  """Joins neighbouring tokens that are drawn alike; each special token stays its own."""
  for (special, carries_loss), group in itertools.groupby(tokens, key=lambda token: (token[0] in SPECIAL, token[1])):
    texts = [text for text, _ in group]
    for text in texts if special else ["".join(texts)]:
      yield Piece(text, special, carries_loss)


def _check_media(media: Sequence[np.ndarray]) -> None:
  for slot, frames in enumerate(media):
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
      raise ValueError(f"media slot {slot} is {frames.dtype}{list(frames.shape)}; a report takes uint8 [F, H, W, 3].")


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}"


def _change(value: float | None) -> str:
  return "" if value is None else f"{value:+.3f}".replace("-", MINUS)


def _direction(value: float | None) -> str:
  """The class of a change in a loss: down is good, and a value that is not finite never."""
  if value is None or abs(value) <= NEGLIGIBLE:
    return "level"
  return "better" if value < 0 and math.isfinite(value) else "worse"
