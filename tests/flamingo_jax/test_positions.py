import numpy as np
import pytest

from flamingo_jax.ops.positions import rotate, segment_positions


def test_rotation_is_a_complex_rotation():
  random = np.random.default_rng(0)
  x = random.normal(size=(2, 5, 3, 8)).astype(np.float32)
  positions = random.integers(0, 40, (2, 5))
  turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, :, None, None] * 100.0 ** (-np.arange(4) / 4))
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(rotate(x, positions, 100.0), expected, atol=1e-5)


def test_scores_depend_on_distance_alone():
  random = np.random.default_rng(1)
  query, key = random.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

  def score(at: int, seen: int) -> float:
    pair = rotate(query, np.asarray([[at]]), 100.0), rotate(key, np.asarray([[seen]]), 100.0)
    return float((np.asarray(pair[0]) * np.asarray(pair[1])).sum())

  assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
  assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_angles_of_far_tokens_are_exact_in_bfloat16_models():
  """In bfloat16 position 257 would be 256."""
  x = np.asarray([1.0, 0.0], np.float32).reshape(1, 1, 1, 2)
  turned = np.asarray(rotate(x.astype("bfloat16"), np.asarray([[257]]), 100.0), np.float32).reshape(2)
  np.testing.assert_allclose(turned, [np.cos(257), np.sin(257)], atol=1e-2)


def test_positions_restart_in_every_document():
  segments = np.asarray([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 1, 1, 1, 1, 1, 1]])
  positions = np.asarray(segment_positions(segments))
  np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]])
