"""Which examples stand in a prompt: random ones, or the nearest by what the frozen encoder sees (RICES).

Draws depend on a seed, on the query's id and on which examples it excludes, not on the order of the queries.
"""

import hashlib
import math
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from flamingo_jax.errors import UserError

ENSEMBLE = 6  # orders of the same shots (paper, section 4.2.2)


def random_shots(
  support: int, query: str, shots: int, *, excluded: Collection[int], unreadable: Collection[int], seed: int
) -> list[int]:
  """Places of random support examples, in random order.

  Args:
    support: how many examples there are to choose from.
    query: id of the query.
    shots: how many.
    excluded: places of examples that are the query, or show what it shows.
    unreadable: places of examples that cannot be shown. The next of the same draw stands in for each, so that a draw
      without any of them stays what it was.
    seed: same seed, query, excluded and unreadable, same shots.
  """
  others = np.delete(np.arange(support), list(excluded))
  found = [place for place in _generator(seed, query).permutation(others).tolist() if place not in unreadable]
  _check(shots, len(found))
  return found[:shots]


def nearest_shots(
  support: Float[np.ndarray, "n D"],
  queries: Float[np.ndarray, "q D"],
  shots: int,
  *,
  support_ids: Sequence[str],
  query_ids: Sequence[str],
  excluded: Sequence[Collection[int]],
  block: int = 1024,
) -> Int[np.ndarray, "q k"]:
  """Places of the support examples most like each query by cosine, the most alike last (RICES; paper, section 4.2.2).

  Exact search; of equals the one that stands first counts as nearer.

  Args:
    support: features of the frozen vision encoder, one vector an example.
    queries: the same of the queries.
    shots: k, how many.
    support_ids: ids of the support examples.
    query_ids: ids of the queries.
    excluded: of each query, places of examples that are it, or show what it shows.
    block: queries compared at a time.
  """
  if len(support) != len(support_ids) or not len(queries) == len(query_ids) == len(excluded):
    raise UserError(
      f"There are features of {len(support)} support examples and {len(queries)} queries, but {len(support_ids)} and"
      f" {len(query_ids)} ids, and {len(excluded)} queries with what they exclude: give these for each."
    )
  _check(shots, len(support) - max(map(len, excluded), default=0))
  unit = _normalized(support, support_ids)
  found = [np.empty((0, shots), np.int64)]
  for start in range(0, len(queries), block):
    rows = slice(start, start + block)
    similarity = _normalized(queries[rows], query_ids[rows]) @ unit.T
    for row, places in enumerate(excluded[rows]):
      similarity[row, list(places)] = -np.inf
    found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :shots][:, ::-1])
  return np.concatenate(found)


def ensemble_orders(shots: int, query: str, *, seed: int, count: int = ENSEMBLE) -> list[list[int]]:
  """Different random orders of a query's shots, over which candidates' log-likelihoods are averaged.

  As many as there are, where these are fewer than asked for: two shots have two orders.
  """
  generator = _generator(seed, query)
  orders: dict[tuple[int, ...], None] = {}
  while len(orders) < min(count, math.factorial(shots)):
    orders[tuple(generator.permutation(shots).tolist())] = None
  return [list(order) for order in orders]


def drawn(examples: Sequence[str], count: int, *, seed: int) -> list[int]:
  """Places of a random subset, chosen and ordered by the examples' ids: their own order does not matter.

  The first of a longer draw are the shorter draw, so that consecutive parts of one are disjoint subsets.
  """
  _check(count, len(examples))
  keys = {place: _digest(seed, name) for place, name in enumerate(examples)}
  return sorted(keys, key=keys.__getitem__)[:count]


def drawn_by_class(examples: Sequence[str], labels: Sequence[int], count: int, *, seed: int) -> list[int]:
  """As `drawn`, with so many of each class; classes follow each other."""
  members: dict[int, list[int]] = {}
  for place, label in enumerate(labels):
    members.setdefault(label, []).append(place)
  few = [label for label, places in members.items() if len(places) < count]
  if few:
    raise UserError(
      f"{len(few)} classes have fewer than {count} examples (class {few[0]} has {len(members[few[0]])}): draw fewer."
    )
  return [
    places[chosen]
    for _, places in sorted(members.items())
    for chosen in drawn([examples[place] for place in places], count, seed=seed)
  ]


def _normalized(features: Float[np.ndarray, "n D"], ids: Sequence[str]) -> Float[np.ndarray, "n D"]:
  features = np.asarray(features, np.float32)
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
  if len(bad):
    raise UserError(f"The features of example {ids[bad[0]]} are zero or not finite: compute them again.")
  return features / norms


def seed_of(seed: int, name: str) -> int:
  """A seed of its own for each name."""
  return int.from_bytes(_digest(seed, name))


def _generator(seed: int, name: str) -> np.random.Generator:
  return np.random.default_rng(seed_of(seed, name))


def _digest(seed: int, name: str) -> bytes:
  return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()


def _check(wanted: int, available: int) -> None:
  if wanted > available:
    raise UserError(f"{wanted} examples are asked for, but there are {available} to choose from: ask for fewer.")
