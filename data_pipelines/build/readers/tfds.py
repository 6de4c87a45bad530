"""Any TFDS builder with a field of pictures and one of texts; its data must be prepared already.

Fields within fields are named with slashes: "captions/text". A field of several texts makes a pair of each.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault, Medium
from data_pipelines.build.settings import BuildSettings
from flamingo_jax.errors import UserError


def split(settings: BuildSettings) -> list[tuple[int, int]]:
  """Ranges of examples. Raises UserError when the builder, its split or a field is not there."""
  builder = open_builder(settings)
  if settings.split not in builder.info.splits:
    raise UserError(f"--split: {settings.tfds} has no {settings.split}, but {', '.join(builder.info.splits)}.")
  columns = settings.columns
  for option, name in (("picture", columns.picture), ("text", columns.text), ("licence", columns.license)):
    if (name or option != "licence") and _feature(builder.info.features, name) is None:
      raise UserError(f"--{option}-column: {settings.tfds} has no field {name!r} in {builder.info.features}.")
  count, size = builder.info.splits[settings.split].num_examples, settings.documents_per_shard
  return [(start, min(start + size, count)) for start in range(0, count, size)]


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  settings, columns = source.settings, source.settings.columns
  builder = open_builder(settings)
  examples = builder.as_dataset(
    split=f"{settings.split}[{part.start}:{part.stop}]",
    decoders=_undecoded(builder.info.features, columns.picture),
    shuffle_files=False,
    read_config=tfds.ReadConfig(interleave_cycle_length=1),  # the order on disk
  )
  for number, example in enumerate(examples.as_numpy_iterator(), part.start):
    name = f"{settings.tfds}, {settings.split} {number}"
    texts = np.atleast_1d(np.asarray(_value(example, columns.text), object))
    license = _value(example, columns.license) if columns.license else b""
    medium = Medium(_encoded(_value(example, columns.picture)))
    for text in texts.flatten():
      try:
        yield Document((medium, text.decode()), name, license.decode())
      except UnicodeDecodeError as error:
        yield Fault("bad_document", name, str(error))


def open_builder(settings: BuildSettings) -> tfds.core.DatasetBuilder:
  """The builder, with the data that were prepared in the input's folder; its code is not needed."""
  try:
    return tfds.builder(settings.tfds, data_dir=settings.input, try_gcs=False)
  except (tfds.core.DatasetNotFoundError, OSError, ValueError, AssertionError) as error:
    raise UserError(f"--tfds: {settings.tfds} is not prepared in {settings.input}: {error}") from error


def _feature(features: Any, path: str) -> Any:
  for name in path.split("/"):
    while isinstance(features, tfds.features.Sequence):
      features = features.feature
    if not isinstance(features, tfds.features.FeaturesDict) or name not in features:
      return None
    features = features[name]
  return features


def _undecoded(features: Any, path: str) -> dict[str, Any] | None:
  """Lets pictures pass as the files they are."""
  if not isinstance(_feature(features, path), tfds.features.Image):
    return None
  decoders: Any = tfds.decode.SkipDecoding()
  for name in reversed(path.split("/")):
    decoders = {name: decoders}
  return decoders


def _value(example: Any, path: str) -> Any:
  for name in path.split("/"):
    example = example[name]
  return example.to_list() if isinstance(example, tf.RaggedTensor) else example


def _encoded(picture: bytes | np.ndarray) -> bytes:
  """The file of a picture; plain pixels become a PNG."""
  if isinstance(picture, bytes):
    return picture
  file = io.BytesIO()
  Image.fromarray(np.squeeze(picture)).save(file, "PNG")
  return file.getvalue()
