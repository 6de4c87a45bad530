"""What the vision encoder sees of media: each is encoded once, however many prompts it stands in."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, UInt8

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters, nested
from flamingo_jax.models.vision.towers import vision_tower
from flamingo_jax.ops.sharding import constrain

AT_ONCE = 32  # media that are decoded, and frames that are encoded, together

Read = Callable[[Medium], UInt8[np.ndarray, "F H W 3"]]


class UnreadableMedia(UserError):
  """Media whose files are there, but are not what their names say."""

  def __init__(self, faults: Mapping[Medium, str]):
    """Takes what is wrong with each of them."""
    super().__init__("\n".join(dict.fromkeys(faults.values())))
    self.faults = dict(faults)


class Sight:
  """Features of media by a model's vision encoder; those used last are kept on the host.

  Under a mesh (`jax.set_mesh`) frames are spread over it; every host reads all media.
  """

  def __init__(self, config: FlamingoConfig, parameters: Parameters, read: Read, gibibytes: float):
    """Takes the encoder out of a model.

    Args:
      config: of the model, with its encoder.
      parameters: of the model, by path; only the encoder's are kept.
      read: a medium to the frames it has, as the encoder takes them.
      gibibytes: of features to keep.
    """
    self.config = config
    self.parameters = {path: array for path, array in parameters.items() if path.startswith("vision/")}
    self.read, self.room = read, int(gibibytes * 2**30)
    self.kept: collections.OrderedDict[Medium, np.ndarray] = collections.OrderedDict()

  def features(self, media: Sequence[Medium]) -> list[Float[np.ndarray, "F S V"]]:
    """Of each medium, all its frames, in the model's dtype.

    Raises:
      UnreadableMedia: some of them are; all that are looked at together are named.
    """
    missing = [medium for medium in dict.fromkeys(media) if medium not in self.kept]
    found = {medium: self.kept[medium] for medium in media if medium in self.kept}
    for start in range(0, len(missing), AT_ONCE):
      some = missing[start : start + AT_ONCE]
      found |= zip(some, self.look(some), strict=True)
    for medium in dict.fromkeys(media):
      self.keep(medium, found[medium])
    return [found[medium] for medium in media]

  def pooled(self, media: Sequence[Medium]) -> list[Float[np.ndarray, " V"]]:
    """The mean over each medium's frames and places, float32: what media are compared by (RICES)."""
    return [features.astype(np.float32).mean(axis=(0, 1)) for features in self.features(media)]

  def look(self, media: Sequence[Medium]) -> list[Float[np.ndarray, "F S V"]]:
    """Reads and encodes; the last frames are padded, so that the encoder is compiled for one shape."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      clips = list(pool.map(self.attempt, media))
    if faults := [clip.faults for clip in clips if isinstance(clip, UnreadableMedia)]:
      raise UnreadableMedia(dict(collections.ChainMap(*reversed(faults))))
    frames = np.concatenate(clips)
    frames = np.concatenate([frames, np.zeros((-len(frames) % AT_ONCE, *frames.shape[1:]), np.uint8)])
    parts = [gathered(encode(self.config, self.parameters, part)) for part in np.split(frames, len(frames) // AT_ONCE)]
    features = np.split(np.concatenate(parts), np.cumsum([len(clip) for clip in clips]))[: len(media)]
    return [own.copy() for own in features]  # a view would keep those of all media alive

  def attempt(self, medium: Medium) -> UInt8[np.ndarray, "F H W 3"] | UnreadableMedia:
    try:
      return self.read(medium)
    except UnreadableMedia as error:
      return error

  def keep(self, medium: Medium, features: np.ndarray) -> None:
    """Puts features among those kept, as the last used; the first used leave where there is no room."""
    if medium not in self.kept:
      self.room -= features.nbytes
    self.kept[medium] = features
    self.kept.move_to_end(medium)
    while self.room < 0:
      self.room += self.kept.popitem(last=False)[1].nbytes


@functools.partial(jax.jit, static_argnums=0)
def encode(config: FlamingoConfig, parameters: Parameters, frames: Array) -> Float[Array, "B S V"]:
  """Frames, uint8 [B, H, W, 3], as the encoder of a model sees them."""
  tower = vision_tower(config.vision, jnp.dtype(config.dtype), config.attention)
  held = {path.removeprefix("vision/"): array for path, array in parameters.items()}
  return tower.apply(nested(held), constrain(frames, "batch", None, None, None))


def gathered(array: Array) -> np.ndarray:
  """A device array on every host, wherever it lies."""
  return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
