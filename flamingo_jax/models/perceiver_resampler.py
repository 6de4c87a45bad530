"""The Perceiver Resampler: any number of visual features to a fixed number of latents."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.ops.attention import present_mask
from flamingo_jax.ops.layers import CrossAttention, FeedForward, layer_norm, linear
from flamingo_jax.ops.remat import rematerialized


@dataclasses.dataclass(frozen=True)
class PerceiverResamplerConfig:
  """Sizes of the resampler; its width is the vision encoder's (paper, table 4)."""

  family: str = "perceiver"
  layers: int = 6
  latents: int = 64
  heads: int = 16
  head_width: int = 0  # 0: the width divided by the heads
  feed_forward_multiplier: float = 4.0
  frames: int = 8  # temporal embeddings; more frames than this interpolate them; 0: none
  media: int = 0  # embeddings of a medium's place among the others, as some implementations have; 0: none
  activation: str = "squared_relu"
  head_norm: str = ""  # of queries and keys, such as "layer"; empty: none
  output_width: int = 0  # the latents are projected to it, such as the language model's width; 0: they are not


class PerceiverResampler(nn.Module):
  """Learned latents read the features of one image or video (paper, section 2.1 and figure 5).

  An image is a video of one frame. Frames add a learned temporal embedding before space and time are flattened.
  """

  config: PerceiverResamplerConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention
  remat: str = "none"  # a name of ops.remat.POLICIES

  @nn.compact
  def __call__(self, features: Float[Array, "B N F S V"], media_mask: Bool[Array, "B N F"]) -> Float[Array, "B N R V"]:
    config = self.config
    batch, slots, frames, positions, width = features.shape
    if config.frames:
      embeddings = self.table("temporal_embeddings", "frames", config.frames, width)
      features = features + at_frames(embeddings, frames)[:, None, :]
    if config.media:
      features = features + self.table("media_embeddings", "media", config.media, width)[:slots, None, None, :]
    features = features.reshape(batch * slots, frames * positions, width)
    latents = self.table("latents", "latents", config.latents, width)
    x = jnp.broadcast_to(latents, (batch * slots, config.latents, width))
    seen = jnp.repeat(media_mask.reshape(batch * slots, frames), positions, axis=-1)
    seen = jnp.concatenate([seen, jnp.ones((batch * slots, config.latents), bool)], axis=-1)
    mask = present_mask(seen, queries=config.latents)
    layers = nn.scan(
      rematerialized(ResamplerLayer, self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=config.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = layers(config, self.dtype, self.implementation, name="layers")(x, features, mask)
    x = layer_norm(dtype=self.dtype, name="norm")(x)
    if config.output_width:
      x = linear(config.output_width, ("embed", "media"), dtype=self.dtype, name="output")(x)
    return x.reshape(batch, slots, config.latents, -1)

  def table(self, name: str, axis: str, rows: int, width: int) -> Float[Array, "rows V"]:
    """A learned table, in the dtype of the computation."""
    small = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
    return self.param(name, small, (rows, width)).astype(self.dtype)


class ResamplerLayer(nn.Module):
  """Latents attend to the features and to themselves, then a feed-forward block; both residual."""

  config: PerceiverResamplerConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention

  @nn.compact
  def __call__(self, x, features, mask):
    width = x.shape[-1]
    media = layer_norm(dtype=self.dtype, name="features_norm")(features)
    latents = layer_norm(dtype=self.dtype, name="latents_norm")(x)
    context = jnp.concatenate([media, latents], axis=1)
    heads, head_width = self.config.heads, self.config.head_width or width // self.config.heads
    attend = CrossAttention(
      width,
      heads,
      head_width,
      self.dtype,
      self.config.head_norm,
      implementation=self.implementation,
      name="attention",
    )
    x = x + attend(latents, context, mask)
    normed = layer_norm(dtype=self.dtype, name="feed_forward_norm")(x)
    hidden = round(width * self.config.feed_forward_multiplier)
    return x + FeedForward(hidden, self.config.activation, self.dtype, name="feed_forward")(normed), None


def at_frames(embeddings: Float[Array, "E V"], frames: int) -> Float[Array, "F V"]:
  """The temporal embeddings of a clip: the first ones, or all of them stretched linearly over a longer clip.

  The paper trains with 8 frames and tests with 30 by linear interpolation (appendix B.1.1).
  """
  known = embeddings.shape[0]
  if frames <= known:
    return embeddings[:frames]
  places = jnp.linspace(0, known - 1, frames)
  interpolate = jax.vmap(lambda column: jnp.interp(places, jnp.arange(known), column), in_axes=1, out_axes=1)
  return interpolate(embeddings)
