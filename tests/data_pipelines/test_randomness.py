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


@pytest.mark.parametrize("count", [2**16 + 1, 2**18 + 1, 2**20 - 1, 2**20 + 1])
def test_every_one_of_many_numbers_has_one_place(count):
  np.testing.assert_array_equal(np.sort(shuffled(np.arange(count), count, 3, np.int64(7))), np.arange(count))


@pytest.mark.parametrize("count", [10**12, 2**62])
def test_places_of_more_numbers_than_there_can_be_records_are_in_range_and_different(count):
  asked = np.arange(10_001) * (count // 10_001)
  moved = shuffled(asked, count, 3, np.int64(7))
  assert moved.min() >= 0 and moved.max() < count and len(np.unique(moved)) == len(asked)
  assert abs(np.corrcoef(asked, moved)[0, 1]) < 0.05


def test_all_orders_are_equally_likely():
  """By Pearson's statistic, within five standard deviations of its mean."""
  draws, orders = 36_000, 120
  found = shuffled(np.arange(5)[None], 5, 3, np.arange(draws)[:, None])
  counts = np.unique(found, axis=0, return_counts=True)[1]
  assert len(counts) == orders
  statistic = ((counts - draws / orders) ** 2).sum() / (draws / orders)
  assert abs(statistic - (orders - 1)) < 5 * np.sqrt(2 * (orders - 1))


@pytest.mark.parametrize("step", [1, 255, 256, 2**16, 2**32])
def test_each_seed_and_each_key_is_an_order_of_its_own(step):
  """Whatever the stride: the keys of a length of packed rows are as far apart as a row is long."""
  several = np.arange(1000) * step
  by_key = shuffled(np.arange(50)[None], 50, 3, several[:, None])
  by_seed = np.stack([shuffled(np.arange(50), 50, seed, np.int64(-1)) for seed in several.tolist()])
  assert len(np.unique(np.concatenate([by_key, by_seed]), axis=0)) == 2000


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
