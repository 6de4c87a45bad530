"""The one attention function of the project, and its implementations by name."""

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.ops.remat import SHARES
from flamingo_jax.ops.sharding import ACTIVATIONS, constrain, fitting


@flax.struct.dataclass
class Visibility:
  """Who sees whom, told by numbers: a query sees the keys of its own number; number 0 neither sees nor is seen.

  Attributes:
    query_segments: int32 [B, L].
    key_segments: int32 [B, S].
    causal: whether keys at later places than the query are hidden as well.
  """

  query_segments: Int[Array, "B L"]
  key_segments: Int[Array, "B S"]
  causal: bool = flax.struct.field(pytree_node=False, default=False)


Mask = Visibility | Bool[Array, "B L S"]


@flax.struct.dataclass
class KeyValue:
  """Keys and values computed before, for queries to come; heads stand before places, as products want it.

  Attributes:
    key: [b, G, S, K]. Where b is less than the rows B of the queries, B / b of them, one after another, share a row.
    value: the same shape.
  """

  key: Float[Array, "b G S K"]
  value: Float[Array, "b G S K"]

  @classmethod
  def of(cls, key: Float[Array, "b S G K"], value: Float[Array, "b S G K"]) -> "KeyValue":
    """From places before heads."""
    return cls(*(constrain(heads.swapaxes(1, 2), "batch", "heads", None, None) for heads in (key, value)))


def attention(
  query: Float[Array, "B L H K"],
  key: Float[Array, "B S G K"],
  value: Float[Array, "B S G K"],
  mask: Mask | None = None,
  bias: Float[Array, "B H L S"] | None = None,
  *,
  implementation: str = "auto",
) -> Float[Array, "B L H K"]:
  """Scaled dot-product attention with a float32 softmax; G divides H (grouped queries).

  A query that may see nothing gets exactly zero. A softmax over a fully masked row is uniform over every key, which
  would let text before the first image see all images.

  Args:
    query: of H heads.
    key: of G heads.
    value: of G heads.
    mask: who sees whom; None: all see all.
    bias: added to the scaled scores.
    implementation: a name of IMPLEMENTATIONS, or "auto": "splash" on a TPU, "cudnn" on a GPU, "xla" elsewhere, and
      "xla" for what those two do not compute (`objection`).

  Raises:
    UserError: the named implementation does not run here or does not compute this.
  """
  compute = IMPLEMENTATIONS[chosen(implementation, query, mask, bias)]
  attended = compute(query, key, value, mask, bias)
  if mask is None:
    return attended
  return jnp.where(dense(mask).any(axis=-1)[:, :, None, None], attended, 0)


def chosen(name: str, query: Array, mask: Mask | None, bias: Array | None) -> str:
  """The implementation that a name stands for. Raises UserError when a named one cannot be had."""
  if name == "auto":
    best = {home: fast for fast, home in HOMES.items()}.get(platform(), "xla")
    return "xla" if objection(best, query, mask, bias) else best
  check_name(name)
  fault = objection(name, query, mask, bias)
  if fault:
    raise refusal(name, fault)
  return name


HOMES = {"splash": "tpu", "cudnn": "gpu"}  # where an implementation runs; "xla" does anywhere


def check_name(name: str) -> None:
  """Raises UserError when no implementation has this name, or when it does not run here."""
  if name not in NAMES:
    raise UserError(f"model.attention is {name!r}; it is one of {', '.join(NAMES)}.")
  home = HOMES.get(name)
  if home is not None and home != platform():
    raise refusal(name, f"runs on a {home.upper()}; this is a {platform().upper()}")


def refusal(name: str, fault: str) -> UserError:
  return UserError(f"model.attention is {name!r}, which {fault}. Set model.attention=auto, or xla.")


def objection(name: str, query: Array, mask: Mask | None, bias: Array | None) -> str:
  """Why an implementation does not compute this attention; empty if it does."""
  if name == "xla":
    return ""
  if bias is not None:
    return "takes no bias, such as that of ALiBi or relative positions"
  if name == "splash":
    dense_only = mask is not None and not isinstance(mask, Visibility)
    return "takes no dense mask, such as model.cross_attention.previous_media needs" if dense_only else ""
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return f"computes in bfloat16 or float16, not in {query.dtype}"
  if float(getattr(jax.local_devices()[0], "compute_capability", 8.0)) < 8.0:
    return "runs on GPUs of compute capability 8.0 (Ampere) or later"
  width = query.shape[-1]
  return f"takes heads of a width up to 128 that 8 divides, not {width}" if width % 8 or width > 128 else ""


