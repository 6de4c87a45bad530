"""The loss over the vocabulary in chunks, so that logits [B, L, vocabulary] never exist whole."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.ops.products import turned_product
from flamingo_jax.ops.sharding import constrain

CHUNK = 64  # positions whose logits exist at one time


def log_likelihoods(
  x: Float[Array, "B L D"], targets: Int[Array, "B L"], tables: Sequence[Float[Array, "rows D"]]
) -> Float[Array, "B L"]:
  """log p(target) where the logits are x times the rows of all tables, one above the other; float32.

  The gradient for x is found with the likelihoods themselves, chunk by chunk: it is linear in what comes back, so the
  logits are computed once and nothing of their size is kept.

  Args:
    x: the states after the last norm.
    targets: rows of the tables, counted through.
    tables: the unembeddings, such as the language model's own and those of added tokens.
  """
  return likelihoods(x, targets, tuple(tables))


@jax.custom_vjp
def likelihoods(x, targets, tables):
  return by_chunks(lambda x, targets: chunk_likelihoods(x, targets, tables)[0], x, targets)


def forward(x, targets, tables):
  def both(x, targets):
    chosen, shares = chunk_likelihoods(x, targets, tables)
    return chosen, pull(shares, targets, tables).astype(x.dtype)

  chosen, toward = by_chunks(both, x, targets)
  return chosen, (x, targets, tables, toward)


def backward(kept, back):
  x, targets, tables, toward = kept
  rows = [table.shape[0] for table in tables]
  starts = [sum(rows[:index]) for index in range(len(rows))]

  def accumulate(total, chunk):
    # The tables' gradients need the shares once more; where the tables are frozen the compiler leaves all of this out.
    x, targets, back = chunk
    _, shares = chunk_likelihoods(x, targets, tables)
    found = []
    for table, start, share in zip(tables, starts, shares, strict=True):
      error = back[..., None] * (jax.nn.one_hot(targets - start, table.shape[0]) - share)
      found.append(jnp.einsum("blv,bld->vd", error.astype(x.dtype), x, preferred_element_type=jnp.float32))
    return jax.tree.map(jnp.add, total, tuple(found)), None

  zeros = tuple(jnp.zeros(table.shape, jnp.float32) for table in tables)
  of_tables, _ = jax.lax.scan(accumulate, zeros, chunked((x, targets, back)))
  of_tables = tuple(found.astype(table.dtype) for found, table in zip(of_tables, tables, strict=True))
  return (back[..., None] * toward).astype(x.dtype), None, of_tables


likelihoods.defvjp(forward, backward)


def chunk_likelihoods(x, targets, tables):
  """Likelihoods float32 [B, L] of one chunk, and the share of every row of each table float32 [B, L, rows]."""
  logits = [logits_of(x, table) for table in tables]
  highest = jnp.stack([part.max(axis=-1) for part in logits]).max(axis=0)
  exponentials = [jnp.exp(part - highest[..., None]) for part in logits]
  total = sum(part.sum(axis=-1) for part in exponentials)
  chosen, start = jnp.zeros_like(total), 0
  for part in logits:
    own = (targets >= start) & (targets < start + part.shape[-1])
    place = jnp.clip(targets - start, 0, part.shape[-1] - 1)
    chosen += jnp.where(own, jnp.take_along_axis(part, place[..., None], axis=-1)[..., 0], 0)
    start += part.shape[-1]
  shares = [part / total[..., None] for part in exponentials]
  return chosen - highest - jnp.log(total), shares


def logits_of(x: Float[Array, "B L D"], table: Float[Array, "rows D"]) -> Float[Array, "B L rows"]:
  """Float32 logits."""
  logits = turned_product(x, table.astype(x.dtype), preferred=jnp.float32)
  return constrain(logits, "batch", None, "vocab")


def pull(shares, targets, tables) -> Float[Array, "B L D"]:
  """d likelihood / d x: the target's row minus the mean of all rows by their shares."""
  total, start = jnp.zeros((), jnp.float32), 0
  for share, table in zip(shares, tables, strict=True):
    rows = table.shape[0]
    own = (targets >= start) & (targets < start + rows)
    target = table[jnp.clip(targets - start, 0, rows - 1)].astype(jnp.float32)
    mean = jnp.einsum("blv,vd->bld", share.astype(table.dtype), table, preferred_element_type=jnp.float32)
    total, start = total + jnp.where(own[..., None], target, 0) - mean, start + rows
  return total


def by_chunks(function, x, targets):
  """function(x, targets) on chunks of positions, one after another, put together again."""
  length = targets.shape[1]
  _, results = jax.lax.scan(lambda _, chunk: (None, function(*chunk)), None, chunked((x, targets)))
  return jax.tree.map(
    lambda parts: jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1, *parts.shape[3:])[:, :length], results
  )


def chunked(arrays):
  """Arrays [B, L, ...] to [chunks, B, CHUNK, ...], padded with zeros behind."""

  def cut(array):
    size = min(CHUNK, array.shape[1])
    padded = jnp.pad(array, ((0, 0), (0, -array.shape[1] % size), *((0, 0),) * (array.ndim - 2)))
    return jnp.moveaxis(padded.reshape(array.shape[0], -1, size, *array.shape[2:]), 1, 0)

  return jax.tree.map(cut, arrays)
