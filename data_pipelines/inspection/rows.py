"""Rows of the training stream beside the records that they were made of."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.faults import Fault, decode_faults
from data_pipelines.media import MediaError
from data_pipelines.stream import Batch, Pool, Stream, TextDraw


@dataclasses.dataclass(frozen=True)
class Document:
  """One record of a row.

  Attributes:
    source: of the record; empty when it was left out.
    segment: its number in the row, from 1.
    slot: its first media slot.
    media: which of its media fill that slot and those after it.
    drawn: for its text.
    fault: why it was left out; None: it was not.
  """

  shard: str
  record: int
  source: str
  segment: int
  slot: int
  media: tuple[int, ...]
  drawn: TextDraw
  fault: Fault | None


@dataclasses.dataclass(frozen=True)
class SeenRow:
  """One row as the model gets it, and where it comes from.

  Attributes:
    position: counted from the first row of the first step.
    arrays: of the row, as docs/batch.md names them, without `faults`.
    faults: what was left out of it.
  """

  position: int
  arrays: Batch
  documents: tuple[Document, ...]
  faults: tuple[Fault, ...]

  def medium_fault(self, slot: int) -> Fault | None:
    """Why the medium of a slot could not be used; None: it could, or there is none."""
    for document in self.documents:
      if document.slot <= slot < document.slot + len(document.media):
        wanted = (document.shard, document.record, document.media[slot - document.slot])
        return next((fault for fault in self.faults if (fault.shard, fault.record, fault.medium) == wanted), None)
    return None


def seen_rows(stream: Stream, first: int, count: int, pool: Pool) -> Iterator[SeenRow]:
  """Rows `first`, `first` + 1, ... of a stream, read as its batches are."""
  positions = np.arange(first, first + count)
  batch = stream.batch(positions, pool)
  faults = decode_faults(batch.pop("faults"))
  for number, (position, records) in enumerate(zip(positions.tolist(), stream.records(positions), strict=True)):
    arrays = {name: array[number] for name, array in batch.items()}
    documents = (document(stream, position, slot, *record) for slot, record in enumerate(records))
    yield SeenRow(position, arrays, tuple(documents), tuple(faults[number]))


def document(stream: Stream, position: int, slot: int, index: int, room: int) -> Document:
  """Where a record of a row comes from, and what was drawn for it."""
  shard, record = stream.sources.where(index)
  drawn = stream.text_draw((stream.seed, position, slot))
  try:
    example = stream.example(index)
    row = stream.text(example, drawn, room)
  except MediaError as error:
    return Document(shard, record, "", slot + 1, slot, (), drawn, stream.fault(index, None, error))
  return Document(shard, record, example.source, slot + 1, slot, row.media, drawn, None)
