"""`flamingo data features`: what a frozen vision encoder sees of a stream, computed once and kept."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.features import FeaturesInfo, encode_fault, encode_features
from data_pipelines.media import MediaError, pad
from data_pipelines.schema import Example
from data_pipelines.shards import write_shards
from data_pipelines.stream import Stream
from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters, flat, nested
from flamingo_jax.models.vision.towers import FeaturesConfig, example_media, vision_tower
from flamingo_jax.training.step import is_trainable
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.pretrained import read_part

RECORDS = 32  # decoded at once
FRAMES = 32  # encoded at once; the last ones are padded, so that the encoder is compiled for one shape

Encode = Callable[[np.ndarray], jax.Array]  # uint8 [B, H, W, 3] to features [B, S, V]


def write_features(path: str, overrides: dict[str, str], name: str, out: str, dtype: str) -> str:
  """Runs the frozen vision encoder of a config over all media of a stream.

  Args:
    path: of the config.
    overrides: of its fields.
    name: of the stream.
    out: the folder that gets `train` and `heldout` shards; what was there before is replaced.
    dtype: of the features, "bfloat16" or "float32".

  Returns:
    What was written and how it is read, for people.

  Raises:
    UserError: the config has no such stream or no frozen vision encoder, or the stream changes its pictures at random.
  """
  experiment = read_experiment(load_config(path, overrides), path)
  faults = [f"{path}: {fault}" for fault in check(experiment, name)]
  if faults:
    raise UserError("\n".join(faults))
  experiment = dataclasses.replace(experiment, stream_configs={name: experiment.stream_configs[name]})
  parts = (experiment.model, experiment.objective(), experiment.training, experiment.frozen_config)
  parameters, digest = read_part("vision", *parts)
  encode = encoder(experiment.model, parameters, experiment.training.frozen_dtype, dtype)
  _, positions, width = jax.eval_shape(encode, example_media(experiment.model.vision)[None]).shape
  info = FeaturesInfo(digest, dtype, experiment.stream_configs[name].frames, positions, width)
  written = []
  for split in ("train", "heldout"):
    stream = experiment.streams(split, training=False)[name]
    statistics = collections.Counter()
    build = dict(features=dataclasses.asdict(info), source=stream.sources.content_hash)
    examples = seen_examples(stream, encode, statistics)
    manifest = write_shards(pathlib.Path(out) / split, examples, statistics, name="features", build=build)
    written.append(f"{split} {manifest['records']} records, {manifest['media']} media")
  return (
    f"{out}: {'; '.join(written)}; {dtype} [{info.frames}, {positions}, {width}] each, of the encoder {digest[:12]}.\n"
    f"A config reads them with model.vision = vision.features(width={width}, positions={positions}), and in the "
    f'stream source="{out}", medium="features".'
  )


def check(experiment: Experiment, name: str) -> list[str]:
  """What keeps a stream's features from being computed once and for all."""
  streams, model = experiment.stream_configs, experiment.model
  if name not in streams:
    return [f"--stream is {name!r}; the config has {', '.join(streams)}."]
  faults = []
  if len(streams[name].sources) > 1:
    faults.append(f"streams.{name}.source has several folders; features are computed of one at a time.")
  if not isinstance(model, FlamingoConfig) or isinstance(model.vision, FeaturesConfig):
    faults.append("features come from a Flamingo's frozen vision encoder, and this config has none.")
  elif trained := trained_tower(experiment):
    faults.append(
      f"trainable: {trained[0]} of the vision encoder is trained, so its features change: do not keep them."
    )
  faults += [
    f"streams.{name}.{field} is {getattr(streams[name], field)}; features are of the plain media: set it to {plain}."
    for field, plain in (("flip", False), ("colour", 0.0), ("crop", 1.0))
    if getattr(streams[name], field) != plain
  ]
  return faults


def trained_tower(experiment: Experiment) -> list[str]:
  """The parameters of the vision encoder that are not frozen."""
  shapes = flat(jax.eval_shape(experiment.objective().initialize, jax.random.key(0)))
  return [path for path in shapes if path.startswith("vision/") and is_trainable(path, experiment.training.trainable)]


def encoder(model: FlamingoConfig, parameters: Parameters, frozen_dtype: str, dtype: str) -> Encode:
  """The encoder just as the model applies it: parameters in `frozen_dtype`, activations in the model's."""
  tower = vision_tower(model.vision, jnp.dtype(model.dtype))
  held = {path.removeprefix("vision/"): jnp.asarray(array, frozen_dtype) for path, array in parameters.items()}
  return jax.jit(lambda pixels: tower.apply(nested(held), pixels).astype(dtype))


def seen_examples(stream: Stream, encode: Encode, statistics: collections.Counter) -> Iterator[Example]:
  """The examples of a stream with features for media, in order; damaged records are left out and counted.

  A medium that cannot be decoded keeps its place, as the name of what is wrong with it.
  """
  for start in range(0, len(stream.sources), RECORDS):
    examples = list(readable(stream, range(start, min(start + RECORDS, len(stream.sources))), statistics))
    media = [decoded(stream, example, at) for example in examples for at in range(len(example.media))]
    statistics.update(medium for medium in media if isinstance(medium, str))
    features = iter(encode_all(media, encode))
    for example in examples:
      yield dataclasses.replace(example, media=tuple(itertools.islice(features, len(example.media))))


def readable(stream: Stream, indices: range, statistics: collections.Counter) -> Iterator[Example]:
  for index in indices:
    try:
      yield stream.example(index)
    except MediaError as error:
      statistics[error.cause] += 1


def decoded(stream: Stream, example: Example, medium: int) -> np.ndarray | str:
  """The frames that a medium has, uint8 [F, H, W, 3], or the cause for which it has none."""
  try:
    return pad(stream.pixels(example, medium), stream.image_size)
  except MediaError as error:
    return error.cause


def encode_all(media: list[np.ndarray | str], encode: Encode) -> list[bytes]:
  """The media as records keep them."""
  counts = [0 if isinstance(medium, str) else len(medium) for medium in media]
  if not any(counts):
    return [encode_fault(medium) for medium in media]
  frames = np.concatenate([medium for medium in media if not isinstance(medium, str)])
  padded = np.concatenate([frames, np.zeros((-len(frames) % FRAMES, *frames.shape[1:]), np.uint8)])
  slices = [np.asarray(encode(padded[at : at + FRAMES])) for at in range(0, len(padded), FRAMES)]
  features = np.split(np.concatenate(slices), np.cumsum(counts))
  return [
    encode_fault(medium) if isinstance(medium, str) else encode_features(own)
    for medium, own in zip(media, features[:-1], strict=True)
  ]
