"""The vision encoders that a model may have, each chosen by the `family` of its config."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.models.vision.nfnet import Nfnet, NfnetConfig
from flamingo_jax.models.vision.vit import Vit, VitConfig


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
  """No encoder: the media are features that one computed before."""

  family: str = "features"
  width: int = 1024
  positions: int = 256


class Features(nn.Module):
  """Passes features on."""

  config: FeaturesConfig
  dtype: jnp.dtype

  def __call__(self, features: Float[Array, "B S V"]) -> Float[Array, "B S V"]:
    return features.astype(self.dtype)


VisionConfig = VitConfig | NfnetConfig | FeaturesConfig


def vision_tower(
  config: VisionConfig, dtype: jnp.dtype, implementation: str = "auto", remat: str = "none"
) -> nn.Module:
  """The module of a config: uint8 pixels [B, H, W, 3] (or features) to [B, S, V].

  Args:
    config: of the encoder.
    dtype: of the computation.
    implementation: of attention.
    remat: a name of ops.remat, for an encoder that is trained.
  """
  if isinstance(config, VitConfig):
    return Vit(config, dtype, implementation, remat)
  return Nfnet(config, dtype, remat) if isinstance(config, NfnetConfig) else Features(config, dtype)


def example_media(config: VisionConfig) -> Array:
  """What one frame looks like to a tower, all zeros."""
  if isinstance(config, FeaturesConfig):
    return jnp.zeros((config.positions, config.width), jnp.float32)
  return jnp.zeros((config.image_size, config.image_size, 3), jnp.uint8)
