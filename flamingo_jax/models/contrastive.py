"""The vision encoder's own pretraining: a picture tower and a text tower, matched within the batch."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from flamingo_jax.models.encoder import Encoder, EncoderConfig
from flamingo_jax.models.vision.towers import VisionConfig, example_media, vision_tower
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.ops.contrast import logsumexps, softplus_sums
from flamingo_jax.ops.layers import linear

LOWEST_TEMPERATURE = 0.01  # as CLIP has it: scores are at most a hundred times the cosine
LOSSES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
  """Two towers and the width where they meet (paper, appendix B.1.3)."""

  vision: VisionConfig = VitConfig()
  text: EncoderConfig = EncoderConfig()
  vocabulary: int = 49152
  embedding_width: int = 576  # of the token embeddings; those of a language model may stand in, frozen
  length: int = 32  # the longest text, tokens
  joint_width: int = 256
  loss: str = "softmax"  # a name of LOSSES: the paper's, or SigLIP's (Zhai et al., 2023)
  label_smoothing: float = 0.0  # of the softmax: this share of each target is spread over all that is offered
  temperature: float = 0.07  # at the start; learned
  bias: float = -10.0  # of the sigmoid's scores, at the start; learned
  dtype: str = "bfloat16"
  attention: str = "auto"  # its implementation: a name of ops.attention
  remat: str = "none"  # what of a layer is kept for its gradient: a name of ops.remat


@flax.struct.dataclass
class Scale:
  """What turns cosines into scores, float32.

  Attributes:
    temperature: that they are divided by.
    bias: that is added; 0 under the softmax, which it would not change.
  """

  temperature: Float[Array, ""]
  bias: Float[Array, ""]


class Contrastive(nn.Module):
  """Pictures and texts to unit vectors of the joint width, float32."""

  config: ContrastiveConfig

  def setup(self):
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    self.vision = vision_tower(config.vision, dtype, config.attention, config.remat)
    self.text = TextTower(config, dtype)
    self.image_projection, self.text_projection = (
      linear(config.joint_width, ("embed", "joint"), dtype=dtype) for _ in range(2)
    )
    self.log_temperature = self.number("log_temperature", jnp.log(config.temperature))
    if config.loss == "sigmoid":
      self.logit_bias = self.number("logit_bias", config.bias)

  def number(self, name: str, start: float) -> Float[Array, ""]:
    return self.param(name, nn.with_logical_partitioning(nn.initializers.constant(start), ()), ()).astype(jnp.float32)

  def __call__(self, batch: dict[str, Array]) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Scale]:
    """The vectors of a batch's pictures and of its texts, and how they are compared."""
    images, texts = self.images(batch["media"][:, 0, 0]), self.texts(batch["tokens"], batch["segments"] > 0)
    bias = self.logit_bias if self.config.loss == "sigmoid" else jnp.zeros(())
    return images, texts, Scale(jnp.exp(no_lower(self.log_temperature, jnp.log(LOWEST_TEMPERATURE))), bias)

  def images(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B E"]:
    return unit(self.image_projection(self.vision(pixels).mean(axis=1)))

  def texts(self, tokens: Int[Array, "B L"], present: Bool[Array, "B L"]) -> Float[Array, "B E"]:
    return unit(self.text_projection(self.text(tokens, present)))


@jax.custom_vjp
def no_lower(x: Float[Array, ""], lowest: Float[Array, ""]) -> Float[Array, ""]:
  """The maximum; a gradient that leads up passes there too, so that what has come to the bound can leave it."""
  return jnp.maximum(x, lowest)


no_lower.defvjp(
  lambda x, lowest: (jnp.maximum(x, lowest), x > lowest),
  lambda above, back: (jnp.where(above | (back < 0), back, 0), None),
)


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
    # Cast behind the lookup: so the gradients of a word's many places are summed in the table's float32.
    words = jnp.asarray(table)[jnp.minimum(tokens, known - 1)].astype(self.dtype)
    x = linear(width, ("embedding", "embed"), dtype=self.dtype, name="embedding_projection")(words)
    x = x + positions.astype(self.dtype)[: tokens.shape[1]]
    encoder = Encoder(self.config.text, self.dtype, self.config.attention, self.config.remat, name="encoder")
    x = encoder(x, present)
    weights = present[:, :, None].astype(self.dtype)
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
  """Rows scaled to length 1, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def pairs_of(batch: dict[str, Array]) -> Bool[Array, " B"]:
  """The rows of a batch that have both a picture and a text."""
  return batch["media_mask"][:, 0, 0] & (batch["loss_weights"].sum(axis=1) > 0)


def matching_loss(
  config: ContrastiveConfig,
  images: Float[Array, "B E"],
  texts: Float[Array, "B E"],
  scale: Scale,
  paired: Bool[Array, " B"],
) -> tuple[Array, Array, Array]:
  """The loss of finding a picture's text and a text's picture in the whole batch, all devices together.

  Rows that are not `paired` (a picture that could not be decoded) are neither asked for nor offered.

  Returns:
    The summed loss, the number of pairs, and how many pictures found their text, all float32.
  """
  queries, weights = images / scale.temperature, paired.astype(jnp.float32)
  if config.loss == "sigmoid":
    total, best = sigmoid_loss(queries, texts, scale.bias, paired)
  else:
    total, best = softmax_loss(queries, texts, paired, config.label_smoothing)
  return total, weights.sum(), (weights * (best == jnp.arange(len(best)))).sum()


def softmax_loss(
  queries: Float[Array, "B E"], keys: Float[Array, "B E"], paired: Bool[Array, " B"], smoothing: float
) -> tuple[Float[Array, ""], Int[Array, " B"]]:
  """Cross-entropy both ways, half each (paper, appendix B.1.3), summed; and which key each query likes best.

  What smoothing takes off the right score it puts on the mean of all; the sum of these over the batch is the product of
  two sums.
  """
  weights = paired.astype(jnp.float32)
  rows, columns, best = logsumexps(queries, keys, paired)
  own = (queries * keys).sum(axis=1)
  total = (weights * ((rows + columns) / 2 - (1 - smoothing) * own)).sum()
  if smoothing:
    everyone = ((weights[:, None] * queries).sum(axis=0) * (weights[:, None] * keys).sum(axis=0)).sum()
    total -= smoothing * everyone / jnp.maximum(weights.sum(), 1)
  return total, best


def sigmoid_loss(
  queries: Float[Array, "B E"], keys: Float[Array, "B E"], bias: Float[Array, ""], paired: Bool[Array, " B"]
) -> tuple[Float[Array, ""], Int[Array, " B"]]:
  """Whether each two belong together, asked of each two alone (Zhai et al., 2023, equation 1), summed; and as above.

  -log sigmoid(-s) is softplus(s) for two that do not, and softplus(s) - s for two that do.
  """
  weights = paired.astype(jnp.float32)
  sums, best = softplus_sums(queries, keys, bias, paired)
  return (weights * (sums - (queries * keys).sum(axis=1) - bias)).sum(), best


def initialize(config: ContrastiveConfig, key: Array) -> dict:
  """Fresh parameters, boxed with their logical axes."""
  batch = dict(
    tokens=jnp.zeros((1, config.length), jnp.int32),
    segments=jnp.ones((1, config.length), jnp.int32),
    media=example_media(config.vision)[None, None, None],
  )
  anywhere = dataclasses.replace(config, attention="xla")  # the parameters are the same
  return Contrastive(anywhere).init(key, batch)["params"]
