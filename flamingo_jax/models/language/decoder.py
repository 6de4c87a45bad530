"""The decoder-only language model, with room for gated cross-attention between its layers."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from flamingo_jax.ops.attention import KeyValue, Mask, attention, attention_to_parts, causal_mask
from flamingo_jax.ops.layers import NORMS, FeedForward, linear
from flamingo_jax.ops.positions import (
  alibi,
  alibi_bias,
  by_distance,
  distances,
  earlier,
  rotate,
  segment_positions,
  sinusoids,
)
from flamingo_jax.ops.remat import rematerialized
from flamingo_jax.ops.sharding import constrain
from flamingo_jax.ops.vocabulary import log_likelihoods, logits_of

RESIDUALS = ("sequential", "parallel", "shared")
POSITIONS = ("rotary", "learned", "alibi", "relative")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """What sets one family of language models apart from another; the defaults are SmolLM2-135M, a Llama."""

  vocabulary: int = 49152
  width: int = 576
  layers: int = 30
  heads: int = 9
  key_value_heads: int = 3
  head_width: int = 0  # 0: the width divided by the heads
  feed_forward_width: int = 1536
  activation: str = "silu"
  gated_feed_forward: bool = True
  bias: bool = False  # of every linear map in the layers
  norm: str = "rms"  # or "layer", "layer_without_bias"
  norm_epsilon: float = 1e-5
  query_key_norm: bool = False  # over all heads together, before they are cut apart
  residual: str = "sequential"  # or "parallel": attention beside feed-forward; "shared": with one norm for both
  positions: str = "rotary"  # or "learned", "alibi", "relative" (Transformer-XL)
  rope_base: float = 100_000.0
  rotary_share: float = 1.0  # how much of each head is rotated
  position_rows: int = 0  # of the learned table
  position_offset: int = 0  # the row of the first token
  tied_embeddings: bool = True
  extra_tokens: int = 2  # rows of a small table of their own, after the vocabulary: <image> and <EOC>

  @property
  def key_width(self) -> int:
    """K, the width of one head."""
    return self.head_width or self.width // self.heads


@dataclasses.dataclass(frozen=True)
class Media:
  """What gated layers read: latents [B, N * R, V] and, per token, which of them."""

  latents: Array
  mask: Mask


@flax.struct.dataclass
class Past:
  """What new tokens attend to in one layer: what was read before them, and themselves.

  Attributes:
    parts: keys and values of what was read before; their rows divide those of the new tokens.
    positions: int32 [b, S] of each part and, last, of the new tokens and their room; -1 where there is no token.
    room: where the keys and values of the new tokens go, and later those of the next; None: they are kept alone.
    slot: int32, the place in the room where the new tokens start.
  """

  parts: tuple[KeyValue, ...]
  positions: tuple[Array, ...]
  room: KeyValue | None = None
  slot: Array | None = None

  def own(self, key: Float[Array, "B L G K"], value: Float[Array, "B L G K"]) -> KeyValue:
    """The keys and values of the new tokens, in their room."""
    new = KeyValue.of(key, value)
    if self.room is None:
      return new
    return jax.tree.map(lambda room, new: jax.lax.dynamic_update_slice_in_dim(room, new, self.slot, 2), self.room, new)


class Decoder(nn.Module):
  """Tokens to logits; with a cross-attention config, a gated layer stands before every n-th layer.

  Layers are scanned in groups [gated, n plain layers], so that compile time does not grow with depth. Layers before
  the first gated one form `prefix`, and what does not fill a whole group forms `tail` (80 layers, every 7th: 3 left).
  A tail without layers is a gated layer that stands after the last one.
  """

  config: DecoderConfig
  dtype: jnp.dtype
  cross_attention: GatedCrossAttentionConfig | None = None
  remat: str = "none"  # a name of ops.remat.POLICIES
  implementation: str = "auto"  # of attention

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
    if config.positions == "learned":
      rows = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("positions", "embed"))
      self.position_embeddings = self.param("position_embeddings", rows, (config.position_rows, config.width))
    plan = plan_groups(config.layers, self.cross_attention)
    if plan.prefix:
      self.prefix = layer_stack(plan.prefix, self.remat)(config, self.dtype, self.implementation)
    if plan.groups:
      group = scanned(Group, plan.groups, "groups")
      self.groups = group(config, self.cross_attention, plan.group_layers, self.dtype, self.remat, self.implementation)
    if plan.tail is not None:
      self.tail = Group(config, self.cross_attention, plan.tail, self.dtype, self.remat, self.implementation)
    self.norm = NORMS[config.norm](epsilon=config.norm_epsilon, dtype=self.dtype, name=None)

  def __call__(
    self, tokens: Int[Array, "B L"], segments: Int[Array, "B L"], media: Media | None = None
  ) -> Float[Array, "B L vocabulary"]:
    """Returns float32 logits over the vocabulary and, after it, the extra tokens."""
    return self.unembed(self.read(tokens, segments, media))

  def score(
    self, tokens: Int[Array, "B L"], segments: Int[Array, "B L"], media: Media | None = None
  ) -> Float[Array, "B L-1"]:
    """log p(tokens[l] | tokens[<l]) for l = 1 ... L - 1, in float32, without the logits of all positions at once."""
    x = self.read(tokens, segments, media)
    return log_likelihoods(x[:, :-1], tokens[:, 1:], self.unembedding_tables())

  def read(self, tokens: Array, segments: Array, media: Media | None) -> Float[Array, "B L D"]:
    """The states after the last norm."""
    mask, positions = causal_mask(segments), segment_positions(segments)
    x = constrain(self.place(self.embed(tokens), positions), "batch", None, None)
    latents, seen = (media.latents, media.mask) if media is not None else (None, None)
    if hasattr(self, "prefix"):
      x, _ = self.prefix(x, mask, positions)
    if hasattr(self, "groups"):
      x, _ = self.groups(x, mask, positions, latents, seen)
    if hasattr(self, "tail"):
      x, _ = self.tail(x, mask, positions, latents, seen)
    return self.norm(x)

  def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    known = self.config.vocabulary
    # Cast behind the lookup: so the gradients of a token's many places are summed in the table's float32.
    x = self.embeddings[jnp.minimum(tokens, known - 1)].astype(self.dtype)
    if not self.config.extra_tokens:
      return x
    extra = self.extra_embeddings[jnp.maximum(tokens - known, 0)].astype(self.dtype)
    return jnp.where((tokens >= known)[:, :, None], extra, x)

  def place(self, x: Float[Array, "B L D"], positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Adds the learned positions, if there are any."""
    if self.config.positions != "learned":
      return x
    return x + self.position_embeddings[positions + self.config.position_offset].astype(self.dtype)

  def unembed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L vocabulary"]:
    return jnp.concatenate([logits_of(x, table) for table in self.unembedding_tables()], axis=-1)

  def unembedding_tables(self) -> list[Float[Array, "rows D"]]:
    """What logits are made with: the language model's rows, then those of the extra tokens."""
    tied = self.config.tied_embeddings
    tables = [self.embeddings if tied else self.unembeddings]
    if self.config.extra_tokens:
      tables.append(self.extra_embeddings if tied else self.extra_unembeddings)
    return tables


