"""Vision transformers: our own plain one, CLIP's and SigLIP's, which differ in a few switches."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from flamingo_jax.models.encoder import Encoder, EncoderConfig
from flamingo_jax.models.vision.pixels import normalize
from flamingo_jax.ops.layers import layer_norm, linear


@dataclasses.dataclass(frozen=True)
class VitConfig(EncoderConfig):
  """A transformer encoder over square patches."""

  family: str = "vit"
  image_size: int = 64  # pixels a side
  patch_size: int = 8
  patch_bias: bool = True
  class_token: bool = False  # one more position, learned, before the patches
  keep_class_token: bool = False  # it comes out too, before the grid
  pre_norm: bool = False  # a norm between the embeddings and the first layer
  pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each colour, where 255 counts as 1
  pixel_deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

  @property
  def positions(self) -> int:
    """S, the number of features an image becomes."""
    return self.patches + (self.class_token and self.keep_class_token)

  @property
  def patches(self) -> int:
    return (self.image_size // self.patch_size) ** 2


class Vit(nn.Module):
  """Patches, learned positions, a transformer encoder; the whole grid comes out row by row, nothing is pooled."""

  config: VitConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention
  remat: str = "none"  # a name of ops.remat

  def __call__(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B S V"]:
    return self.encode(normalize(pixels, self.config.pixel_mean, self.config.pixel_deviation))

  @nn.compact
  def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S V"]:
    """The same for images that are normalized already."""
    config = self.config
    patches = to_patches(images, config.patch_size).astype(self.dtype)
    embed = linear(config.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding", bias=config.patch_bias)
    x = embed(patches)
    if config.class_token:
      first = self.embeddings("class_embedding", ("embed",), (config.width,))
      x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, config.width)), x], axis=1)
    rows = config.patches + config.class_token
    x = x + self.embeddings("position_embeddings", ("positions", "embed"), (rows, config.width))
    if config.pre_norm:
      x = layer_norm(dtype=self.dtype, epsilon=config.norm_epsilon, name="pre_norm")(x)
    x = Encoder(config, self.dtype, self.implementation, self.remat, name="encoder")(x)
    return x[:, rows - config.positions :]

  def embeddings(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    start = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return self.param(name, start, shape).astype(self.dtype)


def to_patches(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B S P"]:
  """Cuts images into size x size patches, row by row, each flattened to size * size * C values.

  What is left over on the right and below is not seen, as by a convolution: SigLIP has 384 pixels in patches of 14.
  """
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  whole = images[:, : rows * size, : columns * size]
  grid = whole.reshape(batch, rows, size, columns, size, channels)
  return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, size * size * channels)


def resize_positions(embeddings: Float[Array, "P V"], patches: int, *, class_token: bool) -> Float[Array, "Q V"]:
  """Position embeddings for another image size, such as 480 pixels for fine-tuning.

  Bicubic, blurred before it is made smaller, as open_clip does it.

  Args:
    embeddings: of a square grid, row by row, after the class token's if there is one.
    patches: a side of the new grid.
    class_token: whether the first row is the class token's, which stays as it is.
  """
  first, grid = embeddings[:class_token], embeddings[class_token:]
  side, width = round(len(grid) ** 0.5), grid.shape[1]
  resized = jax.image.resize(grid.reshape(side, side, width), (patches, patches, width), "cubic")
  return jnp.concatenate([first, resized.reshape(patches**2, width)])