def platform() -> str:
  """What computes, "tpu", "gpu" or "cpu": the mesh that is set (one may compile for it elsewhere) or else this host."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)  # an older JAX does not tell
  return getattr(device, "platform", jax.default_backend())


def by_xla(query: Array, key: Array, value: Array, mask: Mask | None, bias: Array | None) -> Array:
  """The reference: scores and shares of all pairs are held in memory; heads come before places, as products want it."""
  groups, width = key.shape[2:]
  rows, length, heads = query.shape[:3]
  of_groups = query.reshape(rows, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
  of_groups = of_groups.reshape(rows, groups, -1, width)  # the queries of all heads that read the same keys
  key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
  scores = jnp.einsum("bgqk,bgsk->bgqs", of_groups, key, preferred_element_type=jnp.float32) * width**-0.5
  scores = scores.reshape(rows, heads, length, -1)
  if bias is not None:
    scores += bias
  if mask is not None:
    scores = jnp.where(dense(mask)[:, None], scores, jnp.finfo(scores.dtype).min)
  shares = checkpoint_name(jax.nn.softmax(scores).astype(value.dtype), SHARES)
  attended = jnp.einsum("bgqs,bgsk->bgqk", shares.reshape(*of_groups.shape[:3], -1), value)
  return attended.reshape(rows, heads, length, width).swapaxes(1, 2)


def attention_to_parts(
  query: Float[Array, "B L H K"],
  parts: Sequence[KeyValue],
  masks: Sequence[Bool[Array, "B L S"]],
  biases: Sequence[Float[Array, "B H L S"]] | None = None,
) -> Float[Array, "B L H K"]:
  """As `attention`, over keys that lie in parts: none is copied, however many rows share it.

  Args:
    query: of H heads.
    parts: at least one; their rows divide B, and their heads H.
    masks: of each part, True where the query sees the key.
    biases: of each part, added to the scaled scores.
  """
  width = query.shape[-1]
  scores = jnp.concatenate([scores_of(query, part.key) for part in parts], axis=-1) * width**-0.5
  if biases is not None:
    scores += jnp.concatenate(biases, axis=-1)
  mask = jnp.concatenate(masks, axis=-1)
  shares = jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)).astype(query.dtype)
  ends = np.cumsum([part.key.shape[2] for part in parts])
  cut = jnp.split(shares, ends[:-1], axis=-1)
  attended = sum(values_of(share, part.value) for share, part in zip(cut, parts, strict=True)).astype(query.dtype)
  return jnp.where(mask.any(axis=-1)[:, :, None, None], attended, 0)


def scores_of(query: Float[Array, "B L H K"], key: Float[Array, "b G S K"]) -> Float[Array, "B H L S"]:
  """Float32 products of queries and keys; all queries that read the same keys stand in one matrix."""
  (rows, length, heads, width), (shared, groups, places, _) = query.shape, key.shape
  together = query.reshape(shared, rows // shared, length, groups, heads // groups, width).transpose(0, 3, 1, 4, 2, 5)
  together = together.reshape(shared, groups, -1, width)
  scores = jnp.einsum("bgqk,bgsk->bgqs", together, key, preferred_element_type=jnp.float32)
  scores = scores.reshape(shared, groups, rows // shared, heads // groups, length, places).swapaxes(1, 2)
  return scores.reshape(rows, heads, length, places)


def values_of(shares: Float[Array, "B H L S"], value: Float[Array, "b G S K"]) -> Float[Array, "B L H K"]:
  """Float32 sums of values by their shares."""
  (rows, heads, length, places), (shared, groups, _, width) = shares.shape, value.shape
  together = shares.reshape(shared, rows // shared, groups, heads // groups, length, places).swapaxes(1, 2)
  together = together.reshape(shared, groups, -1, places)
  values = jnp.einsum("bgqs,bgsk->bgqk", together, value, preferred_element_type=jnp.float32)
  values = values.reshape(shared, groups, rows // shared, heads // groups, length, width).transpose(0, 2, 4, 1, 3, 5)
  return values.reshape(rows, length, heads, width)


def by_cudnn(query: Array, key: Array, value: Array, mask: Mask | None, bias: None) -> Array:
  """Flash attention of cuDNN. The mask is an array [B, 1, L, S] to it, the same for all heads."""
  if mask is None:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
  length = query.shape[1]
  query, key, value = (padded(heads, 1, 2) for heads in (query, key, value))  # with a mask it trains on even lengths
  seen = padded(padded(dense(mask), 1, 2), 2, 2)
  causal = isinstance(mask, Visibility) and mask.causal  # said again, so that it skips what lies above the diagonal
  attended = jax.nn.dot_product_attention(
    query, key, value, mask=seen[:, None], is_causal=causal, implementation="cudnn"
  )
  return attended[:, :length]


def by_splash(query: Array, key: Array, value: Array, mask: Visibility | None, bias: None) -> Array:
  """Flash attention by the Pallas kernel for TPUs, on each device for its own rows and heads.

  The compiler cannot cut a kernel by itself: where a mesh is set, this does.
  """
  if mask is None:
    mask = Visibility(jnp.ones(query.shape[:2], jnp.int32), jnp.ones(key.shape[:2], jnp.int32))
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return splash_on_device(query, key, value, mask)
  rows = fitting(ACTIVATIONS["batch"], query.shape[0], mesh.shape)
  groups = fitting(ACTIVATIONS["heads"], key.shape[2], mesh.shape)
  heads = PartitionSpec(rows, None, groups)
  cut = (heads, heads, heads, PartitionSpec(rows))
  return jax.shard_map(splash_on_device, in_specs=cut, out_specs=heads, check_vma=False)(query, key, value, mask)


LANES = 128  # the kernel's unit of lengths and head widths
LONGEST_BLOCK = 512


def splash_on_device(query: Array, key: Array, value: Array, mask: Visibility) -> Array:
  """Pads lengths to whole blocks and head widths to whole lanes; what is padded is seen by no real query."""
  length, heads, width = query.shape[1:]
  query_block, key_block = block_of(length), block_of(key.shape[1])

  def blocks(x: Float[Array, "B L H K"], block: int) -> Float[Array, "B H L K"]:
    return padded(padded(x, 1, block), 3, LANES).swapaxes(1, 2)

  query = blocks(query * width**-0.5, query_block)
  key, value = blocks(key, key_block), blocks(value, key_block)
  segments = splash.SegmentIds(padded(mask.query_segments, 1, query_block), padded(mask.key_segments, 1, key_block))
  pattern = splash_mask.CausalMask if mask.causal else splash_mask.FullMask
  sizes = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), query_block)
  sizes |= dict.fromkeys(("block_kv", "block_kv_dkv", "block_kv_dq"), key_block)
  attend = splash.make_splash_mha(
    splash_mask.MultiHeadMask([pattern((query.shape[2], key.shape[2]))] * heads),
    block_sizes=splash.BlockSizes(**sizes),
    head_shards=1,
    q_seq_shards=1,
  )
  return jax.vmap(attend)(query, key, value, segments).swapaxes(1, 2)[:, :length, :, :width]


def block_of(length: int) -> int:
  """The block that cuts a length into equal parts, no longer than they may be and with the least padding."""
  parts = -(-length // LONGEST_BLOCK)
  return -(-length // (parts * LANES)) * LANES


def padded(x: Array, axis: int, multiple: int) -> Array:
  """Zeros (False) after the end of an axis, until `multiple` divides its length."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": by_xla, "cudnn": by_cudnn, "splash": by_splash}
