"""A language model on its own: the decoder that Flamingo freezes, before it is frozen."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.models.language.decoder import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
  """The decoder and how it is computed; the tokens that Flamingo adds later are none of its own."""

  language: DecoderConfig = DecoderConfig(extra_tokens=0)
  dtype: str = "bfloat16"  # of activations and matrix products
  attention: str = "auto"  # its implementation: a name of ops.attention
  remat: str = "products"  # what of each layer is computed again for its gradient: a name of ops.remat.POLICIES


class LanguageModel(nn.Module):
  """Documents to the likelihoods of their next tokens.

  Parameters have the paths of a Flamingo's, `language/...`, but that its layers are one stack.
  """

  config: LanguageModelConfig

  def setup(self):
    config = self.config
    self.language = Decoder(config.language, jnp.dtype(config.dtype), None, config.remat, config.attention)

  def __call__(self, batch: dict[str, Array]) -> Float[Array, "B L vocabulary"]:
    """Float32 logits of a batch with `tokens` and `segments` (docs/batch.md)."""
    return self.language(batch["tokens"], batch["segments"])

  def score(self, batch: dict[str, Array]) -> Float[Array, "B L-1"]:
    """log p(tokens[l] | tokens[<l] of the same document) for l = 1 ... L - 1, float32."""
    return self.language.score(batch["tokens"], batch["segments"])


def initialize(config: LanguageModelConfig, key: Array) -> dict:
  """Fresh parameters, boxed with their logical axes."""
  batch = dict(tokens=jnp.zeros((1, 2), jnp.int32), segments=jnp.ones((1, 2), jnp.int32))
  anywhere = dataclasses.replace(config, attention="xla")  # the parameters are the same
  return LanguageModel(anywhere).init(key, batch)["params"]
