"""NFNet-F0 to F6: convolutional residual networks without normalization (Brock et al., 2021, arXiv 2102.06171).

Numbers agree with timm's dm_nfnet, which holds DeepMind's published weights. DeepMind's own code differs from it a
little: its GELU is the tanh approximation, and it keeps a variance from being small by a maximum instead of a sum.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt8

from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.pixels import normalize
from flamingo_jax.ops.layers import linear
from flamingo_jax.ops.remat import PRODUCT, rematerialized

VARIANTS = {f"F{number}": number + 1 for number in range(7)}  # how many times as deep as F0
ALPHA = 0.2  # by how much a block's branch adds to the standard deviation
GELU_GAIN = 1.7015043497085571  # makes GELU of a standard normal variable have variance 1
EPSILON = 1e-5  # added to the variance of a kernel's weights


@dataclasses.dataclass(frozen=True)
class NfnetConfig:
  """Sizes of the F series; the variants differ in depth only."""

  family: str = "nfnet"
  variant: str = "F6"
  depths: tuple[int, ...] = (1, 2, 6, 3)  # blocks of each stage in F0
  widths: tuple[int, ...] = (256, 512, 1536, 1536)  # of each stage
  group_width: int = 128  # channels that the 3 x 3 convolutions read together
  image_size: int = 320  # pixels a side
  final_conv: bool = False  # the convolution before the classifier's pooling, to twice the width, is applied too
  pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each colour, where 255 counts as 1
  pixel_deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

  @property
  def blocks(self) -> tuple[int, ...]:
    """The number of blocks of each stage.

    Raises:
      UserError: there is no such variant.
    """
    if self.variant not in VARIANTS:
      raise UserError(f"variant is {self.variant!r}; the NFNets are {', '.join(VARIANTS)}.")
    return tuple(VARIANTS[self.variant] * depth for depth in self.depths)

  @property
  def width(self) -> int:
    return self.widths[-1] * (2 if self.final_conv else 1)

  @property
  def positions(self) -> int:
    """S, the number of features an image becomes."""
    return math.ceil(self.image_size / (4 * 2 ** (len(self.widths) - 1))) ** 2


class Nfnet(nn.Module):
  """The grid of the last stage, row by row (paper, section 2.1); dropout and stochastic depth are left out."""

  config: NfnetConfig
  dtype: jnp.dtype
  remat: str = "none"  # a name of ops.remat

  def __call__(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B S V"]:
    return self.encode(normalize(pixels, self.config.pixel_mean, self.config.pixel_deviation))

  @nn.compact
  def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S V"]:
    """The same for images that are normalized already."""
    config = self.config
    x = Stem(config.widths[0] // 2, self.dtype, name="stem")(images.astype(self.dtype))
    variance = 1.0
    for index, blocks in enumerate(config.blocks):
      x = Stage(config, index, variance, self.dtype, self.remat, name=f"stage_{index}")(x)
      variance = 1 + blocks * ALPHA**2
    if config.final_conv:
      x = activate(StandardizedConv(config.width, 1, self.dtype, name="final_conv")(x))
    return x.reshape(x.shape[0], -1, config.width)  # not len(x): an export leaves the number of rows open


class Stem(nn.Module):
  """Four 3 x 3 convolutions that take images to a quarter of their size."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
    for index, (share, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2))):
      x = x if index == 0 else activate(x)
      x = StandardizedConv(self.width // share, 3, self.dtype, stride, name=f"conv_{index}")(x)
    return x


class Stage(nn.Module):
  """Blocks of one width: the first takes the grid to it and, but for the first stage, to half the size.

  Attributes:
    index: which stage.
    variance: expected of the input, where each block adds that of its branch.
  """

  config: NfnetConfig
  index: int
  variance: float
  dtype: jnp.dtype
  remat: str

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    width, blocks = self.config.widths[self.index], self.config.blocks[self.index]
    sizes = dict(width=width, group_width=self.config.group_width, dtype=self.dtype)
    stride, block = 1 if self.index == 0 else 2, rematerialized(Block, self.remat)
    x, _ = block(**sizes, stride=stride, projects=True, name="first")(x, jnp.float32(self.variance**-0.5))
    if blocks == 1:
      return x
    rest = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=blocks - 1,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    variances = 1 + np.arange(1, blocks) * ALPHA**2  # the projection of the first block starts again from 1
    x, _ = rest(**sizes, name="rest")(x, jnp.asarray(variances**-0.5, jnp.float32))
    return x


class Block(nn.Module):
  """A bottleneck of two grouped 3 x 3 convolutions with squeeze and excitation, added to its input.

  Attributes:
    width: of the output.
    group_width: of a group of the grouped convolutions.
    stride: by which the output is smaller.
    projects: whether the input is taken to the output's width and size, too; else they are the same.
  """

  width: int
  group_width: int
  dtype: jnp.dtype
  stride: int = 1
  projects: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], beta: Float[Array, ""]) -> tuple[Float[Array, "B h w D"], None]:
    """`beta` takes the input to variance 1."""
    middle = self.width // 2
    groups = middle // self.group_width
    out = (activate(x) * beta).astype(self.dtype)
    shortcut = x
    if self.projects:
      shortcut = StandardizedConv(self.width, 1, self.dtype, name="shortcut")(self.pool(out))
    out = StandardizedConv(middle, 1, self.dtype, name="reduce")(out)
    out = StandardizedConv(middle, 3, self.dtype, self.stride, groups, name="first_grouped")(activate(out))
    out = StandardizedConv(middle, 3, self.dtype, 1, groups, name="second_grouped")(activate(out))
    out = StandardizedConv(self.width, 1, self.dtype, name="expand")(activate(out))
    out = 2 * SqueezeExcite(self.dtype, name="squeeze_excite")(out)  # 2: the gate is 1/2 on average
    gain = self.param("skip_gain", nn.with_logical_partitioning(nn.initializers.zeros, ()), ())
    return shortcut + ALPHA * gain.astype(self.dtype) * out, None

  def pool(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Means over as many values as the stride, of those that lie inside the grid."""
    if self.stride == 1:
      return x
    size = (self.stride, self.stride)
    return nn.avg_pool(x, size, size, padding="SAME", count_include_pad=False).astype(self.dtype)


class SqueezeExcite(nn.Module):
  """Scales each channel by a gate that the whole grid decides (Hu et al., 2018)."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    width = x.shape[-1]
    whole = x.mean(axis=(1, 2), keepdims=True)
    hidden = linear(width // 2, ("conv_in", "squeezed"), dtype=self.dtype, name="squeeze", bias=True)(whole)
    gate = linear(width, ("squeezed", "conv_out"), dtype=self.dtype, name="excite", bias=True)(nn.relu(hidden))
    return x * nn.sigmoid(gate)


class StandardizedConv(nn.Module):
  """A convolution with a bias, padded to keep the size, whose kernel is standardized before every use.

  Its parameters stay whole on every device, as in the paper: no rule of the mesh names their axes.
  """

  features: int
  size: int
  dtype: jnp.dtype
  stride: int = 1
  groups: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    axes = ("conv_height", "conv_width", "conv_in", "conv_out")
    normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", nn.with_logical_partitioning(normal, axes), shape)
    gain = self.vector("gain", nn.initializers.ones)
    bias = self.vector("bias", nn.initializers.zeros)
    out = jax.lax.conv_general_dilated(
      x,
      standardize(kernel, gain).astype(self.dtype),
      window_strides=(self.stride, self.stride),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )
    return checkpoint_name(out, PRODUCT) + bias.astype(self.dtype)

  def vector(self, name: str, start: nn.initializers.Initializer) -> Array:
    return self.param(name, nn.with_logical_partitioning(start, ("conv_out",)), (self.features,))


def standardize(kernel: Float[Array, "H W C D"], gain: Float[Array, " D"]) -> Float[Array, "H W C D"]:
  """Scaled weight standardization: each output's weights get mean 0 and variance gain**2 / fan-in, in float32."""
  kernel, gain = kernel.astype(jnp.float32), gain.astype(jnp.float32)
  mean = kernel.mean(axis=(0, 1, 2), keepdims=True)
  variance = jnp.square(kernel - mean).mean(axis=(0, 1, 2), keepdims=True)
  fan_in = math.prod(kernel.shape[:-1])
  return (kernel - mean) * jax.lax.rsqrt(variance + EPSILON) * gain * fan_in**-0.5


def activate(x: Array) -> Array:
  """GELU that keeps variance 1."""
  return jax.nn.gelu(x, approximate=False) * GELU_GAIN