class Group(nn.Module):
  """One gated layer and the plain layers it stands before."""

  config: DecoderConfig
  cross_attention: GatedCrossAttentionConfig | None
  layers: int
  dtype: jnp.dtype
  remat: str
  implementation: str

  @nn.compact
  def __call__(self, x, mask, positions, latents, seen):
    if self.cross_attention is not None:
      gated = rematerialized(GatedCrossAttention, self.remat)
      x = gated(self.cross_attention, self.dtype, self.implementation, name="gated_cross_attention")(x, latents, seen)
    if self.layers:
      layers = layer_stack(self.layers, self.remat)(self.config, self.dtype, self.implementation, name="layers")
      x, _ = layers(x, mask, positions)
    return x, None


class DecoderLayer(nn.Module):
  """Causal self-attention and feed-forward, both residual, both after a norm; one after the other or side by side."""

  config: DecoderConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], mask: Mask, positions: Int[Array, "B L"], past: Past | None = None):
    """The new x and, where there is a past, the keys and values of the new tokens to be put with it."""
    config, kept = self.config, None
    x = constrain(x, "batch", None, None)
    normed = self.norm("attention_norm")(x)
    attend = SelfAttention(config, self.dtype, self.implementation, name="attention")
    attended = attend(normed, mask, positions, past)
    if past is not None:
      attended, kept = attended
    feed = FeedForward(
      config.feed_forward_width,
      config.activation,
      self.dtype,
      config.gated_feed_forward,
      config.bias,
      name="feed_forward",
    )
    if config.residual == "sequential":
      x = x + attended
      return x + feed(self.norm("feed_forward_norm")(x)), kept
    beside = normed if config.residual == "shared" else self.norm("feed_forward_norm")(x)
    return x + attended + feed(beside), kept

  def norm(self, name: str) -> nn.Module:
    return NORMS[self.config.norm](epsilon=self.config.norm_epsilon, dtype=self.dtype, name=name)


