"""The bidirectional transformer under the vision encoder and the text tower."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from flamingo_jax.ops.attention import present_mask
from flamingo_jax.ops.layers import CrossAttention, FeedForward, layer_norm
from flamingo_jax.ops.remat import rematerialized


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes of a pre-norm transformer encoder, and where its published kin differ."""

  width: int = 256
  layers: int = 4
  heads: int = 4
  feed_forward_multiplier: float = 4.0
  activation: str = "gelu"
  attention_bias: bool = False  # of the queries, keys, values and outputs
  norm_epsilon: float = 1e-5
  final_norm: bool = True

  @property
  def feed_forward_width(self) -> int:
    return round(self.width * self.feed_forward_multiplier)


class Encoder(nn.Module):
  """[B, S, D] to [B, S, D]; a bool mask [B, S] hides padding from every position."""

  config: EncoderConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention
  remat: str = "none"  # a name of ops.remat

  @nn.compact
  def __call__(self, x, present=None):
    config = self.config
    mask = None if present is None else present_mask(present, queries=x.shape[1])
    layers = nn.scan(
      rematerialized(EncoderLayer, self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=config.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = layers(config, self.dtype, self.implementation, name="layers")(x, mask)
    if not config.final_norm:
      return x
    return layer_norm(dtype=self.dtype, epsilon=config.norm_epsilon, name="norm")(x)


class EncoderLayer(nn.Module):
  """Self-attention and a feed-forward block, both residual, both after LayerNorm."""

  config: EncoderConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention

  @nn.compact
  def __call__(self, x, mask):
    config = self.config
    head_width = config.width // config.heads
    attend = CrossAttention(
      config.width,
      config.heads,
      head_width,
      self.dtype,
      bias=config.attention_bias,
      implementation=self.implementation,
      name="attention",
    )
    normed = self.norm("attention_norm")(x)
    x = x + attend(normed, normed, mask)
    feed = FeedForward(config.feed_forward_width, config.activation, self.dtype, bias=True, name="feed_forward")
    return x + feed(self.norm("feed_forward_norm")(x)), None

  def norm(self, name: str) -> nn.Module:
    return layer_norm(dtype=self.dtype, epsilon=self.config.norm_epsilon, name=name)
