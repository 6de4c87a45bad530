import collections
import math

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.support import drawn, drawn_by_class, ensemble_orders, nearest_shots, random_shots

IDS = [f"example {number}" for number in range(50)]
RECORDED_DRAW = [10, 39, 5, 3, 36]
RECORDED_DRAW_OF_AN_EXAMPLE = [43, 29, 20, 30, 40]


def test_random_shots_depend_on_seed_and_query_alone():
  first = {query: random_shots(50, query, 8, excluded=(), unreadable=(), seed=0) for query in ["a", "b", "c"]}
  again = {query: random_shots(50, query, 8, excluded=(), unreadable=(), seed=0) for query in ["c", "a", "b"]}
  assert first == again
  assert len({tuple(shots) for shots in first.values()}) == 3
  assert first["a"] != random_shots(50, "a", 8, excluded=(), unreadable=(), seed=1)


def test_random_shots_are_different_and_never_excluded_ones():
  for place, query in enumerate(IDS):
    shots = random_shots(50, query, 32, excluded={place, 7}, unreadable=(), seed=0)
    assert len(set(shots)) == 32 and not {place, 7} & set(shots)


def test_a_draw_is_the_one_that_the_project_always_made():
  """Recorded when examples were excluded by their id alone, so that earlier evaluations can be made again."""
  assert random_shots(50, "query", 5, excluded=(), unreadable=(), seed=0) == RECORDED_DRAW
  assert random_shots(50, IDS[3], 5, excluded={3}, unreadable=(), seed=0) == RECORDED_DRAW_OF_AN_EXAMPLE


def test_random_shots_come_equally_often_and_in_any_order():
  counts, firsts = collections.Counter(), collections.Counter()
  for number in range(4000):
    shots = random_shots(8, f"query {number}", 4, excluded=(), unreadable=(), seed=0)
    counts.update(shots)
    firsts[shots[0]] += 1
  np.testing.assert_allclose([counts[place] for place in range(8)], 2000, atol=5 * math.sqrt(1000))
  np.testing.assert_allclose([firsts[place] for place in range(8)], 500, atol=5 * math.sqrt(440))


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_shots_are_a_brute_force_search(block):
  generator = np.random.default_rng(0)
  support, queries = generator.normal(size=(50, 16)), generator.normal(size=(20, 16))
  queries[:3] = 2 * support[:3]
  query_ids = IDS[:3] + [f"query {number}" for number in range(17)]
  excluded = [{0, 9}, {1}, {2}] + [set()] * 17
  found = nearest_shots(support, queries, 6, support_ids=IDS, query_ids=query_ids, excluded=excluded, block=block)
  for row, query, left_out in zip(found, queries, excluded, strict=True):
    cosines = [
      -np.inf if place in left_out else query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
      for place, vector in enumerate(support)
    ]
    assert row.tolist() == np.argsort(cosines)[-6:].tolist()  # the most alike last


def test_of_equally_near_examples_the_first_is_nearer():
  found = nearest_shots(np.ones((4, 2)), np.ones((1, 2)), 3, support_ids=IDS[:4], query_ids=["query"], excluded=[()])
  assert found.tolist() == [[2, 1, 0]]


def test_ensemble_orders_are_different_orders_of_all_shots():
  orders = ensemble_orders(16, "query", seed=0)
  assert len(orders) == 6 == len({tuple(order) for order in orders})
  assert all(sorted(order) == list(range(16)) for order in orders)
  assert orders == ensemble_orders(16, "query", seed=0) != ensemble_orders(16, "other", seed=0)
  assert sorted(ensemble_orders(2, "query", seed=0)) == [[0, 1], [1, 0]]
  assert ensemble_orders(0, "query", seed=0) == [[]]


def test_a_draw_does_not_depend_on_the_order_of_examples():
  names = [IDS[place] for place in drawn(IDS, 20, seed=0)]
  assert names == [IDS[::-1][place] for place in drawn(IDS[::-1], 20, seed=0)]
  assert len(set(names)) == 20
  assert names[:5] == [IDS[place] for place in drawn(IDS, 5, seed=0)]
  assert names != [IDS[place] for place in drawn(IDS, 20, seed=1)]


def test_a_draw_by_class_has_so_many_of_each():
  labels = [number % 3 for number in range(50)]
  places = drawn_by_class(IDS, labels, 5, seed=0)
  assert collections.Counter(labels[place] for place in places) == {0: 5, 1: 5, 2: 5}
  assert len(set(places)) == 15


def test_too_few_examples_are_named():
  with pytest.raises(UserError, match="4 examples are asked for, but there are 3 to choose from"):
    random_shots(4, IDS[0], 4, excluded={0}, unreadable=(), seed=0)
  with pytest.raises(UserError, match="4 examples are asked for, but there are 3"):
    nearest_shots(np.ones((4, 2)), np.ones((1, 2)), 4, support_ids=IDS[:4], query_ids=IDS[:1], excluded=[{0}])
  with pytest.raises(UserError, match="1 classes have fewer than 2 examples \\(class 1 has 1\\)"):
    drawn_by_class(IDS[:3], [0, 0, 1], 2, seed=0)


def test_bad_features_are_named():
  with pytest.raises(UserError, match="features of 4 support examples and 1 queries, but 3 and 1 ids"):
    nearest_shots(np.ones((4, 2)), np.ones((1, 2)), 1, support_ids=IDS[:3], query_ids=["query"], excluded=[()])
  broken = np.ones((4, 2))
  broken[2, 0] = np.nan
  with pytest.raises(UserError, match="features of example example 2 are zero or not finite"):
    nearest_shots(broken, np.ones((1, 2)), 1, support_ids=IDS[:4], query_ids=["query"], excluded=[()])
