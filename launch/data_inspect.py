"""`flamingo data inspect`: a page, without a network, of what the model will see of each stream."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import jinja2
import numpy as np

from data_pipelines.faults import Fault
from data_pipelines.inspection.rows import Document, SeenRow, seen_rows
from data_pipelines.stream import Stream, decoding_pool
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from launch.data_streams import check_step, open_experiment, open_stream
from launch.report.curves import stream_color
from launch.report.page import MEDIA_COLORS, Run, TrainingExample, picture, token_runs
from launch.report.templates import write_page

LONGEST_SIDE = 320  # of a picture on the page, pixels


@dataclasses.dataclass(frozen=True)
class Slot:
  """A media slot of a row.

  Attributes:
    number: as in `media_index`.
    medium: its number in the record.
    frames: uint8 [F, H, W, 3], those that exist; features have none to show.
    fault: why it is empty.
    readers: how many learnt tokens see it.
  """

  number: int
  medium: int
  frames: np.ndarray | None
  fault: Fault | None
  readers: int


@dataclasses.dataclass(frozen=True)
class Stretch:
  """Tokens of a row that are drawn alike on its map."""

  start: int
  length: int
  value: float


@dataclasses.dataclass(frozen=True)
class Card:
  """A row on the page; `texts` go with the row's documents, `lanes` have a stretch for all L tokens."""

  step: int
  row: int
  seen: SeenRow
  slots: tuple[Slot, ...]
  texts: tuple[tuple[Run, ...], ...]
  lanes: dict[str, tuple[Stretch, ...]]

  @property
  def filled(self) -> int:
    return int((self.seen.arrays["segments"] > 0).sum())

  @property
  def learnt(self) -> int:
    return int((self.seen.arrays["loss_weights"] > 0).sum())


@dataclasses.dataclass(frozen=True)
class Gallery:
  """The rows of one stream."""

  name: str
  stream: Stream
  cards: tuple[Card, ...]

  @property
  def tokens(self) -> int:
    return len(self.cards) * self.stream.config.length

  @property
  def filled(self) -> float:
    """Share of the tokens that are not padding."""
    return sum(card.filled for card in self.cards) / self.tokens

  @property
  def learnt(self) -> float:
    return sum(card.learnt for card in self.cards) / self.tokens

  @property
  def faults(self) -> list[Fault]:
    return [fault for card in self.cards for fault in card.seen.faults]


def inspect_data(
  path: str, overrides: dict[str, str], names: list[str], *, step: int, rows: int, output: str
) -> pathlib.Path:
  """Writes the page and returns its path.

  Args:
    path: of the config.
    overrides: of its fields.
    names: which of its streams; empty: all.
    step: whose batches are shown, from 1.
    rows: of each stream, from the batch's first on; more than it has go on in the next batch.
    output: the file to write.

  Raises:
    UserError: the config has no such stream, a number is out of range, or the file cannot be written.
  """
  check_step(step)
  if rows < 1:
    raise UserError(f"--rows is {rows}; it is at least 1.")
  experiment = open_experiment(path, overrides, names)
  galleries = []
  with decoding_pool() as pool:
    for name in experiment.stream_configs:
      stream = open_stream(experiment, name, "train")
      seen = seen_rows(stream, (step - 1) * stream.config.batch_size, rows, pool)
      galleries.append(Gallery(name, stream, tuple(card(stream, each) for each in seen)))
  facts = {
    "config": path,
    "steps from": f"{step:,}",
    "seed": str(experiment.training.seed),
    "tokenizer": experiment.tokenizer_config.path,
  }
  return write_page(pathlib.Path(output), render(galleries, facts))


def card(stream: Stream, seen: SeenRow) -> Card:
  step, row = divmod(seen.position, stream.config.batch_size)
  arrays = seen.arrays
  lanes = dict(document=arrays["segments"], sees=arrays["media_index"], loss=arrays["loss_weights"])
  return Card(
    step=step + 1,
    row=row,
    seen=seen,
    slots=tuple(slots(stream, seen)),
    texts=tuple(runs(seen, document, stream.tokenizer) for document in seen.documents),
    lanes={name: tuple(stretches(values)) for name, values in lanes.items()},
  )


def slots(stream: Stream, seen: SeenRow) -> Iterator[Slot]:
  """The slots that the row's documents fill, or would have filled."""
  arrays = seen.arrays
  for document in seen.documents:
    for number, medium in enumerate(document.media, document.slot):
      exists = arrays["media_mask"][number]
      frames = arrays["media"][number][exists] if stream.features is None and exists.any() else None
      readers = int(((arrays["media_index"] == number) & (arrays["loss_weights"] > 0)).sum())
      yield Slot(number, medium, frames, seen.medium_fault(number), readers)


def runs(seen: SeenRow, document: Document, tokenizer: Tokenizer) -> tuple[Run, ...]:
  """The text of a document, cut where what it sees changes."""
  arrays = seen.arrays
  own = arrays["segments"] == document.segment
  index = arrays["media_index"][own]
  example = TrainingExample(
    stream="",
    tokens=tuple(tokenizer.pieces(arrays["tokens"][own])),
    loss_weights=tuple(arrays["loss_weights"][own].tolist()),
    media_index=tuple(index.tolist()),
    media=(np.zeros((1, 1, 1, 3), np.uint8),) * (int(index.max(initial=-1)) + 1),  # shown apart
  )
  return token_runs(example)


def stretches(values: np.ndarray) -> Iterator[Stretch]:
  """Equal neighbours of [L] as one."""
  start = 0
  for value, group in itertools.groupby(values.tolist()):
    length = len(list(group))
    yield Stretch(start, length, value)
    start += length


def render(galleries: Sequence[Gallery], facts: dict[str, str]) -> str:
  """The page as one HTML document that needs nothing beside it; all that comes from the data is escaped."""
  here = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([here, here / "report"]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["picture"] = lambda frame: picture(frame, LONGEST_SIDE)
  names = [gallery.name for gallery in galleries]
  return environment.get_template("data_inspect.html.j2").render(
    galleries=galleries,
    facts=facts,
    media_colors=MEDIA_COLORS,
    colors={name: stream_color(names, name) for name in names},
  )
