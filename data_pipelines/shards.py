"""A stream on disk: ArrayRecord shards and a manifest, written as a whole or not at all, read by index."""

import bisect
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from array_record.python import array_record_module as array_record

from data_pipelines.schema import SCHEMA_VERSION, Example, serialize
from flamingo_jax.errors import UserError

MANIFEST = "manifest.json"
ENTRY = {"file": str, "records": int, "bytes": int, "sha256": str}  # what a manifest says at least of a shard
# Records are read one at a time in a random order, and nearly all of their bytes are compressed pictures already.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def write_shards(
  directory: pathlib.Path,
  examples: Iterable[Example],
  statistics: Mapping[str, int],
  *,
  name: str = "examples",
  records_per_shard: int = 1000,
  build: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes a stream and returns its manifest; what was in `directory` before is replaced.

  Everything is written to a hidden sibling and renamed at the end: a build that is killed leaves no `directory`, or the
  old one. Two builds at once do no harm, the last one stays.

  Args:
    directory: where the stream will be.
    examples: in the order in which they will be numbered.
    statistics: what was dropped, by cause; read after `examples` is exhausted, so a generator may still count.
    name: files are called NAME-00000-of-00003.array_record.
    records_per_shard: how many, at most.
    build: anything that says how the stream was made, kept in the manifest.

  Raises UserError when there is no example at all, or the disk refuses.
  """
  partial = directory.with_name(f".{directory.name}.partial-{uuid.uuid4().hex[:8]}")
  try:
    partial.mkdir(parents=True)
    shards, totals = _write_records(partial, iter(examples), name, records_per_shard)
    if not totals["records"]:
      raise UserError(f"{directory}: no example to write. Dropped, by cause: {dict(statistics) or 'nothing'}.")
    manifest = {
      "schema_version": SCHEMA_VERSION,
      "build": dict(build or {}),
      **totals,
      "statistics": dict(sorted(statistics.items())),
      "shards": shards,
    }
    write_durably(partial / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    _replace(partial, directory)
  except OSError as error:
    raise UserError(f"{directory}: the stream could not be written: {error}.") from error
  finally:  # after the rename there is nothing left to remove
    shutil.rmtree(partial, ignore_errors=True)
  return manifest


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
  """The manifest of a stream. Raises UserError when there is none, or none of this schema version."""
  path = directory / MANIFEST
  try:
    manifest = json.loads(path.read_bytes())
    version = manifest["schema_version"]
  except FileNotFoundError as error:
    found = "has no manifest.json" if directory.is_dir() else "does not exist"
    raise UserError(f"{directory} {found}: it is not a complete stream of shards. Build it first.") from error
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f"{path} cannot be read ({error}). Build the stream again.") from error
  if version != SCHEMA_VERSION:
    raise UserError(f"{path}: schema version {version}; this program reads {SCHEMA_VERSION}. Build the stream again.")
  return manifest


def open_shards(directory: pathlib.Path, tolerated: float = 0.0) -> "Shards":
  """Opens a stream for reading.

  Args:
    directory: where it lies.
    tolerated: the share of its records that may be in files that are missing, cut short or damaged as a whole. They
      keep their numbers, and reading one of them says what is wrong with its file.

  Raises UserError for whatever else is missing or not what the manifest says.
  """
  directory = pathlib.Path(directory)
  manifest = read_manifest(directory)
  entries, records = shard_entries(directory, manifest), _count(directory, manifest)
  shards = [_open_shard(_inside(directory, entry["file"]), entry["records"], entry["bytes"]) for entry in entries]
  lost = [shard for shard in shards if isinstance(shard, _LostShard)]
  if sum(shard.records for shard in lost) > tolerated * records:
    raise UserError("\n".join(shard.fault for shard in lost))
  if sum(shard.records for shard in shards) != records:
    raise UserError(
      f"{directory / MANIFEST}: its shards hold {sum(shard.records for shard in shards)} records, "
      f"but the manifest says {records}. Build the stream again."
    )
  if not shards:
    raise UserError(f"{directory}: has no records. Build the stream again, of something.")
  hashes = "\n".join(entry["sha256"] for entry in entries)
  return Shards(directory, manifest, shards, hashlib.sha256(hashes.encode()).hexdigest())


def shard_entries(directory: pathlib.Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
  """What a manifest says of each shard. Raises UserError when it lacks something, or has something else there."""
  path = directory / MANIFEST
  if "shards" not in manifest:
    raise UserError(f"{path} lacks 'shards'. Build the stream again.")
  if not isinstance(manifest["shards"], list):
    raise UserError(f"{path}: 'shards' is {manifest['shards']!r:.80}, and should be a list. Build the stream again.")
  for number, entry in enumerate(manifest["shards"]):
    fault = _entry_fault(entry)
    if fault:
      raise UserError(f"{path}: shard {number} {fault}. Build the stream again.")
  return manifest["shards"]


def _entry_fault(entry: Any) -> str | None:
  """What is wrong with the entry of a shard, or None."""
  if not isinstance(entry, dict):
    return f"is {entry!r:.80}, and should be an object that has {', '.join(ENTRY)}"
  for name, kind in ENTRY.items():
    if name not in entry:
      return f"lacks {name!r}"
    if type(entry[name]) is not kind or (name == "records" and entry[name] < 1):
      return f"has {entry[name]!r:.80} for {name!r}, which should be {'a string' if kind is str else 'a whole number'}"
  return None


def _count(directory: pathlib.Path, manifest: dict[str, Any]) -> int:
  """How many records a manifest says there are. Raises UserError when it says none, or no number."""
  records = manifest.get("records")
  if type(records) is not int:
    found = f"has {records!r:.80} for" if "records" in manifest else "lacks"
    raise UserError(f"{directory / MANIFEST} {found} 'records', a whole number. Build the stream again.")
  return records


class Shards:
  """Records of a stream by index, from any thread.

  Attributes:
    directory: where they lie.
    manifest: what manifest.json holds.
    content_hash: sha256 in hex over the shards' own; equal for equal records in equal order.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    manifest: dict[str, Any],
    shards: "list[_Shard | _LostShard]",
    content_hash: str,
  ):
    self.directory = directory
    self.manifest = manifest
    self.content_hash = content_hash
    self._shards = shards
    self._ends = list(itertools.accumulate(shard.records for shard in shards))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    """The bytes of record `index`. Raises IndexError outside the stream, UserError when the record is damaged."""
    shard, inner = self._locate(index)
    return shard.read(inner)

  def where(self, index: int) -> tuple[str, int]:
    """The path of the file that holds a record, and its number in that file. Raises IndexError."""
    shard, inner = self._locate(index)
    return str(shard.path), inner

  def index(self, path: pathlib.Path, record: int) -> int:
    """Which record this is, by its file and number there. Raises UserError when there is no such file or record."""
    names = [shard.path.name for shard in self._shards]
    if path.name not in names:
      raise UserError(f"{path} is not one of the {len(names)} shards of {self.directory}, such as {names[0]}.")
    number = names.index(path.name)
    records = self._shards[number].records
    if not 0 <= record < records:
      raise UserError(f"{path} has {records} records, 0 to {records - 1}; there is no record {record}.")
    return self._ends[number] - records + record

  def _locate(self, index: int) -> "tuple[_Shard | _LostShard, int]":
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of a stream of {len(self)}")
    shard = bisect.bisect_right(self._ends, index)
    return self._shards[shard], index - (self._ends[shard - 1] if shard else 0)


