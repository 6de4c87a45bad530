"""Several pairs in one row: which share it, by a plan that is drawn from their lengths alone.

The plan lists kinds of rows: lengths that fit together, and how often. It gives places to lengths, not to records. In
each epoch a seeded permutation within every length, computed in O(1), deals the records of that length to its places,
and another one orders the rows. So all epochs have equally many rows and hold every record once, in ever other
company, and what a row holds is a function of (seed, its position).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.randomness import shuffled

NOBODY = -1  # in the place of a record or a length: the row has no pair there


@dataclasses.dataclass(frozen=True)
class Plan:
  """How an epoch is packed into rows of L tokens and at most N pairs, as T kinds of rows.

  Attributes:
    rooms: int32 [records], the tokens that each record has room for.
    order: int32 [records], the records from short to long.
    counts: int64 [L + 1], how many records have each length.
    kinds: int64 [T, N], the lengths in a row of each kind, longest first, then NOBODY.
    ends: int64 [T], how many rows there are of this kind and of those before it.
    first: int64 [T, N], which number a place of a kind's first row has among all places of its length.
    stride: int64 [T, N], what is added to that number from one row of the kind to the next.
  """

  rooms: np.ndarray
  order: np.ndarray
  counts: np.ndarray
  kinds: np.ndarray
  ends: np.ndarray
  first: np.ndarray
  stride: np.ndarray

  @property
  def rows(self) -> int:
    """Of an epoch."""
    return int(self.ends[-1])

  def places(self, rows: np.ndarray, seed: int, epoch: np.ndarray) -> np.ndarray:
    """The pairs in rows of an epoch: where they stand in `order`, int64 [B, N], or NOBODY.

    Args:
      rows: int64 [B], their numbers in the epoch.
      seed: of the stream.
      epoch: int64 [B], whose order is meant.
    """
    kinds = np.searchsorted(self.ends, rows, side="right")
    lengths = self.kinds[kinds]
    repetitions = rows - np.concatenate([[0], self.ends])[kinds]
    numbers = self.first[kinds] + repetitions[:, None] * self.stride[kinds]
    known = np.maximum(lengths, 0)
    # One permutation for every length of every epoch.
    dealt = shuffled(numbers, np.maximum(self.counts[known], 1), seed, epoch[:, None] * len(self.counts) + known)
    shorter = np.cumsum(self.counts) - self.counts
    return np.where(lengths == NOBODY, NOBODY, shorter[known] + dealt)


def make_plan(lengths: np.ndarray, length: int, slots: int) -> Plan:
  """Packs records into rows.

  Args:
    lengths: int [records], tokens before they are cut; 0 for one that cannot be used, which still takes a slot.
    length: L, tokens of a row; longer records are cut.
    slots: N, the most pairs of a row.
  """
  rooms = np.minimum(lengths, length).astype(np.int32)
  counts = np.bincount(rooms, minlength=length + 1)
  fewest = min((list(fill_rows(counts, slots, spare)) for spare in (False, True)), key=total_rows)
  kinds = np.full((len(fewest), slots), NOBODY, np.int64)
  first, stride = np.zeros_like(kinds), np.zeros_like(kinds)
  used = np.zeros_like(counts)
  for kind, (row, times) in enumerate(fewest):
    for slot, room in enumerate(row):
      kinds[kind, slot] = room
      first[kind, slot] = used[room] + row[:slot].count(room)
      stride[kind, slot] = row.count(room)
    used += times * np.bincount(row, minlength=length + 1)
  ends = np.cumsum([times for _, times in fewest])
  return Plan(rooms, np.argsort(rooms, kind="stable").astype(np.int32), counts, kinds, ends, first, stride)


def fill_rows(counts: np.ndarray, slots: int, spare: bool) -> Iterator[tuple[list[int], int]]:
  """First-fit-decreasing, row by row: the lengths of a row, and how often the same row comes out.

  Args:
    counts: int [L + 1], how many records have each length.
    slots: the most pairs of a row.
    spare: whether a long record is only taken where it leaves room for the shortest ones in the slots that are left,
      which fills rows better where slots are scarce.
  """
  left = counts.copy()
  while left.any():
    row = fill_row(left, slots, spare)
    taken = np.bincount(row, minlength=len(counts))
    times = int((left[taken > 0] // taken[taken > 0]).min())
    left = left - times * taken
    yield row, times


def fill_row(counts: np.ndarray, slots: int, spare: bool) -> list[int]:
  """The lengths of one row, longest first."""
  left, room, row = counts.copy(), len(counts) - 1, []
  while len(row) < slots and left[: room + 1].any():
    fitting = np.flatnonzero(left[: room + 1])
    kept = (slots - len(row) - 1) * fitting[0] if spare else 0
    modest = fitting[fitting + kept <= room]
    chosen = int(modest[-1] if len(modest) else fitting[0])
    left[chosen] -= 1
    room -= chosen
    row.append(chosen)
  return sorted(row, reverse=True)


def total_rows(rows: list[tuple[list[int], int]]) -> int:
  return sum(times for _, times in rows)
