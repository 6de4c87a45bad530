"""A stream: from stored records to an endless sequence of batches, where batch s is a function of (seed, s) alone.

Record positions count up forever; position p is place p mod n of epoch p div n, and each epoch is a seeded permutation
computed in O(1). Randomness of windows and augmentation is keyed by (seed, position). Nothing has to be saved to
resume, and a host reads its own rows of the global batch without knowing how many other hosts there are.

A packed stream is the same with rows in the place of records: its plan (data_pipelines/packing.py) makes every epoch of
equally many rows.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data_pipelines.features import DTYPES, FeaturesInfo, decode_features, features_info
from data_pipelines.lengths import pair_lengths
from data_pipelines.media import CAUSES, Crop, MediaError, decode_clip, decode_image, jitter
from data_pipelines.packing import NOBODY, Plan, make_plan
from data_pipelines.schema import Example, parse
from data_pipelines.sequences import PAIR_MARKERS, Row, page_row, pair_row, pair_text
from data_pipelines.shards import Shards
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.ops.labels import chunk_weights

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """One stream: where its records lie, how they become rows, how much they weigh."""

  source: str  # a folder with `train` and `heldout` shard folders
  layout: str  # "interleaved": pages; "pairs": a medium and its caption
  medium: str = "image"  # or "video", or "features": what `flamingo data features` made of either
  weight: float = 1.0  # of this stream's loss in the sum
  batch_size: int = 8  # rows, over all devices
  length: int = 256  # L, tokens
  media: int = 1  # N, slots a row; of a packed row, the most pairs it may hold
  frames: int = 1  # F, frames a slot
  frames_per_second: float = 1.0
  pack: bool = False  # pairs: as many of them in a row as it has room for
  p_next: float = 0.5  # pages: how often tokens attend to the next medium (paper, section A.3.1)
  labels: str = "text"  # what is learnt: "text": all of it; "chunks": as OpenFlamingo, from an image to its <EOC>
  flip: bool = False  # left-right flips; off where pictures show text
  colour: float = 0.0  # strength of the colour jitter, 0 to 1
  crop: float = 1.0  # images: the smallest share of each side that a random crop keeps; 1: no crop


def check_stream(name: str, config: StreamConfig) -> list[str]:
  """What is wrong with a stream's settings, one line a fault."""
  faults = []
  if config.layout not in ("interleaved", "pairs"):
    faults.append(f"streams.{name}.layout is {config.layout!r}; it is 'interleaved' or 'pairs'.")
  if config.labels not in ("text", "chunks"):
    faults.append(f"streams.{name}.labels is {config.labels!r}; it is 'text' or 'chunks'.")
  if config.medium not in ("image", "video", "features"):
    faults.append(f"streams.{name}.medium is {config.medium!r}; it is 'image', 'video' or 'features'.")
  if config.medium == "image" and config.frames != 1:
    faults.append(f"streams.{name}.frames is {config.frames}, but images have 1.")
  for field in ("batch_size", "media", "frames"):
    if getattr(config, field) < 1:
      faults.append(f"streams.{name}.{field} is {getattr(config, field)}; it is at least 1.")
  if config.length < PAIR_MARKERS:
    faults.append(f"streams.{name}.length is {config.length}; the special tokens alone take {PAIR_MARKERS}.")
  if not 0 < config.crop <= 1 or (config.medium == "video" and config.crop != 1):
    faults.append(f"streams.{name}.crop is {config.crop}; it is above 0 and at most 1, and 1 for videos.")
  if config.medium == "features":
    faults += [
      f"streams.{name}.{field} is {getattr(config, field)}, but features were computed before: it is {plain} for them."
      for field, plain in (("flip", False), ("colour", 0.0), ("crop", 1.0))
      if getattr(config, field) != plain
    ]
  if config.pack and config.layout != "pairs":
    faults.append(f"streams.{name}.pack is True, but layout is {config.layout!r}; only 'pairs' are packed.")
  if config.weight < 0:
    faults.append(f"streams.{name}.weight is {config.weight}; it is not negative.")
  return faults


