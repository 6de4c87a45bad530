"""The bidirectional transformer under the vision encoder and the text tower."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from flamingo_jax.ops.layers import CrossAttention, FeedForward, layer_norm


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes of a pre-norm transformer encoder."""

  width: int = 256
  layers: int = 4
  heads: int = 4
  feed_forward_multiplier: int = 4


class Encoder(nn.Module):
  """[B, S, D] to [B, S, D]; a bool mask [B, S] hides padding from every position."""

  config: EncoderConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, present=None):
    mask = None if present is None else jnp.broadcast_to(present[:, None, :], (*present.shape, present.shape[1]))
    layers = nn.scan(
      EncoderLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.config.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = layers(self.config, self.dtype, name="layers")(x, mask)
    return layer_norm(dtype=self.dtype, name="norm")(x)


class EncoderLayer(nn.Module):
  """Self-attention and a GELU feed-forward block, both residual, both after LayerNorm."""

  config: EncoderConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask):
    width, heads = self.config.width, self.config.heads
    normed = layer_norm(dtype=self.dtype, name="attention_norm")(x)
    x = x + CrossAttention(heads, width // heads, self.dtype, name="attention")(normed, normed, mask)
    normed = layer_norm(dtype=self.dtype, name="feed_forward_norm")(x)
    hidden = width * self.config.feed_forward_multiplier
    return x + FeedForward(hidden, "gelu", self.dtype, bias=True, name="feed_forward")(normed), None
