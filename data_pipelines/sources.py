"""The sources of a stream: their records as one sequence, and the schedule by which they take turns.

The schedule is a cycle of as many places as the shares add up to, repeated for ever: with shares (3, 1) the sources
come 0, 0, 1, 0. So which source stands at a position, and for which time, is arithmetic, and nothing is drawn.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from data_pipelines.shards import Shards


@dataclasses.dataclass(frozen=True)
class Sources:
  """Records of several folders of shards: those of the first, then those of the second, ..."""

  parts: tuple[Shards, ...]

  @functools.cached_property
  def ends(self) -> list[int]:
    """How many records there are up to the end of each part."""
    return list(itertools.accumulate(len(part) for part in self.parts))

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> bytes:
    """The bytes of a record. Raises IndexError outside the sources, UserError when the record is damaged."""
    part, inner = self.locate(index)
    return part[inner]

  def locate(self, index: int) -> tuple[Shards, int]:
    """The folder of a record, and its number there. Raises IndexError."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    part = bisect.bisect_right(self.ends, index)
    return self.parts[part], index - self.first(part)

  def first(self, part: int) -> int:
    """The index of a part's first record."""
    return self.ends[part] - len(self.parts[part])

  def where(self, index: int) -> tuple[str, int]:
    """The path of the file that holds a record, and its number in that file."""
    part, inner = self.locate(index)
    return part.where(inner)

  @property
  def content_hash(self) -> str:
    """Equal for equal records in equal order; of a single folder, its own."""
    hashes = [part.content_hash for part in self.parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Whose turn it is. Of a cycle of T = sum of shares places:

  Attributes:
    shares: int64 [sources], how many places each source has.
    turns: int64 [T], the source at each place.
    earlier: int64 [T], how many places before this one are of the same source.
  """

  shares: np.ndarray
  turns: np.ndarray
  earlier: np.ndarray

  def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source at each position, and how often it has had its turn before, both int64 [B]."""
    cycles, places = np.divmod(positions, len(self.turns))
    sources = self.turns[places]
    return sources, cycles * self.shares[sources] + self.earlier[places]

  def positions(self, source: int, count: int) -> np.ndarray:
    """Where a source has its first turns, int64 [count]."""
    cycles, turns = np.divmod(np.arange(count), self.shares[source])
    return cycles * len(self.turns) + np.flatnonzero(self.turns == source)[turns]


def make_schedule(shares: tuple[int, ...]) -> Schedule:
  """Spreads the turns of each source evenly: the one that lags its share most is next, the first of equals."""
  total, turns = sum(shares), []
  had = np.zeros(len(shares), np.int64)
  earlier = []
  for place in range(total):
    source = int(np.argmax(np.multiply(shares, place + 1) - had * total))
    turns.append(source)
    earlier.append(int(had[source]))
    had[source] += 1
  return Schedule(np.asarray(shares, np.int64), np.asarray(turns, np.int64), np.asarray(earlier, np.int64))
