"""Products of activations and a kernel: one for training, with a gradient that never turns the larger of its operands
around, and one for decoding, where the rows are few and the kernels lie the other way."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from flamingo_jax.ops.remat import PRODUCT


def product(x: Array, kernel: Array, dimensions, **ignored) -> Array:
  """`jax.lax.dot_general` as `flax.linen.DenseGeneral` calls it, without batch dimensions.

  Sums over the last axes of x and the first of the kernel: [batch ..., inputs ...] and [inputs ..., outputs ...].

  JAX finds a kernel's gradient as (cotangent^T x)^T. Where the cotangent is the wider one, a CPU spends as long on
  turning it around, with the activation's gradient fused into that, as on the product itself.
  """
  del ignored  # precision and accumulation type, which we leave to JAX
  (_, inputs), _ = dimensions
  return checkpoint_name(folded(x, kernel, len(inputs)), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def folded(x: Array, kernel: Array, inputs: int) -> Array:
  last = tuple(range(x.ndim - inputs, x.ndim))
  return jax.lax.dot_general(x, kernel, ((last, tuple(range(inputs))), ((), ())))


def forward(x: Array, kernel: Array, inputs: int):
  return folded(x, kernel, inputs), (x, kernel)


def backward(inputs: int, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
  x, kernel = kept
  rows = tuple(range(x.ndim - inputs))
  outputs = tuple(range(len(rows), cotangent.ndim))
  of_x = jax.lax.dot_general(cotangent, kernel, ((outputs, tuple(range(inputs, kernel.ndim))), ((), ())))
  if math.prod(kernel.shape[:inputs]) <= math.prod(kernel.shape[inputs:]):
    return of_x, jax.lax.dot_general(x, cotangent, ((rows, rows), ((), ())))
  turned = jax.lax.dot_general(cotangent, x, ((rows, rows), ((), ())))
  return of_x, turned.transpose(*range(len(outputs), turned.ndim), *range(len(outputs)))


folded.defvjp(forward, backward)


FEW = 16  # rows, up to which the kernel goes first


def turned_product(x: Array, turned: Array, inputs: int = 1, *, preferred: jnp.dtype | None = None) -> Array:
  """[batch ..., inputs ...] and [outputs ..., inputs ...], summed over the inputs: [batch ..., outputs ...].

  For a few rows of x, as in decoding, time is what it takes to read the kernel. A CPU reads it once, from front to end,
  where it is the first operand and lies with its inputs last; else it is packed anew for every product. `preferred` is
  the dtype that sums are kept in.
  """
  rows = x.ndim - inputs
  last = tuple(range(rows, x.ndim)), tuple(range(turned.ndim - inputs, turned.ndim))
  count = math.prod(x.shape[:rows])
  if not isinstance(count, int) or count > FEW:  # an exported program may leave the number open
    return jax.lax.dot_general(x, turned, (last, ((), ())), preferred_element_type=preferred)
  first = jax.lax.dot_general(turned, x, (last[::-1], ((), ())), preferred_element_type=preferred)
  return first.transpose(*range(turned.ndim - inputs, first.ndim), *range(turned.ndim - inputs))
