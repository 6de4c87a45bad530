import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.ops.vocabulary import CHUNK, log_likelihoods

ROWS = (11, 3)  # of two tables, as a language model and its added tokens have


def inputs(length: int, seed: int = 0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(2, length, 8)).astype(np.float32)
  tables = [3 * random.normal(size=(rows, 8)).astype(np.float32) for rows in ROWS]
  return x, random.integers(0, sum(ROWS), (2, length)), tables


def numpy_likelihoods(x, targets, tables):
  logits = np.float64(x) @ np.concatenate(tables).astype(np.float64).T
  logits -= logits.max(axis=-1, keepdims=True)
  chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return chosen - np.log(np.exp(logits).sum(axis=-1))


@pytest.mark.parametrize("length", [1, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_likelihoods_match_numpy_whatever_the_length(jit, length):
  x, targets, tables = inputs(length)
  found = jit(log_likelihoods)(x, targets, tables)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, numpy_likelihoods(x, targets, tables), atol=1e-5)


@pytest.mark.parametrize("length", [5, CHUNK + 9])
def test_gradients_are_those_of_the_plain_loss(jit, length):
  x, targets, tables = inputs(length, seed=1)
  weights = np.random.default_rng(2).normal(size=(2, length)).astype(np.float32)

  def plain(x, tables):
    logits = jax.nn.log_softmax(x @ jnp.concatenate(tables).T)
    return (jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] * weights).sum()

  def ours(x, tables):
    return (log_likelihoods(x, targets, tables) * weights).sum()

  expected, found = (jit(jax.grad(function, argnums=(0, 1)))(x, tables) for function in (plain, ours))
  for ours_, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours_, theirs, atol=1e-4)


def test_large_logits_do_not_overflow(jit):
  x, targets, tables = inputs(6)
  found = jit(log_likelihoods)(1e3 * x, targets, tables)
  np.testing.assert_allclose(found, numpy_likelihoods(1e3 * x, targets, tables), rtol=1e-4, atol=1e-3)


def test_likelihoods_of_bfloat16_states_are_float32_and_close(jit):
  x, targets, tables = inputs(9)
  found = jit(log_likelihoods)(x.astype(jnp.bfloat16), targets, tables)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, numpy_likelihoods(x, targets, tables), atol=0.3)


def arrays_in(program) -> set[tuple[int, ...]]:
  return {tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", program.as_text())}


def test_logits_of_all_positions_never_exist(jit):
  """Frozen tables: neither the forward pass nor the gradient holds them, and the tables get no gradient."""
  batch, length, width, rows = 3, 4 * CHUNK, 16, 997
  shapes = (jax.ShapeDtypeStruct((batch, length, width), np.float32), jax.ShapeDtypeStruct((batch, length), np.int32))
  table = jax.ShapeDtypeStruct((rows, width), np.float32)
  step = jax.jit(jax.value_and_grad(lambda x, targets, table: log_likelihoods(x, targets, [table]).sum()))
  sizes = [int(np.prod(shape)) for shape in arrays_in(step.lower(*shapes, table).compile())]
  assert max(sizes) < batch * length * rows / 3
  naive = jax.jit(jax.value_and_grad(lambda x, targets, table: jax.nn.log_softmax(x @ table.T)[..., 0].sum()))
  naive_sizes = [int(np.prod(shape)) for shape in arrays_in(naive.lower(*shapes, table).compile())]
  assert max(naive_sizes) >= batch * length * rows
