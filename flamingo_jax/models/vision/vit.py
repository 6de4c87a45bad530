"""A plain vision transformer: uint8 pixels to a grid of features."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from flamingo_jax.models.encoder import Encoder, EncoderConfig
from flamingo_jax.ops.layers import linear


@dataclasses.dataclass(frozen=True)
class VitConfig(EncoderConfig):
  """A transformer encoder over square patches."""

  image_size: int = 64  # pixels a side
  patch_size: int = 8

  @property
  def positions(self) -> int:
    return (self.image_size // self.patch_size) ** 2


class Vit(nn.Module):
  """Patches, learned positions, a transformer encoder; the whole grid comes out, nothing is pooled."""

  config: VitConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B S V"]:
    config = self.config
    patches = to_patches(normalize(pixels), config.patch_size).astype(self.dtype)
    x = linear(config.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding", bias=True)(patches)
    positions = self.param(
      "position_embeddings",
      nn.with_logical_partitioning(nn.initializers.normal(0.02), ("positions", "embed")),
      (config.positions, config.width),
    )
    return Encoder(config, self.dtype, name="encoder")(x + positions.astype(self.dtype))


def normalize(pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """0..255 to -1..1, on the device: the host only ever moves bytes."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_patches(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B S P"]:
  """Cuts images into size x size patches, row by row, each flattened to size * size * C values."""
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  grid = images.reshape(batch, rows, size, columns, size, channels)
  return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, size * size * channels)
