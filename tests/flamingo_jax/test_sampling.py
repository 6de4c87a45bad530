import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.inference.sampling import Sampling, draw, likely

LOGITS = np.log(np.asarray([0.05, 0.3, 0.2, 0.02, 0.28, 0.15]))


def settings(**fields) -> dict:
  return dict(temperature=1.0, top_k=0, top_p=1.0) | fields


def shares(temperature: float, top_k: int, top_p: float) -> np.ndarray:
  """The distribution by its definition, token after token from the most likely down."""
  powers = np.exp(LOGITS / temperature)
  order = np.argsort(-powers)[: top_k or None]
  together, kept = powers[order] / powers[order].sum(), []
  for place, token in enumerate(order):
    if together[:place].sum() >= top_p:
      break
    kept.append(token)
  out = np.zeros_like(powers)
  out[kept] = powers[kept]
  return out / out.sum()


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [
    (1.0, 0, 1.0),
    (0.5, 0, 1.0),
    (2.0, 3, 1.0),
    (1.0, 0, 0.55),
    (1.0, 4, 0.7),
    (1.3, 1, 0.9),
    (1.0, 0, 1e-6),
    (1.0, 9, 1.0),
  ],
)
def test_frequencies_are_those_of_the_distribution(temperature, top_k, top_p):
  """Pearson's statistic of 20,000 draws stays within six standard deviations of its mean."""
  given, draws = settings(temperature=temperature, top_k=top_k, top_p=top_p), 20_000
  expected = shares(temperature, top_k, top_p)
  logits = jnp.asarray(LOGITS, jnp.float32)[None]
  np.testing.assert_allclose(jax.nn.softmax(likely(logits, given))[0], expected, atol=1e-6)
  tokens = draw(jnp.repeat(logits, draws, axis=0), given, jax.random.key(0), jnp.asarray(3))
  counts = np.bincount(np.asarray(tokens), minlength=len(expected))
  assert not counts[expected == 0].any()
  there = expected > 0
  statistic = (np.square(counts - draws * expected)[there] / (draws * expected[there])).sum()
  freedom = there.sum() - 1
  assert statistic <= freedom + 6 * math.sqrt(2 * freedom) + 1e-6


def test_a_row_draws_the_same_whatever_stands_beside_it():
  logits, key = jnp.asarray(np.random.default_rng(0).normal(size=(5, 50)), jnp.float32), jax.random.key(1)
  together = draw(logits, settings(), key, jnp.asarray(0))
  np.testing.assert_array_equal(draw(logits[:2], settings(), key, jnp.asarray(0)), together[:2])
  assert not np.array_equal(draw(logits, settings(), key, jnp.asarray(1)), together)
  assert not np.array_equal(draw(logits, settings(), jax.random.key(2), jnp.asarray(0)), together)


def test_what_may_not_be_written_is_never_drawn():
  logits = jnp.where(jnp.arange(6) == 1, -jnp.inf, jnp.asarray(LOGITS, jnp.float32))
  tokens = draw(jnp.repeat(logits[None], 500, axis=0), settings(top_k=5, top_p=0.99), jax.random.key(0), jnp.asarray(0))
  assert 1 not in np.asarray(tokens)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(temperature=-1.0), "temperature is -1.0; it is at least 0"),
    (dict(temperature=1.0, top_k=-2), "top_k is -2"),
    (dict(temperature=1.0, top_k=10**12), "top_k is 1000000000000; it is from 1 to 2147483647"),
    (dict(temperature=1.0, top_p=0.0), "top_p is 0.0; it is above 0 and at most 1"),
    (dict(temperature=1.0, top_p=1.5), "top_p is 1.5"),
    (dict(top_p=0.9), "temperature is 0, which always takes the most likely token"),
  ],
)
def test_settings_out_of_range_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Sampling(**fields)
