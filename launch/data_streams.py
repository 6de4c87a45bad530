"""The streams that `flamingo data explain`, `check` and `inspect` look at: opened even where shards are damaged."""

import dataclasses
import pathlib
from collections.abc import Iterator

from data_pipelines.clips import read_index
from data_pipelines.features import features_info
from data_pipelines.inspection.explain import file_format
from data_pipelines.media import MediaError
from data_pipelines.schema import parse
from data_pipelines.shards import MANIFEST, Shards, open_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import byte_tokenizer
from flamingo_jax.errors import UserError
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.precomputed import folders

SPLITS = ("train", "heldout")
UNLIMITED = 2**31 - 1
LAST_STEP = 2**31 - 1  # a run counts its steps in 32 bits
LOOKED_AT = 100  # records, to tell pictures from videos
IMAGE_SIZE, FRAMES = 224, 8  # at which media are read where no config says it


def open_experiment(path: str, overrides: dict[str, str], names: list[str]) -> Experiment:
  """A config of which only some streams are left; without names, all. Raises UserError when it has no such stream."""
  experiment = read_experiment(load_config(path, overrides), path)
  known = experiment.stream_configs
  if unknown := [name for name in names if name not in known]:
    raise UserError(f"--stream is {unknown[0]!r}; {path} has {', '.join(known)}.")
  return dataclasses.replace(experiment, stream_configs={name: known[name] for name in names or known})


def check_step(step: int) -> None:
  """Raises UserError when no run has such a step."""
  if not 1 <= step <= LAST_STEP:
    raise UserError(f"--step is {step}; the first step is 1, as in metrics.jsonl, and the last {LAST_STEP}.")


def open_stream(experiment: Experiment, name: str, split: str) -> Stream:
  """A stream as training or evaluation reads it; of damaged files the records keep their numbers."""
  config = dataclasses.replace(experiment.stream_configs[name], maximum_skipped=1.0)
  alone = dataclasses.replace(experiment, stream_configs={name: config})
  return alone.streams(split, training=split == "train")[name]


def streams_of(experiment: Experiment, folder: pathlib.Path) -> list[tuple[str, str]]:
  """The streams that read the shards in a folder, and which split of theirs it is."""
  return [
    (name, split)
    for name, config in experiment.stream_configs.items()
    for split in SPLITS
    if folder.resolve() in [each.resolve() for each in folders(config, split)]
  ]


def folder_streams(folder: pathlib.Path) -> dict[str, Stream]:
  """Every set of shards in a folder, by its path in there, as whole pages of text in bytes.

  Raises UserError when there is none.
  """
  found = sorted(path.parent for path in folder.rglob(MANIFEST) if not path.parent.name.startswith("."))
  if not found:
    raise UserError(f"{folder} holds no {MANIFEST}: give a folder of shards, or one of such folders.")
  return {str(each.relative_to(folder)): plain_stream(open_shards(each, tolerated=1.0)) for each in found}


def plain_stream(shards: Shards) -> Stream:
  """A set of shards alone: no window cuts its pages, and all of their media are read."""
  config = StreamConfig(
    source=str(shards.directory),
    layout="interleaved",
    medium=medium_of(shards),
    length=UNLIMITED,
    media=UNLIMITED,
    frames=FRAMES,
    frames_per_second=0.0,
  )
  return Stream(config, Sources((shards,)), byte_tokenizer(), IMAGE_SIZE, seed=0, training=True)


def medium_of(shards: Shards) -> str:
  """What the media of a set are: pictures if any of the first is one, videos if any is; else they are bad pictures."""
  if features_info(shards.manifest) is not None:
    return "features"
  if any(file_format(encoded) != "file" for encoded in first_media(shards)):
    return "image"
  return "video" if any(is_video(encoded) for encoded in first_media(shards)) else "image"


def first_media(shards: Shards) -> Iterator[bytes]:
  """The media of the first records that can be read."""
  for index in range(min(len(shards), LOOKED_AT)):
    try:
      yield from parse(shards[index]).media
    except UserError:  # the check itself will say it
      continue


def is_video(encoded: bytes) -> bool:
  try:
    return len(read_index(encoded).times) > 0
  except MediaError:
    return False
