"""What a run leaves out of its streams: counted, named in a file, and an end of the run where it is too much."""

import collections
import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines.faults import Fault, decode_faults
from data_pipelines.media import CAUSES
from data_pipelines.stream import Batch
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError
from flamingo_jax.training.metrics import keep_until

WINDOW = 10_000  # records, over which the share of skipped ones is taken
LEAST = 1_000  # records, of which that share may be skipped before so many have been read
SHOWN = 5  # records that an error names

Counted = tuple[dict[str, Batch], dict[str, int]]


def without_skipped(
  batches: Iterator[dict[str, Batch]], configs: Mapping[str, StreamConfig], start: int, path: pathlib.Path | None
) -> Iterator[Counted]:
  """Takes what was skipped out of the batches.

  Args:
    batches: of every stream, of the steps `start` + 1, `start` + 2, ...
    configs: of the streams.
    start: the step that a run begins after.
    path: of the file that names what was skipped, one JSON object a line: step, stream, and the fields of a Fault. What
      it has of later steps is dropped. None: there is none.

  Yields:
    The batches, and how often each stream was skipped for each cause, also where that is 0.

  Raises:
    UserError: of the last records of a stream, more were skipped than its `maximum_skipped` allows.
  """
  if path is not None:
    keep_until(path, start)
  recent = {name: Recent(config.maximum_skipped) for name, config in configs.items()}
  for step, at_once in enumerate(batches, start + 1):
    counts = {}
    for name, batch in at_once.items():
      rows = decode_faults(batch["faults"])
      faults = [fault for row in rows for fault in row]
      write(path, step, name, faults)
      causes = collections.Counter(fault.cause for fault in faults)
      counts |= {f"skipped/{name}/{cause}": causes[cause] for cause in CAUSES}
      recent[name].add(records_of(batch["segments"], faults), rows)
      if recent[name].too_many():
        raise UserError(recent[name].report(name, path))
    yield {name: strip(batch) for name, batch in at_once.items()}, counts


def strip(batch: Batch) -> Batch:
  """What a model reads of a batch."""
  return {name: array for name, array in batch.items() if name != "faults"}


def records_of(segments: np.ndarray, faults: list[Fault]) -> int:
  """How many records a batch was made of: those that have tokens, int [B, L], and those left out as a whole."""
  documents = sum((segments == number).any(axis=1).sum() for number in range(1, segments.max() + 1))
  return int(documents) + sum(fault.medium is None for fault in faults)


def write(path: pathlib.Path | None, step: int, stream: str, faults: list[Fault]) -> None:
  if path is None or not faults:
    return
  with path.open("a") as file:
    for fault in faults:
      file.write(json.dumps(dict(step=step, stream=stream) | vars(fault)) + "\n")


class Recent:
  """How many of the last WINDOW records of a stream had something that could not be used."""

  def __init__(self, limit: float):
    self.limit = limit
    self.batches: collections.deque[tuple[int, list[Fault]]] = collections.deque()  # records, one fault of each skipped
    self.records = self.skipped = 0

  def add(self, records: int, rows: list[list[Fault]]) -> None:
    """Adds a batch; of a record with several faults the first counts."""
    firsts = [fault for row in rows for fault in {(fault.shard, fault.record): fault for fault in row[::-1]}.values()]
    self.batches.append((records, firsts))
    self.records, self.skipped = self.records + records, self.skipped + len(firsts)
    while self.records - self.batches[0][0] >= WINDOW:
      gone, faults = self.batches.popleft()
      self.records, self.skipped = self.records - gone, self.skipped - len(faults)

  def too_many(self) -> bool:
    return self.skipped > self.limit * max(self.records, LEAST)

  def report(self, name: str, path: pathlib.Path | None) -> str:
    faults = [fault for _, batch in self.batches for fault in batch]
    causes = collections.Counter(fault.cause for fault in faults)
    named = [f"  {fault.shard}, record {fault.record}: {fault.cause} ({fault.detail})" for fault in faults[-SHOWN:]]
    return "\n".join(
      [
        f"streams.{name}: of the last {self.records} records, {self.skipped} could not be used: "
        + ", ".join(f"{number} {cause}" for cause, number in causes.most_common())
        + f". streams.{name}.maximum_skipped is {self.limit}. The last of them:",
        *named,
        *([f"All are named in {path}."] if path is not None else []),
        f"Build the stream again without them, or set streams.{name}.maximum_skipped higher.",
      ]
    )
