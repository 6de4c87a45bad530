"""What the paper's table 3 has in the Perceiver Resampler's place: one feed-forward network over all features."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.ops.layers import ACTIVATIONS, layer_norm, linear


@dataclasses.dataclass(frozen=True)
class MlpResamplerConfig:
  """Sizes of the network. Unlike the Perceiver's, its parameters grow with frames and features."""

  family: str = "mlp"
  latents: int = 64
  hidden_width: int = 1024
  frames: int = 1  # of a clip, at most: it has weights for each
  activation: str = "squared_relu"
  output_width: int = 0  # of a latent; 0: the vision encoder's width


class MlpResampler(nn.Module):
  """All features of one image or video at once, to latents; frames that are absent count as zeros (paper, table 3)."""

  config: MlpResamplerConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, features: Float[Array, "B N F S V"], media_mask: Bool[Array, "B N F"]) -> Float[Array, "B N R W"]:
    """Raises ValueError where there are more frames than the config has weights for."""
    config = self.config
    batch, slots, frames, positions, width = features.shape
    if frames > config.frames:
      raise ValueError(f"{frames} frames; an MLP resampler of {config.frames} reads no more.")
    normed = layer_norm(dtype=self.dtype, name="features_norm")(features)
    present = jnp.where(media_mask[..., None, None], normed, 0)
    present = jnp.pad(present, ((0, 0), (0, 0), (0, config.frames - frames), (0, 0), (0, 0)))
    x = present.reshape(batch, slots, config.frames * positions * width)
    x = linear(config.hidden_width, ("embed", "mlp"), dtype=self.dtype, name="up")(x)
    outputs = (config.latents, config.output_width or width)
    x = linear(outputs, ("mlp", "latents", "media"), dtype=self.dtype, name="down")(ACTIVATIONS[config.activation](x))
    return layer_norm(dtype=self.dtype, name="norm")(x)
