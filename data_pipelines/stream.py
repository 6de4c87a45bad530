"""A stream: from stored records to an endless sequence of batches, where batch s is a function of (seed, s) alone.

Row positions count up forever. The schedule (data_pipelines/sources.py) says which source stands at a position, and for
which time; time t of a source is place t mod n of its epoch t div n, and each epoch is a seeded permutation computed in
O(1). Randomness of windows and augmentation is keyed by (seed, position, slot). Nothing has to be saved to resume, and
a host reads its own rows of the global batch without knowing how many other hosts there are.

A packed stream is the same with rows in the place of records: the plan of each source (data_pipelines/packing.py) makes
every epoch of equally many rows.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from data_pipelines.clips import read_clip
from data_pipelines.faults import Fault, encode_faults
from data_pipelines.features import DTYPES, FeaturesInfo, decode_features, features_info
from data_pipelines.lengths import document_lengths, pair_lengths
from data_pipelines.media import Crop, MediaError, flip, jitter, pad_into, read_image
from data_pipelines.packing import NOBODY, Plan, make_plan
from data_pipelines.randomness import draw, shuffled
from data_pipelines.schema import Example, parse
from data_pipelines.sequences import Row, document_text, page_row, pair_row, prompted, text_row
from data_pipelines.shards import Shards
from data_pipelines.sources import Schedule, Sources, make_schedule
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.ops.labels import chunk_weights

Batch = dict[str, np.ndarray]
Pool = concurrent.futures.Executor
ALIGNMENT = 64  # bytes
AT_ONCE = 8  # rows that a thread takes, at most
UNCHANGED = (0.0,) * 8  # chances of a medium where nothing is drawn for it


@dataclasses.dataclass(frozen=True)
class TextDraw:
  """All that is random of how a record's text is read.

  Attributes:
    start: of a page or a document, in [0, 1), where the window starts among all its possible places.
    see_next: of a page, whether tokens attend to the next medium rather than to the previous one.
    space: of a pair, whether a space stands before the caption; with a prompt, one always does.
  """

  start: float = 0.0
  see_next: bool = False
  space: bool = False


@dataclasses.dataclass(frozen=True)
class Shown:
  """The media of a record whose text stands in a row.

  Attributes:
    index: of the record.
    example: the record.
    media: which of its media fill slots `slot`, `slot` + 1, ...
    slot: the first.
    key: of all that is drawn for the record.
  """

  index: int
  example: Example
  media: tuple[int, ...]
  slot: int
  key: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stream:
  """Records, and all that turns them into batches. `training` turns p_next, clips and augmentation random."""

  config: StreamConfig
  sources: Sources
  tokenizer: Tokenizer
  image_size: int
  seed: int
  training: bool

  def batches(
    self, start: int = 0, *, own: Sequence[int] = (0,), parts: int = 1, pool: Pool | None = None
  ) -> Iterator[Batch]:
    """Batches start, start + 1, ...: this host's rows of each, as numpy arrays (docs/batch.md).

    Args:
      start: the first step.
      own: the parts of each batch that are read; their rows follow each other.
      parts: that a batch is cut into.
      pool: whose threads read and decode, however many; None: one of its own.

    Raises:
      UserError: the global batch does not divide by the number of parts, or there are no lengths to plan rows from.
    """
    rows = self.own_rows(own, parts)
    _ = self.plans  # made here, since TensorFlow would pass on no error as what it is
    shapes = {name: (dtype, (len(rows), *shape)) for name, (dtype, shape) in self.shapes().items()}
    pool = pool or decoding_pool()

    def read(step: np.ndarray) -> list[np.ndarray]:
      batch = self.batch(int(step) * self.config.batch_size + rows, pool)
      return [batch[name] for name in shapes]

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
      arrays = tf.numpy_function(read, [step], [dtype for dtype, _ in shapes.values()])
      for array, (_, shape) in zip(arrays, shapes.values(), strict=True):
        array.set_shape(shape)
      return dict(zip(shapes, arrays, strict=True))

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    # Two at once: while the last rows of one batch are decoded, the other threads are at the next.
    batches = steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    options.autotune.enabled = False  # there is nothing to tune, and its thread can hold up the end by 20 seconds
    return batches.with_options(options).as_numpy_iterator()

  def once(self, most: int, *, own: Sequence[int] = (0,), parts: int = 1) -> Iterator[Batch]:
    """Batches in which no row comes twice: sources take turns as ever, and one whose epoch is over has none any more.

    Args:
      most: how many batches, if there are rows for them; the last one is filled up with empty rows.
      own: the parts of each batch that are read, as of `batches`.
      parts: that a batch is cut into.

    Raises:
      UserError: as `batches` does.
    """
    rows, size = self.own_rows(own, parts), self.config.batch_size
    counts = np.minimum(self.source_rows, most * size)
    firsts = [self.schedule.positions(source, count) for source, count in enumerate(counts.tolist())]
    positions = np.sort(np.concatenate(firsts))[: most * size]
    whole = np.pad(positions, (0, -len(positions) % size), constant_values=NOBODY)
    with decoding_pool() as pool:
      for batch in whole.reshape(-1, size):
        yield self.batch(batch[rows], pool)

  def own_rows(self, own: Sequence[int], parts: int) -> np.ndarray:
    """The numbers of this host's rows in each batch. Raises UserError where a batch does not divide by the parts."""
    size = self.config.batch_size
    if size % parts:
      raise UserError(f"A batch of {size} rows does not divide into {parts} parts; choose a multiple of {parts}.")
    return np.arange(size).reshape(parts, -1)[list(own)].ravel()

  def batch(self, positions: np.ndarray, pool: Pool) -> Batch:
    """The rows at some positions, int64 [B], read by the threads of a pool; at NOBODY, an empty one."""
    batch = self.empty(len(positions))
    records = self.records(positions)

    def fill(numbers: range) -> list[bytes]:
      rows = [{name: array[number] for name, array in batch.items()} for number in numbers]
      faults = self.fill_rows(rows, positions[numbers].tolist(), [records[number] for number in numbers])
      return [encode_faults(each) for each in faults]

    numbers = range(len(positions))
    at_once = max(min(len(numbers) // cores(), AT_ONCE), 1)
    parts = [numbers[first : first + at_once] for first in numbers[::at_once]]
    batch["faults"] = np.array([faults for part in pool.map(fill, parts) for faults in part], object)
    return batch

  def rows(self) -> Iterator[Batch]:
    """Every record once, in plain order, one row each, even if the stream is packed."""
    for index in range(len(self.sources)):
      row = {name: array[0] for name, array in self.empty(1).items()}
      [faults] = self.fill_rows([row], [index], [[(index, self.config.length)]])
      yield row | dict(faults=np.array(encode_faults(faults), object))

  @functools.cached_property
  def plans(self) -> tuple[Plan, ...]:
    """How the records of each source share rows; of a stream that is not packed, none."""
    if not self.config.pack:
      return ()
    return tuple(make_plan(self.lengths(part), self.config.length, self.config.media) for part in self.sources.parts)

  def lengths(self, part: Shards) -> np.ndarray:
    """Tokens of the row of each record, before they are cut, int32 [records]."""
    if self.config.layout == "text":
      return document_lengths(part, self.tokenizer)
    return pair_lengths(part, self.tokenizer, self.config.prompt)

  @functools.cached_property
  def schedule(self) -> Schedule:
    return make_schedule(self.config.shares or (1,) * len(self.sources.parts))

  @property
  def source_rows(self) -> list[int]:
    """Of each source, the rows of an epoch."""
    return [plan.rows for plan in self.plans] if self.plans else [len(part) for part in self.sources.parts]

  @property
  def epoch_rows(self) -> int:
    """Rows in which, of a single source, every record occurs once."""
    return sum(self.source_rows)

  def records(self, positions: np.ndarray) -> list[list[tuple[int, int]]]:
    """The records of each row, and how many tokens each has room for.

    The order of a source's rows is anew in each epoch.

    Args:
      positions: int64 [B]; at NOBODY there are no records.
    """
    there = np.flatnonzero(positions != NOBODY)
    sources, times = self.schedule.at(positions[there])
    counts = np.asarray(self.source_rows)[sources]
    epochs = times // counts * len(self.sources.parts) + sources  # no two sources have one order
    rows = shuffled(times % counts, counts, self.seed, epochs)
    records: list[list[tuple[int, int]]] = [[] for _ in positions]
    for source in np.unique(sources).tolist():
      own = sources == source
      for number, row in zip(there[own], self.records_of(source, rows[own], epochs[own]), strict=True):
        records[number] = row
    return records

  def records_of(self, source: int, rows: np.ndarray, epochs: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """The same, for rows of one source, int64 [n], by their numbers in its epochs."""
    first = self.sources.first(source)
    if not self.plans:
      yield from ([(first + row, self.config.length)] for row in rows.tolist())
      return
    plan = self.plans[source]
    for places in plan.places(rows, self.seed, epochs):
      yield [(first + int(record), int(plan.rooms[record])) for record in plan.order[places[places != NOBODY]]]

  def shapes(self) -> dict[str, tuple[type | np.dtype, tuple[int, ...]]]:
    """Dtype and shape of every part of a row."""
    length, media = (self.config.length,), (self.config.slots, self.config.frames)
    dtype, frame = self.frame_shape()
    return dict(
      tokens=(np.int32, length),
      loss_weights=(np.float32, length),
      segments=(np.int32, length),
      media=(dtype, (*media, *frame)),
      media_mask=(np.bool_, media),
      media_index=(np.int32, length),
      faults=(np.object_, ()),
    )

  def frame_shape(self) -> tuple[type | np.dtype, tuple[int, ...]]:
    """Dtype and shape of one frame: pixels [H, W, 3] or features [S, V]."""
    if self.features is None:
      return np.uint8, (self.image_size, self.image_size, 3)
    return DTYPES[self.features.dtype], (self.features.positions, self.features.width)

  @functools.cached_property
  def features(self) -> FeaturesInfo | None:
    """What the shards say of their media, if those are features, and are read."""
    if self.config.layout == "text":
      return None
    return features_info(self.sources.parts[0].manifest)

  def empty(self, rows: int) -> Batch:
    """So many rows of padding."""
    batch = {name: aligned_zeros((rows, *shape), dtype) for name, (dtype, shape) in self.shapes().items()}
    batch["media_index"] -= 1
    return batch

  def fill_rows(
    self, rows: Sequence[Batch], positions: Sequence[int], records: Sequence[Sequence[tuple[int, int]]]
  ) -> list[list[Fault]]:
    """Writes into empty rows what each has of records: one, or several side by side.

    A record that cannot be used leaves its tokens empty, a medium that cannot its slot, and nothing else moves, so that
    the batch at a step never depends on what was skipped before it.

    Args:
      rows: written to.
      positions: of the rows.
      records: of each row, which, and how many tokens each has room for.

    Returns:
      What of each row could not be used.
    """
    # All texts come first: after a picture, a processor's caches hold nothing of the code that reads the next text.
    read = [list(self.fill_texts(*each)) for each in zip(rows, positions, records, strict=True)]
    return [list(self.fill_media(row, found)) for row, found in zip(rows, read, strict=True)]

  def fill_texts(self, row: Batch, position: int, records: Iterable[tuple[int, int]]) -> "Iterator[Shown | Fault]":
    """Writes the text of each record into a row, and yields which media it shows, or why it could not be used."""
    start = 0
    for slot, (index, room) in enumerate(records):
      key = (self.seed, position, slot)
      try:
        example = self.example(index)
        text = self.text(example, self.text_draw(key), room)
      except MediaError as error:
        yield self.fault(index, None, error)
      else:
        self.write_text(row, text, start, slot)
        yield Shown(index, example, text.media, slot, key)
      start += room

  def write_text(self, row: Batch, text: Row, start: int, slot: int) -> None:
    """Writes a record's text into a row from token `start` on, as the document `slot` + 1."""
    filled = slice(start, start + len(text.tokens))
    row["tokens"][filled] = text.tokens
    row["loss_weights"][filled] = self.weights(text)
    row["segments"][filled] = slot + 1
    row["media_index"][filled] = np.where(text.media_index < 0, -1, text.media_index + slot)

  def fill_media(self, row: Batch, records: "Iterable[Shown | Fault]") -> Iterator[Fault]:
    """Writes what the records of a row show into its slots, and names what could not be, of the records too."""
    for record in records:
      if isinstance(record, Fault):
        yield record
        continue
      for number, medium in enumerate(record.media):
        chances = draw(*record.key, number)  # of its own, whatever became of the others
        try:
          frames = self.write_medium(row["media"][record.slot + number], record.example, medium, chances)
          row["media_mask"][record.slot + number, :frames] = True
        except MediaError as error:
          yield self.fault(record.index, medium, error)

  def example(self, index: int) -> Example:
    """A record; of text, without its media. Raises MediaError when it cannot be read, or is none."""
    try:
      record = self.sources[index]
    except UserError as error:
      raise MediaError("damaged_shard", str(error)) from error
    try:
      example = parse(record)
    except UserError as error:
      raise MediaError("bad_record", str(error)) from error
    if self.config.layout != "text":
      return example
    return dataclasses.replace(example, texts=(document_text(example.texts),), media=())

  def fault(self, index: int, medium: int | None, error: MediaError) -> Fault:
    return Fault(error.cause, *self.sources.where(index), medium, error.detail)

  def weights(self, text: Row) -> np.ndarray:
    """How much each token counts, float32 [L]."""
    if self.config.labels == "text":
      return text.loss_weights
    present = np.ones(len(text.tokens), bool)
    tokenizer = self.tokenizer
    inside = chunk_weights(text.tokens, present, image=tokenizer.image, end_of_chunk=tokenizer.end_of_chunk)
    return text.loss_weights * inside

  def text_draw(self, key: tuple[int, ...]) -> TextDraw:
    """What is drawn for the text of the record at (seed, position, slot)."""
    first, second, *_ = draw(*key)
    if self.config.layout == "interleaved":
      return TextDraw(start=first, see_next=self.training and second < self.config.p_next)
    if self.config.layout == "text":
      return TextDraw(start=first)
    return TextDraw(space=self.training and first < 0.5)

  def text(self, example: Example, drawn: TextDraw, room: int) -> Row:
    """The tokens of a record, at most `room`.

    Raises:
      MediaError: `empty_text` when there is nothing to learn from; `bad_record` for a pair without a medium, or one
        that was planned for as if it could not be used.
    """
    if not any(text.strip() for text in example.texts):
      raise MediaError("empty_text", example.source)
    if self.config.layout == "interleaved":
      return self.window(self.chunks(example), drawn, room)
    if self.config.layout == "text":
      return self.document(example, drawn, room)
    return self.pair(example, drawn, room)

  def pair(self, example: Example, drawn: TextDraw, room: int) -> Row:
    """The tokens of a captioned medium; raises as `text` does."""
    asked, caption = prompted(example.texts, self.config.prompt)
    if not caption:
      raise MediaError("empty_text", example.source)
    if not example.media or not room:
      raise MediaError("bad_record", example.source)
    space = " " * (drawn.space or bool(asked))
    encode = self.tokenizer.encode
    return pair_row(encode(space + caption), self.tokenizer, room, encode(asked))

  def document(self, example: Example, drawn: TextDraw, room: int) -> Row:
    """A window of a document; raises `bad_record` for one that was planned for as if it could not be used."""
    if not room:
      raise MediaError("bad_record", example.source)
    return text_row(self.tokenizer.encode(example.texts[0]), self.tokenizer, length=room, start=drawn.start)

  def chunks(self, example: Example) -> list[list[int]]:
    """The tokens of a page's texts."""
    return [self.tokenizer.encode(text.strip()) for text in example.texts]

  def window(self, chunks: Sequence[Sequence[int]], drawn: TextDraw, room: int) -> Row:
    """A window of a page, at most `room` tokens."""
    slots, see_next = self.config.media, drawn.see_next
    return page_row(chunks, self.tokenizer, length=room, slots=slots, start=drawn.start, see_next=see_next)

  def write_medium(self, out: np.ndarray, example: Example, medium: int, chances: Sequence[float]) -> int:
    """Writes the frames that a medium has to [F, H, W, 3] or [F, S, V], and returns how many these are."""
    frames = self.read_frames(example, medium, chances)
    if self.features is not None:
      out[: len(frames)] = frames
    else:
      pad_into(out[: len(frames)], frames)
    return len(frames)

  def read_frames(self, example: Example, medium: int, chances: Sequence[float] = UNCHANGED) -> np.ndarray:
    """The frames that a medium has: `pixels`, or features [n, S, V]."""
    if self.features is not None:
      return decode_features(example.media[medium], self.features)
    return self.pixels(example, medium, chances)

  def pixels(self, example: Example, medium: int, chances: Sequence[float] = UNCHANGED) -> np.ndarray:
    """The frames that a medium has, flipped and coloured alike, before padding.

    Args:
      example: the record.
      medium: which of its media.
      chances: for all that is random of it in training, each in [0, 1).

    Returns:
      uint8 [n, H, W, 3], n from 1 to F, the longer side the stream's.
    """
    config, encoded = self.config, example.media[medium]
    first, second, third, flipped, *colours, _ = chances
    if config.medium == "video":
      pictures = read_clip(
        encoded,
        self.image_size,
        frames=config.frames,
        per_second=config.frames_per_second,
        span=(example.clip_start, np.inf if example.clip_end is None else example.clip_end),
        start=first if self.training else 0.0,
      )
    else:
      cropped = self.training and config.crop < 1
      crop = Crop(config.crop + first * (1 - config.crop), second, third) if cropped else None
      pictures = read_image(encoded, self.image_size, crop)[None]
    if self.training and config.flip and flipped < 0.5:
      pictures = flip(pictures)
    if self.training and config.colour:
      pictures = jitter(pictures, *(1 + config.colour * (2 * chance - 1) for chance in colours))
    return pictures


def aligned_zeros(shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
  """Zeros at an address that TensorFlow takes over as it is; others it copies."""
  dtype = np.dtype(dtype)
  if dtype.hasobject:
    return np.zeros(shape, dtype)
  size = math.prod(shape) * dtype.itemsize
  memory = np.zeros(size + ALIGNMENT, np.uint8)
  first = -memory.ctypes.data % ALIGNMENT
  return memory[first : first + size].view(dtype).reshape(shape)


def cores() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_pool() -> Pool:
  """A thread for each core."""
  return concurrent.futures.ThreadPoolExecutor(cores(), thread_name_prefix="decode")
