"""One record, token by token, as its stream reads it: under the draws of a training step, or under all possible ones.

Nothing is worked out anew here: tokens, weights and media come from `Stream.text`, which batches are made with.
"""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.media import DECODE_ERRORS, FORMATS, MediaError, picture_format
from data_pipelines.schema import Example
from data_pipelines.sequences import Row, document, windows
from data_pipelines.stream import Stream, TextDraw
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError

PREVIOUS, NEXT = "previous", "next"  # the two phi (paper, section A.3.1)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a training step reads a record.

  Attributes:
    row: of the step's global batch.
    position: of that row, counted from the first step.
    slot: the record's number in a packed row, which is its media slot too; else 0.
    start: the record's first token in the row.
    room: tokens, at most.
  """

  row: int
  position: int
  slot: int
  start: int
  room: int


@dataclasses.dataclass(frozen=True)
class Medium:
  """One of a record's media.

  Attributes:
    slot: of the row that it fills; None: it is not in the row, and `absent` says why.
    format: of the file, its size and what is read of it; or the cause for which it cannot be.
    broken: whether it cannot.
    readers: how many learnt tokens of text see it, by draw.
  """

  number: int
  slot: int | None
  absent: str
  format: str
  broken: bool
  readers: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What a stream makes of a record; arrays have one entry a token.

  Attributes:
    place: None: no step is meant.
    draws: by whether tokens see the previous medium or the next.
    chances: how likely each of them is; one that a step made has 1.
    first: the window's first token on its page.
    whole: tokens of the page, or of the pair before it is cut.
    sees: the media slot that each token sees, by draw; -1: none.
  """

  shard: str
  record: int
  source: str
  license: str
  place: Place | None
  draws: dict[str, TextDraw]
  chances: dict[str, float]
  first: int
  whole: int
  tokens: np.ndarray
  pieces: tuple[str, ...]
  weights: np.ndarray
  sees: dict[str, np.ndarray]
  media: tuple[Medium, ...]

  def as_json(self) -> dict[str, Any]:
    """The same, of plain values."""
    columns = {name: index.tolist() for name, index in self.sees.items()}
    rows = zip(self.tokens.tolist(), self.pieces, self.weights.tolist(), *columns.values(), strict=True)
    tokens = [
      dict(id=token, text=piece, loss_weight=weight, sees=dict(zip(columns, seen, strict=True)))
      for token, piece, weight, *seen in rows
    ]
    plain = {
      name: getattr(self, name) for name in ("shard", "record", "source", "license", "chances", "first", "whole")
    }
    others = dict(
      place=self.place and dataclasses.asdict(self.place),
      draws={name: dataclasses.asdict(drawn) for name, drawn in self.draws.items()},
      media=[dataclasses.asdict(medium) for medium in self.media],
    )
    return plain | others | dict(tokens=tokens)


def places(stream: Stream, index: int, step: int) -> list[Place]:
  """Where a step, counted from 1 as in metrics.jsonl, reads a record. Of a small set it may be read several times."""
  size = stream.config.batch_size
  positions = np.arange((step - 1) * size, step * size)
  found = []
  for row, (position, records) in enumerate(zip(positions.tolist(), stream.records(positions), strict=True)):
    start = 0
    for slot, (record, room) in enumerate(records):
      if record == index:
        found.append(Place(row, position, slot, start, room))
      start += room
  return found


def explain_place(stream: Stream, index: int, place: Place) -> Explanation:
  """A record under what was drawn for it at a place. Raises UserError when the stream leaves it out."""
  drawn = stream.text_draw((stream.seed, place.position, place.slot))
  name = NEXT if drawn.see_next else PREVIOUS
  return explain(stream, index, {name: drawn}, {name: 1.0}, place)


def explain_all(stream: Stream, index: int, start: float) -> Explanation:
  """A record under every draw that its stream may make of which medium is seen.

  Args:
    stream: of it.
    index: of the record.
    start: of a page, in [0, 1): which of its windows is meant.

  Raises UserError when the stream leaves it out.
  """
  chances = possible(stream)
  draws = {name: TextDraw(start=start, see_next=name == NEXT) for name in chances}
  return explain(stream, index, draws, chances, None)


