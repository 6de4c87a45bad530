import numpy as np
import pytest

from flamingo_jax.ops.positions import alibi_bias, alibi_slopes, by_distance, rotate, segment_positions, sinusoids


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


@pytest.mark.parametrize(
  ("width", "share", "turned"), [(8, 0.25, 2), (8, 0.5, 4), (8, 0.85, 6), (80, 0.25, 20), (6, 1.0, 6)]
)
def test_only_the_first_share_of_a_head_is_rotated(width, share, turned):
  random = np.random.default_rng(2)
  x = random.normal(size=(2, 5, 3, width)).astype(np.float32)
  positions = random.integers(0, 40, (2, 5))
  found = np.asarray(rotate(x, positions, 100.0, share))
  np.testing.assert_array_equal(found[..., turned:], x[..., turned:])
  np.testing.assert_allclose(found[..., :turned], rotate(x[..., :turned], positions, 100.0), atol=1e-6)


def test_angles_of_far_tokens_are_exact_in_bfloat16_models():
  """In bfloat16 position 257 would be 256."""
  x = np.asarray([1.0, 0.0], np.float32).reshape(1, 1, 1, 2)
  turned = np.asarray(rotate(x.astype("bfloat16"), np.asarray([[257]]), 100.0), np.float32).reshape(2)
  np.testing.assert_allclose(turned, [np.cos(257), np.sin(257)], atol=1e-2)


def test_positions_restart_in_every_document():
  segments = np.asarray([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 1, 1, 1, 1, 1, 1]])
  positions = np.asarray(segment_positions(segments))
  np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize(
  ("heads", "exponents"),
  [
    (1, [8]),
    (8, [1, 2, 3, 4, 5, 6, 7, 8]),
    (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    (16, [head / 2 for head in range(1, 17)]),
  ],
)
def test_slopes_are_the_published_ones(heads, exponents):
  """Press et al., section 3: 1/2 ... 1/256 for 8 heads; for others, every other slope of twice as many fills up."""
  slopes = alibi_slopes(heads)
  assert slopes.dtype == np.float32
  np.testing.assert_allclose(slopes, [2.0**-exponent for exponent in exponents], rtol=1e-6)


def test_a_key_loses_its_distance_times_the_slope():
  bias = np.asarray(alibi_bias(np.asarray([[0, 1, 2, 0, 1]]), 8))
  assert bias.shape == (1, 8, 5, 5)
  np.testing.assert_allclose(bias[0, 0, 2, :3], [-1.0, -0.5, 0.0])
  np.testing.assert_allclose(bias[0, 7, 2, :3], [-2 / 256, -1 / 256, 0.0])
  np.testing.assert_allclose(bias[0, 1, 4, 3:], [-0.25, 0.0])


def test_sinusoids_are_sines_then_cosines_of_ever_slower_angles():
  found = np.asarray(sinusoids(7, 6))
  expected = [
    [function(place / 10_000 ** (2 * i / 6)) for function in (np.sin, np.cos) for i in range(3)] for place in range(7)
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_key_gets_the_score_of_its_distance():
  scores = np.random.default_rng(3).normal(size=(2, 3, 5, 5)).astype(np.float32)
  found = np.asarray(by_distance(scores))
  for query in range(5):
    for key in range(query + 1):
      np.testing.assert_array_equal(found[:, :, query, key], scores[:, :, query, query - key])