class SelfAttention(nn.Module):
  """Grouped-query attention; how it knows positions is the config's."""

  config: DecoderConfig
  dtype: jnp.dtype
  implementation: str = "auto"  # of attention

  @nn.compact
  def __call__(self, x, mask, positions, past: Past | None = None):
    """What each token gathers and, where there is a past, the keys and values of the new tokens to be put with it."""
    config = self.config
    query = self.heads("query", config.heads, "heads")(x)
    key = self.heads("key", config.key_value_heads, "key_value_heads")(x)
    value = self.heads("value", config.key_value_heads, "key_value_heads")(x)
    if config.query_key_norm:
      query, key = self.normed("query_norm", query), self.normed("key_norm", key)
    if config.positions == "rotary":
      query, key = (rotate(heads, positions, config.rope_base, config.rotary_share) for heads in (query, key))
    own = None if past is None else past.own(key, value)
    if past is None or (not past.parts and past.room is None):  # there is nothing before
      query, bias = self.biased(query, positions)
      attended = attention(query, key, value, mask, bias, implementation=self.implementation)
    else:
      query, biases = self.biased_by_part(query, positions, past.positions)
      masks = [earlier(positions, keys) for keys in past.positions]
      attended = attention_to_parts(query, (*past.parts, own), masks, biases)
    axes = ("heads", "head_width", "embed")
    output = linear(x.shape[-1], axes, dtype=self.dtype, name="output", fold=2, bias=config.bias)(attended)
    return output if past is None else (output, own)

  def heads(self, name: str, count: int, axis: str) -> nn.Module:
    shape, axes = (count, self.config.key_width), ("embed", axis, "head_width")
    return linear(shape, axes, dtype=self.dtype, name=name, bias=self.config.bias)

  def normed(self, name: str, heads: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    """A norm over all heads together."""
    together = heads.reshape(*heads.shape[:2], -1)
    norm = NORMS[self.config.norm](epsilon=self.config.norm_epsilon, dtype=self.dtype, name=name)
    return norm(together).reshape(heads.shape)

  def biased(
    self, query: Float[Array, "B L H K"], positions: Int[Array, "B L"]
  ) -> tuple[Float[Array, "B L H K"], Float[Array, "B H L L"] | None]:
    """Queries, and what is added to their scores with the keys of the same tokens."""
    config = self.config
    if config.positions == "alibi":
      return query, alibi_bias(positions, config.heads)
    if config.positions != "relative":
      return query, None
    of_content, of_distance, distance = self.relative(query)
    projected = distance(sinusoids(query.shape[1], config.width).astype(self.dtype))
    scores = jnp.einsum("blhk,thk->bhlt", of_distance, projected, preferred_element_type=jnp.float32)
    return of_content, by_distance(scores) * config.key_width**-0.5

  def biased_by_part(
    self, query: Float[Array, "B L H K"], positions: Int[Array, "B L"], of_keys: tuple[Int[Array, "b S"], ...]
  ) -> tuple[Float[Array, "B L H K"], list[Float[Array, "B H L S"]] | None]:
    """Queries, and what is added to their scores with keys that lie in parts."""
    config = self.config
    behind = [distances(positions, keys) for keys in of_keys]
    if config.positions == "alibi":
      return query, [alibi(distance, config.heads) for distance in behind]
    if config.positions != "relative":
      return query, None
    of_content, of_distance, distance = self.relative(query)
    # For a few queries it is less work to take them through the map than every distance.
    mapped = jnp.einsum("blhk,hkd->blhd", of_distance, distance.outputs_first())
    table = sinusoids(sum(keys.shape[1] for keys in of_keys), config.width).astype(self.dtype)
    scores = jnp.einsum("blhd,td->bhlt", mapped, table, preferred_element_type=jnp.float32) * config.key_width**-0.5
    rows = [jnp.maximum(distance, 0)[:, None] for distance in behind]
    heads = [jnp.broadcast_to(row, (row.shape[0], config.heads, *row.shape[2:])) for row in rows]
    return of_content, [jnp.take_along_axis(scores, row, axis=-1) for row in heads]

  def relative(self, query: Float[Array, "B L H K"]) -> tuple[Array, Array, nn.Module]:
    """Transformer-XL's relative positions (Dai et al., 2019, section 3.3): queries with their content bias, and with
    their distance bias, and the map of distances. Distances within a document are those within the row."""
    config = self.config
    shape, axes = (config.heads, config.key_width), ("heads", "head_width")
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    content_bias = self.param("content_bias", zeros, shape).astype(self.dtype)
    distance_bias = self.param("distance_bias", zeros, shape).astype(self.dtype)
    distance = linear(shape, ("embed", *axes), dtype=self.dtype, name="distance")
    return query + content_bias, query + distance_bias, distance


@dataclasses.dataclass(frozen=True)
class GroupPlan:
  """How the layers of a decoder are cut: plain ones, whole groups, and a ragged last group, which may have no layer."""

  prefix: int
  groups: int
  group_layers: int
  tail: int | None  # layers of the last group; None: there is none


def plan_groups(layers: int, cross_attention: GatedCrossAttentionConfig | None) -> GroupPlan:
  """Cuts the layers; without cross-attention they are all prefix."""
  if cross_attention is None:
    return GroupPlan(prefix=layers, groups=0, group_layers=0, tail=None)
  every, gated = cross_attention.every, gated_layers(layers, cross_attention)
  prefix = min(cross_attention.offset + cross_attention.after, layers)
  groups, tail = divmod(layers - prefix, every)
  return GroupPlan(prefix, groups, every, tail if len(gated) > groups else None)


def gated_layers(layers: int, cross_attention: GatedCrossAttentionConfig) -> tuple[int, ...]:
  """The language layers that a gated layer belongs to: offset, offset + every, ... (appendix B.1.1)."""
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


def layer_stack(length: int, remat: str):
  return scanned(rematerialized(DecoderLayer, remat), length, "layers")


def group_layers(stacked: dict, layers: int, cross_attention: GatedCrossAttentionConfig | None) -> dict:
  """Parameters stacked by layer (how they are stored) to the decoder's prefix, groups and tail.

  Args:
    stacked: a flat dict; `layers/...` [layers, ...] and `gated_cross_attention/...` [gated layers, ...] are cut, and
      what else there is stays.
    layers: of the language model.
    cross_attention: where the gated layers stand.

  Returns:
    A flat dict, parameter path within the decoder -> array.
  """
  plan = plan_groups(layers, cross_attention)
  whole = plan.prefix + plan.groups * plan.group_layers
  grouped = {}
  for path, array in stacked.items():
    if path.startswith("gated_cross_attention/"):
      if plan.groups:
        grouped[f"groups/{path}"] = array[: plan.groups]
      if plan.tail is not None:
        grouped[f"tail/{path}"] = array[plan.groups]
    elif path.startswith("layers/"):
      if plan.prefix:
        grouped[f"prefix/{path.removeprefix('layers/')}"] = array[: plan.prefix]
      if plan.groups:
        shape = (plan.groups, plan.group_layers, *array.shape[1:])
        grouped[f"groups/{path}"] = array[plan.prefix : whole].reshape(shape)
      if plan.tail:
        grouped[f"tail/{path}"] = array[whole:]
    else:
      grouped[path] = array
  return grouped


def ungroup_layers(grouped: dict) -> dict:
  """The inverse of `group_layers`."""
  pieces: dict[str, list] = {}
  for part in ("prefix", "groups", "tail"):
    for path, array in grouped.items():
      if path.startswith(f"{part}/"):
        inner = path.removeprefix(f"{part}/")
        is_gated = inner.startswith("gated_cross_attention/")
        name = f"layers/{inner}" if part == "prefix" else inner
        if part == "groups" and not is_gated:
          array = array.reshape(-1, *array.shape[2:])
        pieces.setdefault(name, []).append(array[None] if part == "tail" and is_gated else array)
  others = {path: array for path, array in grouped.items() if path.split("/")[0] not in ("prefix", "groups", "tail")}
  return others | {name: np.concatenate(arrays) for name, arrays in pieces.items()}
