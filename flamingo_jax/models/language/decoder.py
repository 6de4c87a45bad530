"""The decoder-only language model, with room for gated cross-attention between its layers."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from flamingo_jax.ops.attention import attention, causal_mask
from flamingo_jax.ops.layers import FeedForward, linear, rms_norm
from flamingo_jax.ops.positions import rotate, segment_positions


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU."""

  vocabulary: int = 49152
  width: int = 576
  layers: int = 30
  heads: int = 9
  key_value_heads: int = 3
  feed_forward_width: int = 1536
  rope_base: float = 100_000.0
  norm_epsilon: float = 1e-5
  tied_embeddings: bool = True
  extra_tokens: int = 2  # rows of a small table of their own, after the vocabulary: <image> and <EOC>

  @property
  def head_width(self) -> int:
    return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class Media:
  """What gated layers read: latents [B, N * R, V] and, per token, which of them [B, L, N * R]."""

  latents: Array
  mask: Array


class Decoder(nn.Module):
  """Tokens to logits; with a cross-attention config, a gated layer stands before every n-th layer.

  Layers are scanned in groups [gated, n plain layers], so that compile time does not grow with depth. Layers before
  the first gated one form `prefix`, and what does not fill a whole group forms `tail` (80 layers, every 7th: 3 left).
  """

  config: DecoderConfig
  dtype: jnp.dtype
  cross_attention: GatedCrossAttentionConfig | None = None

  def setup(self):
    config = self.config
    table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    small = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("extra_vocab", "embed"))
    self.embeddings = self.param("embeddings", table, (config.vocabulary, config.width))
    if config.extra_tokens:
      self.extra_embeddings = self.param("extra_embeddings", small, (config.extra_tokens, config.width))
    if not config.tied_embeddings:
      self.unembeddings = self.param("unembeddings", table, (config.vocabulary, config.width))
      if config.extra_tokens:
        self.extra_unembeddings = self.param("extra_unembeddings", small, (config.extra_tokens, config.width))
    plan = plan_groups(config.layers, self.cross_attention)
    if plan.prefix:
      self.prefix = layer_stack(plan.prefix)(config, self.dtype)
    if plan.groups:
      self.groups = scanned(Group, plan.groups, "groups")(config, self.cross_attention, plan.group_layers, self.dtype)
    if plan.tail:
      self.tail = Group(config, self.cross_attention, plan.tail, self.dtype)
    self.norm = rms_norm(config.norm_epsilon, dtype=self.dtype, name=None)

  def __call__(
    self, tokens: Int[Array, "B L"], segments: Int[Array, "B L"], media: Media | None = None
  ) -> Float[Array, "B L vocabulary"]:
    """Returns float32 logits over the vocabulary and, after it, the extra tokens."""
    x = self.embed(tokens)
    x = nn.with_logical_constraint(x, ("batch", "length", "embed_activation"))
    mask, positions = causal_mask(segments), segment_positions(segments)
    latents, seen = (media.latents, media.mask) if media is not None else (None, None)
    if hasattr(self, "prefix"):
      x, _ = self.prefix(x, mask, positions)
    if hasattr(self, "groups"):
      x, _ = self.groups(x, mask, positions, latents, seen)
    if hasattr(self, "tail"):
      x, _ = self.tail(x, mask, positions, latents, seen)
    return self.unembed(self.norm(x))

  def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    known = self.config.vocabulary
    x = self.embeddings.astype(self.dtype)[jnp.minimum(tokens, known - 1)]
    if not self.config.extra_tokens:
      return x
    extra = self.extra_embeddings.astype(self.dtype)[jnp.maximum(tokens - known, 0)]
    return jnp.where((tokens >= known)[:, :, None], extra, x)

  def unembed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L vocabulary"]:
    tied = self.config.tied_embeddings
    tables = [self.embeddings if tied else self.unembeddings]
    if self.config.extra_tokens:
      tables.append(self.extra_embeddings if tied else self.extra_unembeddings)
    parts = [jnp.einsum("bld,vd->blv", x, t.astype(self.dtype), preferred_element_type=jnp.float32) for t in tables]
    return jnp.concatenate(parts, axis=-1)


