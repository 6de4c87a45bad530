"""What of a stream could not be used: which record of which shard, and why. A batch carries it to whoever counts."""

import dataclasses
import json
from collections.abc import Iterable

MOST_DETAIL = 200  # characters


@dataclasses.dataclass(frozen=True)
class Fault:
  """One record, or one medium of it, that was left out.

  Attributes:
    cause: one of data_pipelines.media.CAUSES.
    shard: path of the file that holds the record.
    record: its number in that file.
    medium: its number in the record; None: the whole record was left out.
    detail: what was found, in words.
  """

  cause: str
  shard: str
  record: int
  medium: int | None
  detail: str


def encode_faults(faults: Iterable[Fault]) -> bytes:
  """The faults of a row as one string; empty where there are none, as nearly everywhere."""
  lines = [dataclasses.asdict(fault) | dict(detail=fault.detail[:MOST_DETAIL]) for fault in faults]
  return json.dumps(lines).encode() if lines else b""


def decode_faults(encoded: Iterable[bytes]) -> list[list[Fault]]:
  """The faults of each row of a batch, of so many strings."""
  return [[Fault(**fields) for fields in json.loads(row)] if row else [] for row in encoded]
