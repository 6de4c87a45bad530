"""The product of activations and kernels against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.ops.layers import linear
from flamingo_jax.ops.remat import POLICIES

WIDE, NARROW = (5, (3, 4), 1), ((3, 4), 5, 2)  # inputs, outputs, axes that are summed over


@pytest.mark.parametrize(("inputs", "outputs", "fold"), [WIDE, NARROW])
@pytest.mark.parametrize("batch", [(2, 6), (7,)])
def test_gradients_are_those_of_a_matrix_product(inputs, outputs, fold, batch):
  random = np.random.default_rng(0)
  many = lambda axes: (axes,) if isinstance(axes, int) else axes  # noqa: E731
  x = random.normal(size=(*batch, *many(inputs))).astype(np.float32)
  weights = random.normal(size=(*batch, *many(outputs))).astype(np.float32)
  layer = linear(
    outputs, ("embed",) * (len(many(inputs)) + len(many(outputs))), dtype=jnp.float32, name=None, fold=fold
  )
  kernel = nn.unbox(layer.init(jax.random.key(0), x))["params"]["kernel"]

  def loss(kernel, x):
    return (layer.apply({"params": {"kernel": kernel}}, x) * weights).sum()

  value, (of_kernel, of_x) = jax.value_and_grad(loss, argnums=(0, 1))(kernel, x)
  rows = int(np.prod(batch))
  flat_x, flat_weights = x.reshape(rows, -1).astype(float), weights.reshape(rows, -1).astype(float)
  flat_kernel = np.asarray(kernel, float).reshape(flat_x.shape[1], -1)
  np.testing.assert_allclose(value, (flat_x @ flat_kernel * flat_weights).sum(), rtol=1e-5)
  np.testing.assert_allclose(of_kernel, (flat_x.T @ flat_weights).reshape(kernel.shape), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(of_x, (flat_weights @ flat_kernel.T).reshape(x.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("policy", "expected"), [("products", 2), ("dots", 2), ("full", 0)])
def test_policies_keep_the_products_they_name(capsys, policy, expected):
  """Two layers: both products are kept, or only what went in."""
  first, second = (linear(width, ("embed", "mlp"), dtype=jnp.float32, name=None) for width in (11, 13))
  x = jnp.ones((2, 5))
  kernels = first.init(jax.random.key(0), x), second.init(jax.random.key(1), jnp.ones((2, 11)))

  def layers(x):
    return jnp.sin(second.apply(nn.unbox(kernels[1]), jnp.sin(first.apply(nn.unbox(kernels[0]), x)))).sum()

  jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(layers, policy=POLICIES[policy]), x)
  kept = capsys.readouterr().out
  assert sum(f"f32[2,{width}] " in kept for width in (11, 13)) == expected
