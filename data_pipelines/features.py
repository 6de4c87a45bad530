"""Media that a frozen vision encoder has seen already: how records keep its features, and what a stream says of them.

A record is the same Example, but each medium is the bytes of a safetensors file with one tensor, `features` [F, S, V],
of the frames that exist. A medium that could not be decoded is the name of the cause instead. What they all have in
common stands in the manifest, under build.features.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from ml_dtypes import bfloat16
from safetensors import SafetensorError, deserialize

from data_pipelines.media import CAUSES, MediaError
from data_pipelines.shards import MANIFEST

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(bfloat16)}
STORED_DTYPES = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"]}


@dataclasses.dataclass(frozen=True)
class FeaturesInfo:
  """What all media of a stream of features have in common."""

  tower: str  # content hash of the vision encoder
  dtype: str  # of DTYPES
  frames: int  # F, at most
  positions: int  # S
  width: int  # V


def features_info(manifest: Mapping) -> FeaturesInfo | None:
  """What a manifest says of the features in its shards; None where its media are pictures or videos."""
  stored = manifest.get("build", {}).get("features")
  return None if stored is None else FeaturesInfo(**stored)


def encode_features(features: np.ndarray) -> bytes:
  """Features float32 or bfloat16 [F, S, V], F being the frames that exist, to the bytes of a medium."""
  return safetensors.numpy.save({"features": np.ascontiguousarray(features)})


def encode_fault(cause: str) -> bytes:
  """What stands for a medium that could not be decoded."""
  return cause.encode()


def decode_features(encoded: bytes, info: FeaturesInfo) -> np.ndarray:
  """A medium's features [n, S, V], of the frames that it has.

  Raises:
    MediaError: with the cause for which the medium could not be decoded, or `bad_record` when these are no features.
  """
  cause = encoded.decode("ascii", errors="replace") if len(encoded) < 32 else ""
  if cause in CAUSES:
    raise MediaError(cause, "when its features were computed")
  try:
    [(_, tensor)] = deserialize(encoded)
    stored = np.frombuffer(tensor["data"], STORED_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
  except (SafetensorError, ValueError, KeyError) as error:
    raise MediaError("bad_record", f"no features: {error}") from error
  fits = stored.dtype == DTYPES[info.dtype] and stored.shape[1:] == (info.positions, info.width)
  if not fits or len(stored) > info.frames:
    raise MediaError("bad_record", f"features are {stored.dtype} {stored.shape}")
  return stored


def check_manifest(name: str, medium: str, frames: int, directory: pathlib.Path, manifest: Mapping) -> list[str]:
  """Where the medium of a stream's settings is not that of its shards, one line a fault."""
  info = features_info(manifest)
  if (info is not None) != (medium == "features"):
    found = "pictures or videos" if info is None else "features"
    return [f"streams.{name}.medium is {medium!r}, but {directory / MANIFEST} says that its media are {found}."]
  if info is not None and info.frames != frames:
    return [f"streams.{name}.frames is {frames}, but the features in {directory} are of {info.frames} frames."]
  return []
