"""The whole model: frozen vision encoder, resampler, frozen language model with gated layers."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig, Media, group_layers, ungroup_layers
from flamingo_jax.models.mlp_resampler import MlpResampler, MlpResamplerConfig
from flamingo_jax.models.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import VisionConfig, example_media, vision_tower
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.ops.attention import media_mask


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
  """Everything the architecture is made of."""

  vision: VisionConfig = VitConfig()
  # None: text reads the features themselves.
  resampler: PerceiverResamplerConfig | MlpResamplerConfig | None = PerceiverResamplerConfig()
  cross_attention: GatedCrossAttentionConfig = GatedCrossAttentionConfig()
  language: DecoderConfig = DecoderConfig()
  dtype: str = "bfloat16"  # of activations and matrix products
  attention: str = "auto"  # its implementation: a name of ops.attention
  remat: str = "products"  # what of each layer is computed again for its gradient: a name of ops.remat.POLICIES

  @property
  def frames(self) -> int:
    """Frames of a clip in training, at most."""
    return 1 if self.resampler is None else max(self.resampler.frames, 1)


class Flamingo(nn.Module):
  """Any interleaving of images, videos and text, to the logits of the next token (paper, section 2)."""

  config: FlamingoConfig

  def setup(self):
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    self.vision = vision_tower(config.vision, dtype, config.attention, config.remat)
    if isinstance(config.resampler, MlpResamplerConfig):
      self.resampler = MlpResampler(config.resampler, dtype)
    elif config.resampler is not None:
      self.resampler = PerceiverResampler(config.resampler, dtype, config.attention, config.remat)
    self.language = Decoder(config.language, dtype, config.cross_attention, config.remat, config.attention)

  def __call__(self, batch: dict[str, Array]) -> Float[Array, "B L vocabulary"]:
    """Float32 logits of a batch with `tokens`, `segments`, `media`, `media_mask`, `media_index` (docs/batch.md)."""
    latents = self.see(batch["media"], batch["media_mask"])
    return self.read(batch, latents)

  def see(self, media: Array, mask: Array) -> Float[Array, "B N R V"]:
    """Media and mask bool [B, N, F] to latents.

    Media are uint8 pixels [B, N, F, H, W, 3], or features [B, N, F, S, V] where they were computed before. No gradient
    enters the vision encoder unless its parameters are among the trained ones.
    """
    batch, slots, frames = media.shape[:3]
    features = self.vision(media.reshape(batch * slots * frames, *media.shape[3:]))
    return self.resample(features.reshape(batch, slots, frames, *features.shape[1:]), mask)

  def resample(self, features: Float[Array, "B N F S V"], mask: Array) -> Float[Array, "B N R V"]:
    """Features of all frames to the latents of each medium."""
    if self.config.resampler is None:
      return features[:, :, 0]
    return self.resampler(features, mask)

  def read(self, batch: dict[str, Array], latents: Float[Array, "B N R V"]) -> Float[Array, "B L vocabulary"]:
    """Text and the latents of its media to logits."""
    return self.language(batch["tokens"], batch["segments"], self.media(batch, latents))

  def score(self, batch: dict[str, Array]) -> Float[Array, "B L-1"]:
    """log p(tokens[l] | media, tokens[<l]) for l = 1 ... L - 1, float32 (paper, equation 1)."""
    latents = self.see(batch["media"], batch["media_mask"])
    return self.language.score(batch["tokens"], batch["segments"], self.media(batch, latents))

  def media(self, batch: dict[str, Array], latents: Float[Array, "B N R V"]) -> Media:
    """All latents of a row side by side, and which of them each token reads."""
    exists = batch["media_mask"].any(axis=-1)
    previous = self.config.cross_attention.previous_media
    seen = media_mask(batch["media_index"], exists, latents.shape[2], previous=previous)
    flat = latents.reshape(latents.shape[0], -1, latents.shape[-1])
    return Media(flat, seen)


def initialize(config: FlamingoConfig, key: Array) -> dict:
  """Fresh parameters of every part, boxed with their logical axes. Trace it: most parts are replaced by frozen ones."""
  batch = dict(
    tokens=jnp.zeros((1, 2), jnp.int32),
    segments=jnp.ones((1, 2), jnp.int32),
    media=example_media(config.vision)[None, None, None],
    media_mask=jnp.ones((1, 1, 1), bool),
    media_index=jnp.zeros((1, 2), jnp.int32),
  )
  anywhere = dataclasses.replace(config, attention="xla")  # the parameters are the same
  return Flamingo(anywhere).init(key, batch)["params"]


def grouped(stacked: dict, config: FlamingoConfig) -> dict:
  """Parameters as they are stored, all layers of the language model in one stack, to how the model takes them."""
  return within(stacked, lambda language: group_layers(language, config.language.layers, config.cross_attention))


def stacked(grouped: dict) -> dict:
  """The inverse of `grouped`."""
  return within(grouped, ungroup_layers)


def within(parameters: dict, change: Callable[[dict], dict]) -> dict:
  """Changes the language model's part of a flat dict."""
  prefix = "language/"
  language = {path.removeprefix(prefix): array for path, array in parameters.items() if path.startswith(prefix)}
  others = {path: array for path, array in parameters.items() if not path.startswith(prefix)}
  return others | {prefix + path: array for path, array in change(language).items()}
