"""The whole model: frozen vision encoder, resampler, frozen language model with gated layers."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig, Media, group_layers, ungroup_layers
from flamingo_jax.models.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import VisionConfig, example_media, vision_tower
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.ops.attention import media_mask


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
  """Everything the architecture is made of."""

  vision: VisionConfig = VitConfig()
  resampler: PerceiverResamplerConfig | None = PerceiverResamplerConfig()  # None: text reads the features themselves
  cross_attention: GatedCrossAttentionConfig = GatedCrossAttentionConfig()
  language: DecoderConfig = DecoderConfig()
  dtype: str = "bfloat16"  # of activations and matrix products


class Flamingo(nn.Module):
  """Any interleaving of images, videos and text, to the logits of the next token (paper, section 2)."""

  config: FlamingoConfig

  def setup(self):
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    self.vision = vision_tower(config.vision, dtype)
    if config.resampler is not None:
      self.resampler = PerceiverResampler(config.resampler, dtype)
    self.language = Decoder(config.language, dtype, config.cross_attention)

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
    exists = batch["media_mask"].any(axis=-1)
    previous = self.config.cross_attention.previous_media
    seen = media_mask(batch["media_index"], exists, latents.shape[2], previous=previous)
    flat = latents.reshape(latents.shape[0], -1, latents.shape[-1])
    return self.language(batch["tokens"], batch["segments"], Media(flat, seen))


def initialize(config: FlamingoConfig, key: Array) -> dict:
  """Fresh parameters of every part, boxed with their logical axes. Trace it: most parts are replaced by frozen ones."""
  batch = dict(
    tokens=jnp.zeros((1, 2), jnp.int32),
    segments=jnp.ones((1, 2), jnp.int32),
    media=example_media(config.vision)[None, None, None],
    media_mask=jnp.ones((1, 1, 1), bool),
    media_index=jnp.zeros((1, 2), jnp.int32),
  )
  return Flamingo(config).init(key, batch)["params"]


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


def next_token_loss(logits: Float[Array, "B L vocabulary"], tokens: Array, weights: Array) -> tuple[Array, Array]:
  """Negative log-likelihood summed over weighted positions, and the sum of the weights, both float32.

  `weights[b, l]` weighs the prediction of `tokens[b, l]` from what stands before it; the first position has none.
  """
  likelihoods = log_likelihoods(logits, tokens)
  weights = weights[:, 1:].astype(jnp.float32)
  return -(likelihoods * weights).sum(), weights.sum()


def log_likelihoods(logits: Float[Array, "B L vocabulary"], tokens: Array) -> Float[Array, "B L-1"]:
  """log p(tokens[l] | tokens[<l]) for l = 1 ... L - 1, in float32."""
  logits = logits[:, :-1].astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)
