import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.randomness import draw, shuffled

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)


@given(st.integers(1, 300), st.integers(0, 2**62), st.integers(0, 2**62))
@settings(deadline=None, max_examples=50)
def test_every_number_has_one_place(count, seed, key):
  assert sorted(shuffled(np.arange(count), count, seed, np.int64(key)).tolist()) == list(range(count))


def test_a_place_does_not_depend_on_what_else_is_asked_for():
  counts, keys = np.array([5, 70, 10**12]), np.array([3, 2, 1])
  together = shuffled(np.array([[0, 1, 2], [3, 4, 5]]), counts, 7, keys)
  alone = [[shuffled(np.array([i]), counts[at], 7, keys[at]).item() for at, i in enumerate(row)] for row in
           ([0, 1, 2], [3, 4, 5])]  # fmt: skip
  assert together.tolist() == alone


@pytest.mark.parametrize("change", [dict(seed=4), dict(key=np.int64(8))])
def test_another_seed_or_key_is_another_order(change):
  asked = dict(indices=np.arange(1000), counts=1000, seed=3, key=np.int64(7))
  moved = shuffled(**asked) != shuffled(**asked | change)
  assert moved.mean() > 0.9


@given(KEYS, KEYS)
def test_a_key_names_eight_numbers_of_its_own(left, right):
  assert draw(*left) == draw(*left)
  assert len(draw(*left)) == 8
  assert all(0 <= number < 1 for number in draw(*left))
  assert (draw(*left) == draw(*right)) == (left == right)


def test_numbers_of_neighbouring_keys_are_spread_evenly():
  numbers = np.array([draw(3, position) for position in range(5000)])
  for column in numbers.T:
    counts, _ = np.histogram(column, bins=20, range=(0, 1))
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)
  correlations = np.corrcoef(np.concatenate([numbers[:-1].T, numbers[1:].T]))
  assert np.abs(correlations - np.eye(16)).max() < 0.08