class _Shard:
  """One ArrayRecord file; a reader has a position, so only one thread at a time may use it."""

  def __init__(self, path: pathlib.Path, records: int, size: int):
    self.path, self.records = path, records
    try:
      found = path.stat().st_size
    except OSError as error:
      raise UserError(f"{path} is missing ({error.strerror}). Build the stream again.") from error
    if found != size:
      raise UserError(f"{path} has {found} bytes; the manifest says {size}. Copy or build the stream again.")
    try:
      self._reader = array_record.ArrayRecordReader(str(path), READER_OPTIONS)
      found = self._reader.num_records()
    except (RuntimeError, ValueError) as error:
      raise UserError(f"{path} is not a readable ArrayRecord file: {error}. Build the stream again.") from error
    if found != records:
      raise UserError(f"{path} holds {found} records; the manifest says {records}. Build the stream again.")
    self._lock = threading.Lock()

  def read(self, index: int) -> bytes:
    try:
      with self._lock:
        return self._reader.read([index])[0]
    except (RuntimeError, ValueError, IndexError) as error:
      raise UserError(
        f"{self.path}: record {index} is damaged: {error}\nCopy the file again, or build the stream again."
      ) from error


def _inside(directory: pathlib.Path, name: str) -> pathlib.Path:
  """A file that a manifest names. Raises UserError when that leads elsewhere."""
  if pathlib.PurePath(name).parts != (name,) or name == "..":
    raise UserError(f"{directory / MANIFEST}: {name!r} is not the name of a file beside it. Build the stream again.")
  return directory / name