@dataclasses.dataclass(frozen=True)
class Stream:
  """Records, and all that turns them into batches. `training` turns windows, p_next and augmentation random."""

  config: StreamConfig
  shards: Shards
  tokenizer: Tokenizer
  image_size: int
  seed: int
  training: bool

  def batches(self, start: int = 0, *, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
    """Batches start, start + 1, ...: this host's rows of each, as numpy arrays (docs/batch.md).

    Raises:
      UserError: the global batch does not divide by the number of hosts.
    """
    size = self.config.batch_size
    if size % hosts:
      raise UserError(f"A batch of {size} rows does not divide by {hosts} hosts; choose a multiple of {hosts}.")
    local = size // hosts
    rows = tf.data.Dataset.range(start * local, np.iinfo(np.int64).max)
    positions = rows.map(lambda row: row // local * size + host * local + row % local)
    places = positions.map(lambda position: (position, self.place(position)))
    dataset = places.map(self.padded, num_parallel_calls=2, deterministic=True)
    dataset = dataset.batch(local, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    return dataset.with_options(options).as_numpy_iterator()

  def rows(self) -> Iterator[Batch]:
    """Every record once, in plain order, one row each, even if the stream is packed."""
    return (self.row(index, index) for index in range(len(self.shards)))

  @functools.cached_property
  def plan(self) -> Plan | None:
    """How records share rows, if they do."""
    if not self.config.pack:
      return None
    return make_plan(pair_lengths(self.shards, self.tokenizer), self.config.length, self.config.media)

  @property
  def epoch_rows(self) -> int:
    """Rows in which every record occurs once."""
    return len(self.shards) if self.plan is None else self.plan.rows

  def place(self, position: tf.Tensor) -> tf.Tensor:
    """What stands at a position: a record int64 [], or of a packed row its places in the plan's order int64 [N].

    The order is anew in each epoch.
    """
    count = self.epoch_rows
    epoch = position // count
    place = tf.random.experimental.index_shuffle(position % count, tf.stack([self.seed, epoch]), count - 1)
    return place if self.plan is None else self.plan.places(place, self.seed, epoch)

  def padded(self, position: tf.Tensor, place: tf.Tensor) -> dict[str, tf.Tensor]:
    """The row at a position, as tensors of static shape."""
    shapes = self.shapes()
    names = list(shapes)

    def build(position, place):
      row = self.row(int(position), int(place)) if self.plan is None else self.packed_row(int(position), place)
      return [row[name] for name in names]

    arrays = tf.numpy_function(build, [position, place], [shapes[name][0] for name in names])
    for name, array in zip(names, arrays, strict=True):
      array.set_shape(shapes[name][1])
    return dict(zip(names, arrays, strict=True))

  def shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Dtype and shape of every part of a row."""
    length, media = (self.config.length,), (self.config.media, self.config.frames)
    dtype, frame = self.frame_shape()
    return dict(
      tokens=(np.int32, length),
      loss_weights=(np.float32, length),
      segments=(np.int32, length),
      media=(dtype, (*media, *frame)),
      media_mask=(np.bool_, media),
      media_index=(np.int32, length),
      faults=(np.int32, (len(CAUSES),)),
    )

  def frame_shape(self) -> tuple[type | np.dtype, tuple[int, ...]]:
    """Dtype and shape of one frame: pixels [H, W, 3] or features [S, V]."""
    if self.features is None:
      return np.uint8, (self.image_size, self.image_size, 3)
    return DTYPES[self.features.dtype], (self.features.positions, self.features.width)

  @functools.cached_property
  def features(self) -> FeaturesInfo | None:
    """What the shards say of their media, if those are features."""
    return features_info(self.shards.manifest)

  def row(self, position: int, index: int) -> Batch:
    """One row of a batch. A record that cannot be used gives an empty row; a medium that cannot, an empty slot.

    Both are counted in `faults`, by cause, so that the batch at a step never depends on what was skipped before it.
    """
    row = self.empty_row()
    self.fill(row, index, np.random.default_rng((self.seed, position)), room=self.config.length)
    return row

  def packed_row(self, position: int, places: np.ndarray) -> Batch:
    """One row of several pairs, each of them as `row` would have it, side by side; the plan says where each begins.

    Args:
      position: of the row; randomness of its pairs is keyed by position * N + slot.
      places: int [N], of the pairs in the plan's order, or NOBODY.
    """
    row, start = self.empty_row(), 0
    for slot, record in enumerate(self.plan.order[places[places != NOBODY]]):
      random = np.random.default_rng((self.seed, position * self.config.media + slot))
      room = int(self.plan.rooms[record])
      self.fill(row, int(record), random, start=start, room=room, slot=slot)
      start += room
    return row

  def empty_row(self) -> Batch:
    row = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.shapes().items()}
    row["media_index"] -= 1
    return row

  def fill(
    self, row: Batch, index: int, random: np.random.Generator, *, room: int, start: int = 0, slot: int = 0
  ) -> None:
    """Writes a record into a row, as the document `slot` + 1.

    Args:
      row: written to.
      index: of the record.
      random: for all that is drawn.
      room: tokens, at most.
      start: the first of them.
      slot: the record's first media slot.
    """
    try:
      example = parse(self.shards[index])
      text = self.text(example, random, room)
    except UserError:
      count(row, "bad_record")
      return
    except MediaError as error:
      count(row, error.cause)
      return
    filled = slice(start, start + len(text.tokens))
    row["tokens"][filled] = text.tokens
    row["loss_weights"][filled] = self.weights(text)
    row["segments"][filled] = slot + 1
    row["media_index"][filled] = np.where(text.media_index < 0, -1, text.media_index + slot)
    for number, medium in enumerate(text.media, slot):
      try:
        row["media"][number], row["media_mask"][number] = self.medium(example, medium, random)
      except MediaError as error:
        count(row, error.cause)

  def weights(self, text: Row) -> np.ndarray:
    """How much each token counts, float32 [L]."""
    if self.config.labels == "text":
      return text.loss_weights
    present = np.ones(len(text.tokens), bool)
    tokenizer = self.tokenizer
    inside = chunk_weights(text.tokens, present, image=tokenizer.image, end_of_chunk=tokenizer.end_of_chunk)
    return text.loss_weights * inside

  def text(self, example: Example, random: np.random.Generator, room: int) -> Row:
    """The tokens of a record, at most `room`.

    Raises:
      MediaError: `empty_text` when there is nothing to learn from; `bad_record` for a pair without a medium, or one
        that was planned for as if it could not be used.
    """
    config = self.config
    if not any(text.strip() for text in example.texts):
      raise MediaError("empty_text", example.source)
    if config.layout == "pairs":
      if not example.media or not room:
        raise MediaError("bad_record", example.source)
      space = " " if self.training and random.random() < 0.5 else ""
      return pair_row(self.tokenizer.encode(space + pair_text(example.texts)), self.tokenizer, room)
    return page_row(
      [self.tokenizer.encode(text.strip()) for text in example.texts],
      self.tokenizer,
      length=room,
      slots=config.media,
      start=random.random(),
      see_next=self.training and random.random() < config.p_next,
    )

  def medium(self, example: Example, medium: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One medium, features [F, S, V] or pixels, and its mask bool [F]."""
    if self.features is not None:
      return decode_features(example.media[medium], self.features)
    return self.pixels(example, medium, random)

  def pixels(self, example: Example, medium: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One medium as uint8 [F, H, W, 3], flipped and coloured alike in all frames, and its mask bool [F]."""
    config, encoded = self.config, example.media[medium]
    if config.medium == "video":
      pictures, exists = decode_clip(
        encoded,
        self.image_size,
        frames=config.frames,
        per_second=config.frames_per_second,
        span=(example.clip_start, np.inf if example.clip_end is None else example.clip_end),
        start=random.random() if self.training else 0.0,
      )
    else:
      crop = Crop(random.uniform(config.crop, 1), *random.random(2)) if self.training and config.crop < 1 else None
      pictures, exists = decode_image(encoded, self.image_size, crop)[None], np.ones(1, bool)
    if self.training and config.flip and random.random() < 0.5:
      pictures = pictures[:, :, ::-1]
    if self.training and config.colour:
      pictures = jitter(pictures, config.colour, random)
    return pictures, exists


def count(row: Batch, cause: str) -> None:
  row["faults"][CAUSES.index(cause)] += 1


def mixture(streams: dict[str, Stream], start: int, *, host: int = 0, hosts: int = 1) -> Iterator[dict[str, Batch]]:
  """Batch `start`, `start + 1`, ... of every stream at once: their gradients accumulate into one update."""
  iterators = {name: stream.batches(start, host=host, hosts=hosts) for name, stream in streams.items()}
  while True:
    yield {name: next(iterator) for name, iterator in iterators.items()}
