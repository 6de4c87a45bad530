"""Sums of arrays by which a changed bit is found: the same on every mesh, and computed where the arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

SPREAD = np.uint32(2654435769)  # 2**32 over the golden ratio: neighbours get factors far apart


def array_sums(items: dict[str, object]) -> dict[str, int]:
  """Of every array of some trees, by the tree's name and the array's path; all hosts call it together.

  One after the other: of programs that run side by side, XLA's virtual devices may each wait for those at another one.
  """
  jax.block_until_ready(items)
  return {
    name + jax.tree_util.keystr(path): int(array_sum(array))
    for name, item in items.items()
    for path, array in jax.tree_util.tree_leaves_with_path(item)
  }


@jax.jit
def array_sum(array: Array) -> UInt32[Array, ""]:
  """All numbers' bits as whole numbers, each times an odd factor of its place, added modulo 2**32.

  One changed bit always shows: an odd number times a power of two below 2**32 is no multiple of that. Of other damage
  one in 2**32 does not.
  """
  bits = as_whole_numbers(array)
  place = jnp.zeros(bits.shape, jnp.uint32)
  for axis, length in enumerate(bits.shape):
    place = place * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return jnp.sum(bits * (place * SPREAD | np.uint32(1)), dtype=jnp.uint32)


def as_whole_numbers(array: Array) -> UInt32[Array, "..."]:
  """The bits of each number; a number of 8 bytes becomes two of 4."""
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  whole = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(array, whole).astype(jnp.uint32)
