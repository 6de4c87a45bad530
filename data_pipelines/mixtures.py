"""Several streams as one: all of them in each update, or one after the other."""

import itertools
from collections.abc import Iterator, Sequence

from data_pipelines.stream import Batch, Stream, decoding_pool


def mixture(
  streams: dict[str, Stream], start: int, *, own: Sequence[int] = (0,), parts: int = 1
) -> Iterator[dict[str, Batch]]:
  """Batch `start`, `start + 1`, ... of every stream at once: their gradients accumulate into one update."""
  pool = decoding_pool()
  iterators = {name: stream.batches(start, own=own, parts=parts, pool=pool) for name, stream in streams.items()}
  while True:
    yield {name: next(iterator) for name, iterator in iterators.items()}


def round_robin(
  streams: dict[str, Stream], start: int, *, own: Sequence[int] = (0,), parts: int = 1
) -> Iterator[dict[str, Batch]]:
  """Batch `start`, `start + 1`, ... of one stream after the other, each an update of its own (paper, table 3)."""
  pool, names = decoding_pool(), tuple(streams)
  firsts = dict(turn(names, number) for number in range(start, start + len(names)))
  iterators = {name: stream.batches(firsts[name], own=own, parts=parts, pool=pool) for name, stream in streams.items()}
  for number in itertools.count(start):
    name, _ = turn(names, number)
    yield {name: next(iterators[name])}


def turn(names: Sequence[str], number: int) -> tuple[str, int]:
  """Whose turn it is at a batch of all, and which of that stream's own batches that is; both counted from 0."""
  return names[number % len(names)], number // len(names)
