import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.ops.attention import attention, causal_mask, media_mask


def random_heads(seed: int, *, heads: int = 4, groups: int = 2, length: int = 5, context: int = 7):
  random = np.random.default_rng(seed)
  query = random.normal(size=(2, length, heads, 8)).astype(np.float32)
  key, value = random.normal(size=(2, 2, context, groups, 8)).astype(np.float32)
  return query, key, value, random.random((2, length, context)) < 0.6


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_grouped_queries_match_numpy(reference, groups):
  query, key, value, mask = random_heads(0, groups=groups)
  for given in (None, mask):
    np.testing.assert_allclose(
      attention(query, key, value, given), reference.attention(query, key, value, given), atol=1e-6
    )


def test_a_query_that_may_see_nothing_gets_exactly_zero():
  query, key, value, mask = random_heads(1)
  mask[0, 2] = False
  attended = np.asarray(attention(query, key, value, mask))
  assert (attended[0, 2] == 0).all()
  assert (attended[0, 3] != 0).all()


def test_a_query_that_may_see_nothing_has_exactly_zero_gradient(jit):
  query, key, value, mask = random_heads(2)
  mask[0, 2] = False

  def of_that_query(query, key, value):
    return jnp.square(attention(query, key, value, mask)[0, 2] + 1).sum()

  for gradient in jit(jax.grad(of_that_query, argnums=(0, 1, 2)))(query, key, value):
    assert (np.asarray(gradient) == 0).all()


def test_gradients_stay_finite_beside_a_query_that_may_see_nothing(jit):
  query, key, value, mask = random_heads(3)
  mask[0, 2] = False
  gradients = jit(jax.grad(lambda *heads: attention(*heads, mask).sum(), argnums=(0, 1, 2)))(query, key, value)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  assert (np.asarray(gradients[0])[0, 2] == 0).all()


def test_softmax_of_bfloat16_heads_is_in_float32():
  """512 equal keys: shares of 1/512 each must sum to one, which a bfloat16 sum would miss."""
  length = 512
  key = jnp.zeros((1, length, 1, 8), jnp.bfloat16)
  value = jnp.where(jnp.arange(length) < length // 2 + 1, 1.0, 0.0)[None, :, None, None] * jnp.ones((1, 1, 1, 8))
  attended = attention(jnp.ones((1, 1, 1, 8), jnp.bfloat16), key, value.astype(jnp.bfloat16))
  assert attended.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(attended), (length // 2 + 1) / length, rtol=2**-8)


def test_causal_mask_keeps_documents_and_padding_apart():
  segments = np.asarray([[1, 1, 2, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]])
  mask = np.asarray(causal_mask(segments))
  for b, row in enumerate(segments):
    for at, own in enumerate(row):
      for seen, other in enumerate(row):
        assert mask[b, at, seen] == (seen <= at and own == other and own > 0)


def test_media_mask_opens_the_latents_of_ones_own_existing_medium():
  index = np.asarray([[-1, 0, 1, 2], [2, 2, -1, 5]])
  exists = np.asarray([[True, True, False], [True, True, True]])
  mask = np.asarray(media_mask(index, exists, 2))
  assert mask.shape == (2, 4, 6)
  for b, row in enumerate(index):
    for at, own in enumerate(row):
      for latent in range(6):
        slot = latent // 2
        assert mask[b, at, latent] == (slot == own and exists[b, slot])
