import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from flamingo_jax.models.parameters import flat, nested

CONFIG = GatedCrossAttentionConfig(heads=2, head_width=4, feed_forward_multiplier=2)
GATES = ("attention_gate", "feed_forward_gate")


def layer(dtype=jnp.float32) -> GatedCrossAttention:
  return GatedCrossAttention(CONFIG, dtype)


@pytest.fixture(scope="module")
def inputs():
  random = np.random.default_rng(0)
  text = random.normal(size=(2, 5, 8)).astype(np.float32)
  media = random.normal(size=(2, 6, 12)).astype(np.float32)
  mask = random.random((2, 5, 6)) < 0.5
  mask[0, 0] = False
  return text, media, mask


@pytest.fixture(scope="module")
def weights(random_parameters, inputs):
  return random_parameters(lambda key: layer().init(key, *inputs)["params"])


def test_layer_matches_numpy(jit, reference, weights, inputs):
  text, media, mask = inputs
  part = lambda name: reference.below(weights, f"{name}/")  # noqa: E731
  seen = reference.cross_attention(part("attention"), reference.layer_norm(part("attention_norm"), text), media, mask)
  expected = text + np.tanh(np.float64(weights["attention_gate"])) * seen
  fed = reference.feed_forward(part("feed_forward"), reference.layer_norm(part("feed_forward_norm"), expected))
  expected = expected + np.tanh(np.float64(weights["feed_forward_gate"])) * fed
  np.testing.assert_allclose(jit(layer().apply)(nested(weights), *inputs), expected, atol=1e-5)


def test_fresh_gates_are_shut(jit, inputs):
  fresh = flat(jit(layer().init)(jax.random.key(0), *inputs)["params"])
  assert [float(fresh[gate]) for gate in GATES] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shut_gates_make_the_layer_the_identity(jit, weights, inputs, dtype):
  text, media = (jnp.asarray(array).astype(dtype) for array in inputs[:2])
  shut = weights | dict.fromkeys(GATES, np.float32(0))
  passed = jit(layer(jnp.dtype(dtype)).apply)(nested(shut), text, media, inputs[2])
  assert passed.dtype == dtype
  np.testing.assert_array_equal(passed, text)


def test_a_layer_without_gates_is_one_whose_gates_are_wide_open(jit, weights, inputs):
  plain = GatedCrossAttention(dataclasses.replace(CONFIG, gated=False), jnp.float32)
  assert set(flat(jit(plain.init)(jax.random.key(0), *inputs)["params"])) == set(weights) - set(GATES)
  without = {path: array for path, array in weights.items() if path not in GATES}
  wide_open = weights | dict.fromkeys(GATES, np.float32(100))  # their tanh is 1
  np.testing.assert_array_equal(
    jit(plain.apply)(nested(without), *inputs), jit(layer().apply)(nested(wide_open), *inputs)
  )


def test_behind_shut_gates_only_the_gates_learn(jit, weights, inputs):
  def loss(parameters):
    return jnp.square(layer().apply(nested(parameters), *inputs) - 1).sum()

  gradients = jit(jax.grad(loss))(weights | dict.fromkeys(GATES, np.float32(0)))
  learning = {path for path, gradient in gradients.items() if np.any(gradient != 0)}
  assert learning == set(GATES)


def test_open_gates_let_everything_learn(jit, weights, inputs):
  gradients = jit(jax.grad(lambda p: jnp.square(layer().apply(nested(p), *inputs) - 1).sum()))(weights)
  assert all(np.any(gradient != 0) for gradient in gradients.values())