NAMES = ("auto", *IMPLEMENTATIONS)


def dense(mask: Mask) -> Bool[Array, "B L S"]:
  """A mask as an array, True where the query sees the key."""
  if not isinstance(mask, Visibility):
    return mask
  own = mask.query_segments[:, :, None]
  seen = (own == mask.key_segments[:, None, :]) & (own > 0)
  return jnp.tril(seen) if mask.causal else seen


def causal_mask(segments: Int[Array, "B L"]) -> Visibility:
  """Self-attention of documents packed into rows: each position sees its own document up to itself; 0 is padding."""
  return Visibility(segments, segments, causal=True)


def present_mask(present: Bool[Array, "B S"], queries: int) -> Visibility:
  """All queries see all keys that are there."""
  return Visibility(jnp.ones((present.shape[0], queries), jnp.int32), present.astype(jnp.int32))


def media_mask(media_index: Array, media_exists: Array, latents: int, *, previous: bool = False) -> Mask:
  """Which latents each token may read: its own medium's, if that medium exists.

  Args:
    media_index: int32 [B, L], the media slot of each token; -1: none.
    media_exists: bool [B, N].
    latents: R, the number of latents of one medium.
    previous: whether the media in the slots before its own may be read too.

  Returns:
    The mask of L queries and N * R keys; a dense one with `previous`, which numbers cannot tell.
  """
  slots = jnp.arange(media_exists.shape[1])
  if previous:
    seen = (slots <= media_index[:, :, None]) & media_exists[:, None, :]
    return jnp.repeat(seen, latents, axis=-1)
  numbers = jnp.where(media_exists, slots + 1, 0)
  return Visibility(jnp.asarray(media_index) + 1, jnp.repeat(numbers, latents, axis=-1))
