"""What a run must find right when its media are features that `flamingo data features` computed."""

import pathlib
from collections.abc import Mapping

from data_pipelines.features import FeaturesInfo, check_manifest, features_info
from data_pipelines.shards import read_manifest
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.towers import FeaturesConfig, VisionConfig
from launch.pretrained import read_tower


def check_kinds(streams: Mapping[str, StreamConfig], has_tower: bool) -> list[str]:
  """A model with a vision encoder reads pictures and videos in every stream; one without, features."""
  family, wanted = ("not 'features'", "'image' or 'video'") if has_tower else ("'features'", "'features'")
  return [
    f"streams.{name}.medium is {stream.medium!r}; where model.vision.family is {family} it is {wanted}."
    for name, stream in streams.items()
    if (stream.medium == "features") == has_tower
  ]


def check_shards(streams: Mapping[str, StreamConfig], split: str, vision: VisionConfig) -> None:
  """Raises UserError where the media of a stream's shards are not what the config says, all faults at once."""
  faults = []
  for name, config in streams.items():
    manifests = {folder: read_manifest(folder) for folder in folders(config, split)}
    for folder, manifest in manifests.items():
      faults += check_manifest(name, config.medium, config.frames, folder, manifest)
      faults += check_features(folder, features_info(manifest), vision)
    if len({info.dtype for manifest in manifests.values() if (info := features_info(manifest))}) > 1:
      faults.append(f"streams.{name}.source: its features are not all of one dtype.")
  if faults:
    raise UserError("\n".join(faults))


def check_features(folder: pathlib.Path, info: FeaturesInfo | None, vision: VisionConfig) -> list[str]:
  """Where features are not of the shape that the model reads."""
  if info is None or not isinstance(vision, FeaturesConfig):
    return []
  return [
    f"model.vision.{field} is {getattr(vision, field)}, but for the features in {folder} it is {found}."
    for field, found in (("width", info.width), ("positions", info.positions))
    if getattr(vision, field) != found
  ]


def folders(config: StreamConfig, split: str) -> list[pathlib.Path]:
  """Where the shards of a split lie."""
  return [pathlib.Path(source) / split for source in config.sources]


def common_tower(streams: Mapping[str, StreamConfig], named: str) -> str:
  """The hash of the vision encoder that all features came from.

  Args:
    streams: of features, whose shards `check_shards` has found right.
    named: where the run says that the encoder lies; empty: it does not say.

  Raises:
    UserError: there are several encoders, or it is not the one that was named.
  """
  towers = {f"frozen.vision, {named}": read_tower(named)[2]} if named else {}
  for config in streams.values():
    for folder in folders(config, "train") + folders(config, "heldout"):
      towers[str(folder)] = features_info(read_manifest(folder)).tower
  if len(set(towers.values())) > 1:
    lines = "\n".join(f"  {tower[:12]}: {where}" for where, tower in towers.items())
    raise UserError(
      f"The features are not all of one vision encoder:\n{lines}\nCompute them again with `flamingo data features`."
    )
  return next(iter(towers.values()))
