"""What was read, kept and dropped, by cause, and which records were at fault."""

import collections
import dataclasses
from typing import Any

from data_pipelines.build.settings import ERRORS


@dataclasses.dataclass
class Tally:
  """Counts that add up: what is read is kept or dropped for one cause, documents and media alike.

  Attributes:
    documents, media: how many were read.
    dropped_documents, dropped_media: by cause. A medium of a dropped document, itself unobjectionable, counts as
      `with_document`.
    notes: what is worth knowing, though nothing was dropped for it.
    errors: (cause, record, detail) of what the input has that is broken.
  """

  documents: int = 0
  media: int = 0
  dropped_documents: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  dropped_media: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  errors: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

  def drop_document(self, cause: str, media: int) -> None:
    """Notes a document that goes, with the media that nothing was against."""
    self.dropped_documents[cause] += 1
    if media:
      self.dropped_media["with_document"] += media

  def error(self, cause: str, record: str, detail: str) -> None:
    if cause in ERRORS:
      self.errors.append((cause, record, detail))

  def add(self, other: "Tally") -> None:
    self.documents += other.documents
    self.media += other.media
    for name in ("dropped_documents", "dropped_media", "notes"):
      getattr(self, name).update(getattr(other, name))
    self.errors += other.errors

  def to_json(self) -> dict[str, Any]:
    return vars(self)

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> "Tally":
    counters = {name: collections.Counter(value[name]) for name in ("dropped_documents", "dropped_media", "notes")}
    return cls(**{**value, **counters, "errors": [tuple(error) for error in value["errors"]]})
