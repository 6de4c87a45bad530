"""Any TFDS builder with a field of pictures and one of texts; its data must be prepared already.

Fields within fields are named with slashes: "captions/text". A field of several texts makes a pair of each. A class is
read as its name.
"""

import functools
import io
from collections.abc import Callable, Iterator
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
  """Ranges of examples. Raises UserError when the builder, its split or a field is not there, or of another kind."""
  builder = open_builder(settings)
  if settings.split not in builder.info.splits:
    raise UserError(f"--split: {settings.tfds} has no {settings.split}, but {', '.join(builder.info.splits)}.")
  columns = settings.columns
  _check_field(builder, "picture", columns.picture, _is_picture)
  _check_field(builder, "text", columns.text, _is_text)
  if columns.license:
    _check_field(builder, "licence", columns.license, lambda feature, several: _is_text(feature) and not several)
  count, size = builder.info.splits[settings.split].num_examples, settings.documents_per_shard
  return [(start, min(start + size, count)) for start in range(0, count, size)]


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  settings, columns = source.settings, source.settings.columns
  builder = open_builder(settings)
  in_words = functools.partial(_in_words, builder.info.features)
  examples = builder.as_dataset(
    split=f"{settings.split}[{part.start}:{part.stop}]",
    decoders=_undecoded(builder.info.features, columns.picture),
    shuffle_files=False,
    read_config=tfds.ReadConfig(interleave_cycle_length=1),  # the order on disk
  )
  for number, example in enumerate(examples.as_numpy_iterator(), part.start):
    name = f"{settings.tfds}, {settings.split} {number}"
    values = np.atleast_1d(np.asarray(_value(example, columns.text), object))
    medium = Medium(_encoded(_value(example, columns.picture)))
    for value in values.flatten().tolist() or [None]:  # None: no text, which is counted where it is dropped
      try:
        license = in_words(columns.license, _value(example, columns.license)) if columns.license else ""
        text = "" if value is None else in_words(columns.text, value)
        yield Document((medium, text), name, license)
      except ValueError as error:  # bytes that are no UTF-8, or the number of no class
        yield Fault("bad_document", name, str(error))


def open_builder(settings: BuildSettings) -> tfds.core.DatasetBuilder:
  """The builder, with the data that were prepared in the input's folder; its code is not needed."""
  try:
    return tfds.builder(settings.tfds, data_dir=settings.input, try_gcs=False)
  except (tfds.core.DatasetNotFoundError, OSError, ValueError, AssertionError) as error:
    raise UserError(f"--tfds: {settings.tfds} is not prepared in {settings.input}: {error}") from error


def _check_field(builder: tfds.core.DatasetBuilder, option: str, path: str, fits: Callable[[Any, bool], bool]) -> None:
  """Raises UserError when a field is not there, or holds something else than its option says."""
  features = builder.info.features
  feature, several = _feature(features, path)
  if feature is None:
    raise UserError(f"--{option}-column: {builder.name} has no field {path!r} in {features}.")
  if not fits(feature, several):
    what = f"several of {feature}" if several else feature
    raise UserError(f"--{option}-column: the field {path!r} of {builder.name} is no {option}, but {what}.")


def _feature(features: Any, path: str) -> tuple[Any, bool]:
  """(what a field is, or None if it is not there; whether an example may have several of it)."""
  several = False
  for name in [*path.split("/"), None]:
    while isinstance(features, tfds.features.Sequence):
      features, several = features.feature, True
    if name is None:
      break
    if not isinstance(features, tfds.features.FeaturesDict) or name not in features:
      return None, several
    features = features[name]
  return features, several


def _is_picture(feature: Any, several: bool) -> bool:
  """Whether a field is one picture: as a file, or as plain pixels."""
  if several or isinstance(feature, tfds.features.Text):
    return False
  if isinstance(feature, tfds.features.Image):
    return True
  return isinstance(feature, tfds.features.Tensor) and (feature.tf_dtype, len(feature.shape)) in _PICTURES


_PICTURES = ((tf.string, 0), (tf.uint8, 2), (tf.uint8, 3))


def _is_text(feature: Any, several: bool = False) -> bool:
  return isinstance(feature, tfds.features.ClassLabel) or (
    isinstance(feature, tfds.features.Tensor) and feature.tf_dtype == tf.string
  )


def _in_words(features: Any, path: str, value: Any) -> str:
  """A text, or the name of a class. Raises ValueError for bytes that are no UTF-8, or the number of no class."""
  feature, _ = _feature(features, path)
  if not isinstance(feature, tfds.features.ClassLabel):
    return value.decode()
  if value < 0:  # which `int2str` would count from the last class
    raise ValueError(f"the class {value}, which has no name")
  return feature.int2str(int(value))


def _undecoded(features: Any, path: str) -> dict[str, Any] | None:
  """Lets pictures pass as the files they are."""
  if not isinstance(_feature(features, path)[0], tfds.features.Image):
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
