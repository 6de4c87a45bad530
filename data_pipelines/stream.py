"""A stream: from stored records to an endless sequence of batches, where batch s is a function of (seed, s) alone.

Record positions count up forever; position p is place p mod n of epoch p div n, and each epoch is a seeded permutation
computed in O(1). Randomness of windows and augmentation is keyed by (seed, position). Nothing has to be saved to
resume, and a host reads its own rows of the global batch without knowing how many other hosts there are.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data_pipelines.media import CAUSES, Crop, MediaError, decode_clip, decode_image, jitter
from data_pipelines.schema import Example, parse
from data_pipelines.sequences import Row, page_row, pair_row
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
  medium: str = "image"  # or "video"
  weight: float = 1.0  # of this stream's loss in the sum
  batch_size: int = 8  # rows, over all devices
  length: int = 256  # L, tokens
  media: int = 1  # N, slots a row
  frames: int = 1  # F, frames a slot
  frames_per_second: float = 1.0
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
  if config.medium not in ("image", "video"):
    faults.append(f"streams.{name}.medium is {config.medium!r}; it is 'image' or 'video'.")
  if config.medium == "image" and config.frames != 1:
    faults.append(f"streams.{name}.frames is {config.frames}, but images have 1.")
  for field in ("batch_size", "media", "frames"):
    if getattr(config, field) < 1:
      faults.append(f"streams.{name}.{field} is {getattr(config, field)}; it is at least 1.")
  if config.length < 4:
    faults.append(f"streams.{name}.length is {config.length}; the special tokens alone take 4.")
  if not 0 < config.crop <= 1 or (config.medium == "video" and config.crop != 1):
    faults.append(f"streams.{name}.crop is {config.crop}; it is above 0 and at most 1, and 1 for videos.")
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
    """Every record once, in plain order, one row each."""
    return (self.row(index, index) for index in range(len(self.shards)))

  def place(self, position: tf.Tensor) -> tf.Tensor:
    """Which record stands at a position: a permutation anew in each epoch."""
    count = len(self.shards)
    key = tf.stack([self.seed, position // count])
    return tf.random.experimental.index_shuffle(position % count, key, count - 1)

  def padded(self, position: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
    """The row at a position, as tensors of static shape."""
    shapes = self.shapes()
    names = list(shapes)

    def build(position, index):
      row = self.row(int(position), int(index))
      return [row[name] for name in names]

    arrays = tf.numpy_function(build, [position, index], [shapes[name][0] for name in names])
    for name, array in zip(names, arrays, strict=True):
      array.set_shape(shapes[name][1])
    return dict(zip(names, arrays, strict=True))

  def shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Dtype and shape of every part of a row."""
    config, size = self.config, self.image_size
    length, media = (config.length,), (config.media, config.frames)
    return dict(
      tokens=(np.int32, length),
      loss_weights=(np.float32, length),
      segments=(np.int32, length),
      media=(np.uint8, (*media, size, size, 3)),
      media_mask=(np.bool_, media),
      media_index=(np.int32, length),
      faults=(np.int32, (len(CAUSES),)),
    )

  def row(self, position: int, index: int) -> Batch:
    """One row of a batch. A record that cannot be used gives an empty row; a medium that cannot, an empty slot.

    Both are counted in `faults`, by cause, so that the batch at a step never depends on what was skipped before it.
    """
    random = np.random.default_rng((self.seed, position))
    row = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.shapes().items()}
    row["media_index"] -= 1
    try:
      example = parse(self.shards[index])
      text = self.text(example, random)
    except UserError:
      count(row, "bad_record")
      return row
    except MediaError as error:
      count(row, error.cause)
      return row
    length = len(text.tokens)
    row["tokens"][:length] = text.tokens
    row["loss_weights"][:length] = self.weights(text)
    row["segments"][:length] = 1
    row["media_index"][:length] = text.media_index
    for slot, medium in enumerate(text.media):
      try:
        row["media"][slot], row["media_mask"][slot] = self.pixels(example, medium, random)
      except MediaError as error:
        count(row, error.cause)
    return row

  def weights(self, text: Row) -> np.ndarray:
    """How much each token counts, float32 [L]."""
    if self.config.labels == "text":
      return text.loss_weights
    present = np.ones(len(text.tokens), bool)
    tokenizer = self.tokenizer
    inside = chunk_weights(text.tokens, present, image=tokenizer.image, end_of_chunk=tokenizer.end_of_chunk)
    return text.loss_weights * inside

  def text(self, example: Example, random: np.random.Generator) -> Row:
    """The tokens of a record.

    Raises:
      MediaError: `empty_text` when there is nothing to learn from, `bad_record` for a pair without a medium.
    """
    config = self.config
    if not any(text.strip() for text in example.texts):
      raise MediaError("empty_text", example.source)
    if config.layout == "pairs":
      if not example.media:
        raise MediaError("bad_record", example.source)
      space = " " if self.training and random.random() < 0.5 else ""
      caption = self.tokenizer.encode(space + " ".join(text.strip() for text in example.texts).strip())
      return pair_row(caption, self.tokenizer, config.length)
    return page_row(
      [self.tokenizer.encode(text.strip()) for text in example.texts],
      self.tokenizer,
      length=config.length,
      slots=config.media,
      start=random.random(),
      see_next=self.training and random.random() < config.p_next,
    )

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
