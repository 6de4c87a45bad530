"""GATED XATTN-DENSE: the trained layers between the frozen layers of the language model."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.ops.attention import KeyValue, Mask
from flamingo_jax.ops.layers import NORMS, CrossAttention, FeedForward


@dataclasses.dataclass(frozen=True)
class GatedCrossAttentionConfig:
  """Where the gated layers stand and how they are made (paper, section 2.2 and table 4)."""

  every: int = 1  # a gated layer stands before language layers offset, offset + every, ...
  offset: int = 0
  after: bool = False  # they stand after those layers instead
  heads: int = 16
  head_width: int = 128
  feed_forward_multiplier: float = 4.0
  activation: str = "squared_relu"
  gated_feed_forward: bool = False
  norm: str = "layer"
  norm_epsilon: float = 1e-5
  head_norm: str = ""  # of queries and keys, such as "rms"; empty: none
  gated: bool = True  # False: what the layers give is added as it is, as in the paper's table 3
  vector_gates: bool = False  # a gate for every channel instead of one for the layer
  previous_media: bool = False  # text reads all media up to its own, not its own alone
  blind_sees_all: bool = False  # as OpenFlamingo does with previous_media; only to compare with it


class GatedCrossAttention(nn.Module):
  """Lets a frozen language layer see the media (paper, section 2.2 and figure 4).

  Both gates start at zero, so an untrained block is the identity; unless it has none.
  """

  config: GatedCrossAttentionConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention

  @nn.compact
  def __call__(
    self,
    text: Float[Array, "B L D"],
    media: Float[Array, "B M V"] | tuple[KeyValue, ...],
    mask: Mask | Sequence[Bool[Array, "B L M"]],
  ) -> Float[Array, "B L D"]:
    """Media are latents, or what `attention_of` remembers of them, part by part, with a mask for each part."""
    config = self.config
    normed = self.norm("attention_norm")(text)
    attend = attention_of(config, text.shape[-1], self.dtype, self.implementation, name="attention")
    read = attend.recall if isinstance(media, tuple) else attend
    text = text + self.gated("attention_gate", read(normed, media, mask))
    normed = self.norm("feed_forward_norm")(text)
    hidden = round(text.shape[-1] * config.feed_forward_multiplier)
    feed = FeedForward(hidden, config.activation, self.dtype, config.gated_feed_forward, name="feed_forward")
    return text + self.gated("feed_forward_gate", feed(normed))

  def norm(self, name: str) -> nn.Module:
    return NORMS[self.config.norm](dtype=self.dtype, epsilon=self.config.norm_epsilon, name=name)

  def gated(self, name: str, change: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """What is added to the text: the change times the tanh of a learned scale."""
    if not self.config.gated:
      return change
    shape, axes = (change.shape[-1:], ("norm",)) if self.config.vector_gates else ((), ())
    scale = self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, axes), shape)
    return jnp.tanh(scale.astype(jnp.float32)).astype(self.dtype) * change


def attention_of(
  config: GatedCrossAttentionConfig, width: int, dtype: jnp.dtype, implementation: str, *, name: str | None = None
) -> CrossAttention:
  """The cross-attention of a gated layer before a language layer of some width."""
  return CrossAttention(
    width,
    config.heads,
    config.head_width,
    dtype,
    config.head_norm,
    config.norm_epsilon,
    config.blind_sees_all,
    implementation=implementation,
    name=name,
  )