class Group(nn.Module):
  """One gated layer and the plain layers it stands before."""

  config: DecoderConfig
  cross_attention: GatedCrossAttentionConfig | None
  layers: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask, positions, latents, seen):
    if self.cross_attention is not None:
      x = GatedCrossAttention(self.cross_attention, self.dtype, name="gated_cross_attention")(x, latents, seen)
    x, _ = layer_stack(self.layers)(self.config, self.dtype, name="layers")(x, mask, positions)
    return x, None


class DecoderLayer(nn.Module):
  """Causal self-attention and a gated feed-forward block, both residual, both after RMSNorm."""

  config: DecoderConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L L"], positions: Int[Array, "B L"]):
    config = self.config
    normed = rms_norm(config.norm_epsilon, dtype=self.dtype, name="attention_norm")(x)
    x = x + SelfAttention(config, self.dtype, name="attention")(normed, mask, positions)
    normed = rms_norm(config.norm_epsilon, dtype=self.dtype, name="feed_forward_norm")(x)
    fed = FeedForward(config.feed_forward_width, "silu", self.dtype, gated=True, name="feed_forward")(normed)
    return x + fed, None


class SelfAttention(nn.Module):
  """Grouped-query attention with rotary positions."""

  config: DecoderConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask, positions):
    config = self.config
    width = config.head_width
    axes = ("embed", "heads", "head_width")
    grouped = ("embed", "key_value_heads", "head_width")
    query = linear((config.heads, width), axes, dtype=self.dtype, name="query")(x)
    key = linear((config.key_value_heads, width), grouped, dtype=self.dtype, name="key")(x)
    value = linear((config.key_value_heads, width), grouped, dtype=self.dtype, name="value")(x)
    query, key = (rotate(heads, positions, config.rope_base) for heads in (query, key))
    attended = attention(query, key, value, mask)
    return linear(x.shape[-1], ("heads", "head_width", "embed"), dtype=self.dtype, name="output", fold=2)(attended)


@dataclasses.dataclass(frozen=True)
class GroupPlan:
  """How the layers of a decoder are cut: plain ones, whole groups, and a ragged last group."""

  prefix: int
  groups: int
  group_layers: int
  tail: int


def plan_groups(layers: int, cross_attention: GatedCrossAttentionConfig | None) -> GroupPlan:
  """Cuts the layers; without cross-attention they are all prefix."""
  if cross_attention is None:
    return GroupPlan(prefix=layers, groups=0, group_layers=0, tail=0)
  rest = layers - cross_attention.offset
  groups, tail = divmod(rest, cross_attention.every)
  return GroupPlan(cross_attention.offset, groups, cross_attention.every, tail)


def gated_layers(layers: int, cross_attention: GatedCrossAttentionConfig) -> tuple[int, ...]:
  """The language layers that a gated layer stands before: offset, offset + every, ... (appendix B.1.1)."""
  return tuple(range(cross_attention.offset, layers, cross_attention.every))


def scanned(module: type[nn.Module], length: int, axis: str):
  """`module` repeated over parameters stacked along a logical `axis`; all inputs but the first are shared."""
  return nn.scan(
    module,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,
    length=length,
    metadata_params={nn.PARTITION_NAME: axis},
  )


def layer_stack(length: int):
  return scanned(DecoderLayer, length, "layers")


def group_layers(stacked: dict, layers: int, cross_attention: GatedCrossAttentionConfig | None) -> dict:
  """Layer parameters stacked [layers, ...] (how they are stored) to the decoder's prefix, groups and tail.

  Args:
    stacked: a flat dict, parameter path within one layer -> array [layers, ...].
    layers: of the language model.
    cross_attention: where the gated layers stand.

  Returns:
    A flat dict, parameter path within the decoder -> array.
  """
  plan = plan_groups(layers, cross_attention)
  whole = plan.prefix + plan.groups * plan.group_layers
  grouped = {}
  for path, array in stacked.items():
    if plan.prefix:
      grouped[f"prefix/{path}"] = array[: plan.prefix]
    if plan.groups:
      shape = (plan.groups, plan.group_layers, *array.shape[1:])
      grouped[f"groups/layers/{path}"] = array[plan.prefix : whole].reshape(shape)
    if plan.tail:
      grouped[f"tail/layers/{path}"] = array[whole:]
  return grouped