@dataclasses.dataclass(frozen=True)
class _LostShard:
  """A file that cannot be opened, in the place of its records."""

  path: pathlib.Path
  records: int
  fault: str

  def read(self, index: int) -> bytes:
    raise UserError(self.fault)


def _open_shard(path: pathlib.Path, records: int, size: int) -> "_Shard | _LostShard":
  try:
    return _Shard(path, records, size)
  except UserError as error:
    return _LostShard(path, records, str(error))


def _write_records(
  folder: pathlib.Path, examples: Iterator[Example], name: str, records_per_shard: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Fills `folder`; returns the manifest's entry per shard, and its counts over the stream."""
  records, media = 0, 0
  collections_, licenses = collections.Counter(), collections.Counter()
  counts = []
  while (first := next(examples, None)) is not None:
    count = 0
    with record_writer(folder / f"{len(counts):05d}") as writer:
      for example in itertools.chain([first], itertools.islice(examples, records_per_shard - 1)):
        writer(serialize(example))
        count += 1
        media += len(example.media)
        collections_[example.source.split("/")[0]] += 1
        licenses[example.license] += 1
    counts.append(count)
    records += count
  shards = []
  for index, count in enumerate(counts):  # only now is it known how many there are
    path = (folder / f"{index:05d}").rename(folder / f"{name}-{index:05d}-of-{len(counts):05d}.array_record")
    shards.append({"file": path.name, "records": count, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
  return shards, {
    "records": records,
    "media": media,
    "sources": dict(sorted(collections_.items())),
    "licenses": dict(sorted(licenses.items())),
  }


@contextlib.contextmanager
def record_writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
  """Lends a function that appends one record. Raises OSError when the disk refuses, which ArrayRecord does not."""
  writer = array_record.ArrayRecordWriter(str(path), WRITER_OPTIONS)

  def disk_errors(action: Callable, *arguments: bytes) -> None:
    try:
      action(*arguments)
    except RuntimeError as error:
      raise OSError(str(error)) from error

  try:
    yield lambda record: disk_errors(writer.write, record)
  finally:
    disk_errors(writer.close)
  with path.open("rb") as file:
    os.fsync(file.fileno())


def file_sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: pathlib.Path, data: bytes) -> None:
  """Writes a file and waits until the disk has it. Raises OSError."""
  with path.open("wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _replace(new: pathlib.Path, directory: pathlib.Path) -> None:
  """Renames `new` to `directory`. A full directory cannot be renamed over, so the old one steps aside first."""
  old = new.with_name(new.name.replace(".partial-", ".old-"))
  if directory.exists():
    directory.rename(old)
  new.rename(directory)
  shutil.rmtree(old, ignore_errors=True)
