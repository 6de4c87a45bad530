"""GATED XATTN-DENSE: the trained layers between the frozen layers of the language model."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.ops.layers import CrossAttention, FeedForward, layer_norm


@dataclasses.dataclass(frozen=True)
class GatedCrossAttentionConfig:
  """Where the gated layers stand and how wide they are (paper, section 2.2 and table 4)."""

  every: int = 1  # a gated layer stands before language layers offset, offset + every, ...
  offset: int = 0
  heads: int = 16
  head_width: int = 128
  feed_forward_multiplier: int = 4
  activation: str = "squared_relu"


class GatedCrossAttention(nn.Module):
  """Lets a frozen language layer see the media (paper, section 2.2 and figure 4).

  Both gates start at zero, so an untrained block is the identity.
  """

  config: GatedCrossAttentionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    text: Float[Array, "B L D"],
    media: Float[Array, "B M V"],
    mask: Bool[Array, "B L M"],
  ) -> Float[Array, "B L D"]:
    config = self.config
    normed = layer_norm(dtype=self.dtype, name="attention_norm")(text)
    seen = CrossAttention(config.heads, config.head_width, self.dtype, name="attention")(normed, media, mask)
    text = text + self.gate("attention_gate") * seen
    normed = layer_norm(dtype=self.dtype, name="feed_forward_norm")(text)
    hidden = text.shape[-1] * config.feed_forward_multiplier
    fed = FeedForward(hidden, config.activation, self.dtype, name="feed_forward")(normed)
    return text + self.gate("feed_forward_gate") * fed

  def gate(self, name: str) -> Array:
    scale = self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, ()), ())
    return jnp.tanh(scale.astype(jnp.float32)).astype(self.dtype)
