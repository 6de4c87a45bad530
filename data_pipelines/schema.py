"""The one record of every stream: texts and media in reading order, with where they came from.

On disk a record is a `tf.train.Example` as `tensorflow_datasets.features.FeaturesDict` lays it out (`FEATURES` below),
so any tool that knows TFDS can read the shards.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import message

from flamingo_jax.errors import UserError

SCHEMA_VERSION = 1

FEATURES = tfds.features.FeaturesDict(
  {
    "texts": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=tf.string)),
    "media": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=tf.string)),
    "source": tfds.features.Tensor(shape=(), dtype=tf.string),
    "license": tfds.features.Tensor(shape=(), dtype=tf.string),
    "clip_microseconds": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=tf.int64)),
  }
)


@dataclasses.dataclass(frozen=True)
class Example:
  """One document: texts[0] media[0] texts[1] media[1] ... texts[n], read from left to right.

  Where a medium stands is told by position alone, so no text, not even a literal "<image>", can be taken for a marker.
  A captioned picture is `texts=("", caption), media=(picture,)`; a video the same with the bytes of its file.

  Attributes:
    texts: one more than there are media; any may be empty.
    media: encoded files (PNG, JPEG, MP4, ...), as they were found.
    source: "collection/document", e.g. "gimp-help-en/gimp-tool-text.html".
    license: under what terms the document may be used, in words or as an SPDX name.
    clip_start: seconds into a video from which it counts, kept to the microsecond.
    clip_end: seconds at which it stops counting; None: at its end.

  Raises ValueError when the counts do not fit or the clip is not a span of time.
  """

  texts: tuple[str, ...]
  media: tuple[bytes, ...]
  source: str
  license: str
  clip_start: float = 0.0
  clip_end: float | None = None

  def __post_init__(self):
    if len(self.texts) != len(self.media) + 1:
      raise ValueError(
        f"{len(self.texts)} texts around {len(self.media)} media; there must be one text more than media."
      )
    if self.clip_start < 0 or (self.clip_end is not None and self.clip_end <= self.clip_start):
      raise ValueError(f"the clip from {self.clip_start} s to {self.clip_end} s is not a span of time.")


def serialize(example: Example) -> bytes:
  """The record's bytes, the same in every process. Raises UnicodeEncodeError on a lone surrogate in a text."""
  clip = [example.clip_start] if example.clip_end is None else [example.clip_start, example.clip_end]
  record = FEATURES.serialize_example(
    {
      "texts": [text.encode() for text in example.texts],
      "media": list(example.media),
      "source": example.source.encode(),
      "license": example.license.encode(),
      "clip_microseconds": [round(second * 1e6) for second in clip],
    }
  )
  # The fields of a tf.train.Example are a map, whose order in the bytes is left to chance unless it is asked for.
  return tf.train.Example.FromString(record).SerializeToString(deterministic=True)


def parse(record: bytes) -> Example:
  """The Example of a record's bytes. Raises UserError when they are not a record of this schema."""
  try:
    fields = tf.train.Example.FromString(record).features.feature
    clip = [microseconds / 1e6 for microseconds in values(fields, "clip_microseconds", "int64_list")]
    start, end = clip if len(clip) == 2 else (*clip, None)
    return Example(
      texts=tuple(text.decode() for text in values(fields, "texts", "bytes_list")),
      media=tuple(values(fields, "media", "bytes_list")),
      source=one(fields, "source").decode(),
      license=one(fields, "license").decode(),
      clip_start=start,
      clip_end=end,
    )
  except (message.DecodeError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"a record of {len(record)} bytes is not an Example of schema version {SCHEMA_VERSION}: {error}\n"
      "Build the shards again with this version of data_pipelines."
    ) from error


def values(fields: Mapping[str, tf.train.Feature], name: str, kind: str) -> Sequence:
  """What a field holds. Raises KeyError when there is none, ValueError when it is of another kind."""
  if name not in fields:  # protobuf would make one
    raise KeyError(name)
  field = fields[name]
  found = field.WhichOneof("kind")
  if found not in (kind, None):  # None: an empty list
    raise ValueError(f"{name} is a {found}, not a {kind}")
  return getattr(field, kind).value


def one(fields: Mapping[str, tf.train.Feature], name: str) -> bytes:
  """The only value of a field. Raises as `values` does, and ValueError when there are none or more."""
  found = values(fields, name, "bytes_list")
  if len(found) != 1:
    raise ValueError(f"{name} has {len(found)} values, not one")
  return found[0]
