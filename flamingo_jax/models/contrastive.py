"""The vision encoder's own pretraining: a picture tower and a text tower, matched within the batch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.models.encoder import Encoder, EncoderConfig
from flamingo_jax.models.vision.vit import Vit, VitConfig
from flamingo_jax.ops.layers import linear


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
  """Two towers and the width where they meet (paper, appendix B.1.3)."""

  vision: VitConfig = VitConfig()
  text: EncoderConfig = EncoderConfig()
  vocabulary: int = 49152
  embedding_width: int = 576  # of the token embeddings; those of a language model may stand in, frozen
  length: int = 32  # the longest text, tokens
  joint_width: int = 256
  temperature: float = 0.07  # at the start; learned
  dtype: str = "bfloat16"
  attention: str = "auto"  # its implementation: a name of ops.attention


class Contrastive(nn.Module):
  """A caption batch to unit vectors of its pictures and texts, and the temperature (float32 all)."""

  config: ContrastiveConfig

  @nn.compact
  def __call__(self, batch: dict[str, Array]) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, ""]]:
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    features = Vit(config.vision, dtype, config.attention, name="vision")(batch["media"][:, 0, 0])
    present = batch["segments"] > 0
    texts = TextTower(config, dtype, name="text")(batch["tokens"], present)
    images = linear(config.joint_width, ("embed", "joint"), dtype=dtype, name="image_projection")(features.mean(axis=1))
    texts = linear(config.joint_width, ("embed", "joint"), dtype=dtype, name="text_projection")(texts)
    start = nn.with_logical_partitioning(nn.initializers.constant(jnp.log(config.temperature)), ())
    log_temperature = self.param("log_temperature", start, ())
    return unit(images), unit(texts), jnp.exp(log_temperature.astype(jnp.float32))


class TextTower(nn.Module):
  """Token and position embeddings, a bidirectional encoder, the mean over the text's tokens.

  The tokens that Flamingo adds lie beyond the vocabulary; they say nothing here and are hidden like padding.
  """

  config: ContrastiveConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens: Array, present: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    width = self.config.text.width
    small = nn.initializers.normal(0.02)
    known = self.config.vocabulary
    present = present & (tokens < known)
    shape = (known, self.config.embedding_width)
    table = self.param("embeddings", nn.with_logical_partitioning(small, ("vocab", "embed")), shape)
    positions = self.param(
      "position_embeddings", nn.with_logical_partitioning(small, ("positions", "embed")), (self.config.length, width)
    )
    words = table.astype(self.dtype)[jnp.minimum(tokens, known - 1)]
    x = linear(width, ("embedding", "embed"), dtype=self.dtype, name="embedding_projection")(words)
    x = x + positions.astype(self.dtype)[: tokens.shape[1]]
    x = Encoder(self.config.text, self.dtype, self.config.attention, name="encoder")(x, present)
    weights = present[:, :, None].astype(self.dtype)
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
  """Rows scaled to length 1, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def symmetric_loss(
  images: Float[Array, "B E"],
  texts: Float[Array, "B E"],
  temperature: Float[Array, ""],
  paired: Bool[Array, " B"],
) -> tuple[Array, Array, Array]:
  """Cross-entropy of finding a picture's text and a text's picture in the batch, half each (paper, appendix B.1.3).

  Rows that are not `paired` (a picture that could not be decoded) are neither asked for nor offered.

  Returns:
    The summed loss, the number of pairs, and how many pictures found their text, all float32.
  """
  similarity = images @ texts.T / temperature
  offered = jnp.where(paired[None, :], similarity, -1e9)
  offered_back = jnp.where(paired[None, :], similarity.T, -1e9)
  losses = (cross_entropy(offered) + cross_entropy(offered_back)) / 2
  right = offered.argmax(axis=1) == jnp.arange(len(similarity))
  weights = paired.astype(jnp.float32)
  return (losses * weights).sum(), weights.sum(), (right * weights).sum()


def cross_entropy(similarity: Float[Array, "B B"]) -> Float[Array, " B"]:
  """Row i should choose column i."""
  return jax.nn.logsumexp(similarity, axis=-1) - jnp.diagonal(similarity)


def initialize(config: ContrastiveConfig, key: Array) -> dict:
  """Fresh parameters, boxed with their logical axes."""
  size = config.vision.image_size
  batch = dict(
    tokens=jnp.zeros((1, config.length), jnp.int32),
    segments=jnp.ones((1, config.length), jnp.int32),
    media=jnp.zeros((1, 1, 1, size, size, 3), jnp.uint8),
  )
  anywhere = dataclasses.replace(config, attention="xla")  # the parameters are the same
  return Contrastive(anywhere).init(key, batch)["params"]