def possible(stream: Stream) -> dict[str, float]:
  """How likely either phi is; one that never is used is left out."""
  if stream.config.layout != "interleaved" or not stream.training:
    return {PREVIOUS: 1.0}
  chances = {PREVIOUS: 1 - stream.config.p_next, NEXT: stream.config.p_next}
  return {name: chance for name, chance in chances.items() if chance > 0}


def explain(
  stream: Stream, index: int, draws: Mapping[str, TextDraw], chances: Mapping[str, float], place: Place | None
) -> Explanation:
  """A record under draws that differ in which medium is seen, and in nothing else."""
  shard, record = stream.sources.where(index)
  room, slot = (place.room, place.slot) if place else (stream.config.length, 0)
  try:
    example = stream.example(index)
    rows = {name: stream.text(example, drawn, room) for name, drawn in draws.items()}
  except MediaError as error:
    raise UserError(f"{shard}:{record} is left out of the stream: {error.cause} ({error.detail}).") from error
  one, drawn = next(iter(rows.values())), next(iter(draws.values()))
  page = whole_text(stream, example, drawn)
  first = int(drawn.start * windows(page, room)) if stream.config.layout != "pairs" else 0
  weights = stream.weights(one)
  readers = {name: text_readers(row, weights, stream.tokenizer) for name, row in rows.items()}
  return Explanation(
    shard=shard,
    record=record,
    source=example.source,
    license=example.license,
    place=place,
    draws=dict(draws),
    chances=dict(chances),
    first=first,
    whole=len(page),
    tokens=one.tokens,
    pieces=tuple(stream.tokenizer.pieces(one.tokens)),
    weights=weights,
    sees={name: np.where(row.media_index < 0, -1, row.media_index + slot) for name, row in rows.items()},
    media=tuple(media(stream, example, one, slot, readers, page[first : first + room - 1])),
  )


def whole_text(stream: Stream, example: Example, drawn: TextDraw) -> list[int]:
  """All tokens of a page, a pair or a document, without <BOS>."""
  if stream.config.layout == "interleaved":
    return document(stream.chunks(example), stream.tokenizer)
  unlimited = np.iinfo(np.int32).max
  return stream.text(example, drawn, unlimited).tokens[1:].tolist()


def text_readers(row: Row, weights: np.ndarray, tokenizer: Tokenizer) -> list[int]:
  """How many learnt tokens of text see each medium of a row; `<EOC>` and the like are no text."""
  marks = (tokenizer.image, tokenizer.end_of_chunk, tokenizer.bos, tokenizer.eos)
  learnt = (weights > 0) & ~np.isin(row.tokens, marks)
  return np.bincount(row.media_index[learnt & (row.media_index >= 0)], minlength=len(row.media)).tolist()


def media(stream: Stream, example: Example, row: Row, slot: int, readers: Mapping[str, list[int]], window: list[int]):
  """Every medium of a record, whether the row has it or not."""
  first = row.media[0] if row.media else None
  inside = window.count(stream.tokenizer.image)
  for number in range(len(example.media)):
    found, broken = look(stream, example, number)
    if number in row.media:
      own = row.media.index(number)
      yield Medium(number, slot + own, "", found, broken, {name: counts[own] for name, counts in readers.items()})
      continue
    beyond = first is not None and row.media[-1] < number < first + inside
    absent = f"beyond the first {len(row.media)} of the window" if beyond else "outside the window"
    yield Medium(number, None, absent, found, broken, dict.fromkeys(readers, 0))


def look(stream: Stream, example: Example, number: int) -> tuple[str, bool]:
  """A medium in words, and whether it cannot be used."""
  encoded = example.media[number]
  what = f"{file_format(encoded)}, {len(encoded):,} bytes"
  try:
    frames = stream.read_frames(example, number)
  except MediaError as error:
    return f"{what}: {error.cause} ({error.detail})", True
  if stream.features is not None:
    return f"features of {len(frames)} of {stream.features.frames} frames", False
  count, height, width, _ = frames.shape
  return f"{what}, read as {width} x {height}" + f", {count} frames" * (stream.config.medium == "video"), False


def file_format(encoded: bytes) -> str:
  """As "PNG 320 x 240"; of what is no picture, "file"."""
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
      return f"{picture_format(picture)} {picture.width} x {picture.height}"
  except (*DECODE_ERRORS, Image.DecompressionBombError):
    return "file"
