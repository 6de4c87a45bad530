"""What a run must find right when its media are features that `flamingo data features` computed."""

import pathlib
from collections.abc import Mapping

from data_pipelines.features import check_manifest, features_info
from data_pipelines.shards import read_manifest
from data_pipelines.stream import StreamConfig
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
    directory = pathlib.Path(config.source) / split
    manifest = read_manifest(directory)
    faults += check_manifest(name, config.medium, config.frames, directory, manifest)
    info = features_info(manifest)
    if info is not None and isinstance(vision, FeaturesConfig):
      faults += [
        f"model.vision.{field} is {getattr(vision, field)}, but for the features in {directory} it is {found}."
        for field, found in (("width", info.width), ("positions", info.positions))
        if getattr(vision, field) != found
      ]
  if faults:
    raise UserError("\n".join(faults))


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
    for split in ("train", "heldout"):
      directory = pathlib.Path(config.source) / split
      towers[str(directory)] = features_info(read_manifest(directory)).tower
  if len(set(towers.values())) > 1:
    lines = "\n".join(f"  {tower[:12]}: {where}" for where, tower in towers.items())
    raise UserError(
      f"The features are not all of one vision encoder:\n{lines}\nCompute them again with `flamingo data features`."
    )
  return next(iter(towers.values()))
