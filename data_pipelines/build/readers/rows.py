"""Rows of CSV, TSV, JSON Lines and Parquet files, and of JSON Lines in gzip or zip; ranges are found once."""

import codecs
import collections
import csv
import gzip
import io
import itertools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.parquet

from data_pipelines.build.interleaving import Fault

Row = dict[str, Any]
BATCH = 64  # rows of a Parquet file in memory at once: each may hold pictures
LONGEST_FIELD = 64 * 2**20  # characters of a CSV field
LONGEST_LINE = 512 * 2**20  # bytes; a document of MMC4 holds its pictures

csv.field_size_limit(LONGEST_FIELD)


# What a damaged file raises; RuntimeError: a zip archive with a password.
READ_ERRORS = (
  OSError,
  EOFError,
  ValueError,
  LookupError,
  RuntimeError,
  csv.Error,
  zlib.error,
  zipfile.BadZipFile,
  pyarrow.ArrowException,
)


def split(path: pathlib.Path, size: int) -> list[tuple[int, int]]:
  """Ranges of `size` rows: numbers of rows in a Parquet file, bytes in plain text, all of a compressed file."""
  name = path.name.lower()
  if name.endswith(".parquet"):
    try:
      rows = pyarrow.parquet.ParquetFile(path).metadata.num_rows
    except (OSError, pyarrow.ArrowException):  # which `read_rows` will name
      return [(0, 1)]
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
  if name.endswith((".gz", ".zip")):
    return [(0, 0)]
  try:
    with path.open("rb") as file:
      edges = [offset for row, offset in enumerate(_row_offsets(file, name)) if row % size == 0]
  except READ_ERRORS:  # which `read_rows` will name
    return [(0, path.stat().st_size)]
  return list(itertools.pairwise([*edges, path.stat().st_size])) or [(0, 0)]


def read_rows(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[str, Row] | Fault]:
  """(name, row) of each row in a range of `split`; the name is of the row within its file."""
  name = path.name.lower()
  try:
    if name.endswith(".parquet"):
      yield from _parquet_rows(path, start, stop)
    elif ".jsonl" in name:
      yield from _json_rows(path, start, stop)
    else:
      yield from _csv_rows(path, start, stop)
  except READ_ERRORS as error:
    yield Fault("broken_file", path.name, str(error))


def _parquet_rows(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[str, Row]]:
  file, first = pyarrow.parquet.ParquetFile(path), 0
  for group in range(file.num_row_groups):
    rows = file.metadata.row_group(group).num_rows
    if first < stop and first + rows > start:
      numbers = itertools.count(first)
      for batch in file.iter_batches(BATCH, row_groups=[group]):
        for number, row in zip(itertools.islice(numbers, len(batch)), batch.to_pylist(), strict=True):
          if start <= number < stop:
            yield f"row {number}", row
    first += rows


def _json_rows(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[str, Row] | Fault]:
  for inside, file in _opened(path):
    file.seek(start)
    for offset, line in _lines(file, start):
      if stop and offset >= stop:
        return
      if line.strip():
        yield _json_row(line, f"{inside}byte {offset}", path)


def _json_row(line: bytes, name: str, path: pathlib.Path) -> tuple[str, Row] | Fault:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
    return Fault("bad_document", f"{path.name}, {name}", f"not JSON: {error}")
  return (name, row) if isinstance(row, dict) else Fault("bad_document", f"{path.name}, {name}", "not an object")


def _csv_rows(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[str, Row] | Fault]:
  name = path.name.lower()
  with path.open("rb") as file:
    header, _ = _header(file, name)
    file.seek(start)
    for offset, fields in _csv_records(file, start, name, len(header)):
      if offset >= stop:
        return
      fault = _csv_fault(fields, header)
      if fault:
        yield Fault("bad_document", f"{path.name}, byte {offset}", fault)
      else:
        yield f"byte {offset}", dict(zip(header, fields, strict=True))


def _header(file: BinaryIO, name: str) -> tuple[list[str], int]:
  """The names of a CSV's columns, and where its records begin."""
  line = file.readline(LONGEST_LINE)
  return next(csv.reader([_text(line)], delimiter=_delimiter(name)), []), len(line)


def _csv_fault(fields: list[str], header: list[str]) -> str | None:
  if len(fields) != len(header):
    return f"{len(fields)} fields for {len(header)} columns"
  return "not UTF-8" if any("\udc80" <= letter <= "\udcff" for field in fields for letter in field) else None


def _row_offsets(file: BinaryIO, name: str) -> Iterator[int]:
  """Where each row begins; a CSV's header is none."""
  if ".jsonl" in name:
    return (offset for offset, line in _lines(file, 0) if line.strip())
  header, begin = _header(file, name)
  return (offset for offset, _ in _csv_records(file, begin, name, len(header)))


def _csv_records(file: BinaryIO, start: int, name: str, columns: int) -> Iterator[tuple[int, list[str]]]:
  """(offset, fields) of each record.

  A quoted field may have line ends in it. Where no record of so many columns comes of that, the quote is a letter like
  others, and the record ends with its line.
  """
  lines, ahead = _lines(file, start), collections.deque[tuple[int, bytes]]()
  while first := ahead.popleft() if ahead else next(lines, None):
    taken: list[tuple[int, bytes]] = []
    more = itertools.chain(iter(lambda: ahead.popleft() if ahead else None, None), lines)
    fields = _quoted_record(_text(first[1]), _noted(more, taken), name)
    if fields is None or (taken and len(fields) != columns):
      ahead.extendleft(reversed(taken))
      fields = next(csv.reader([_text(first[1])], delimiter=_delimiter(name), quoting=csv.QUOTE_NONE))
    if fields:  # an empty line is no record
      yield first[0], fields


def _noted(lines: Iterable[tuple[int, bytes]], taken: list[tuple[int, bytes]]) -> Iterator[str]:
  """The text of lines, each noted as it is taken."""
  for line in lines:
    taken.append(line)
    yield _text(line[1])


def _quoted_record(first: str, more: Iterator[str], name: str) -> list[str] | None:
  """The fields of a record that begins with a line; None where a quote does not close as it should."""
  try:
    return next(csv.reader(itertools.chain([first], more), delimiter=_delimiter(name), strict=True))
  except csv.Error:
    return None


def _lines(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
  """(offset, line), where what is unpacked may have no end of line for ever. Raises ValueError."""
  while line := file.readline(LONGEST_LINE + 1):
    if len(line) > LONGEST_LINE:
      raise ValueError(f"the line at byte {start} has more than {LONGEST_LINE} bytes")
    yield start, line
    start += len(line)


def _opened(path: pathlib.Path) -> Iterator[tuple[str, BinaryIO]]:
  """(how the names of its rows begin, file) of a JSON Lines file, or of each in a zip. Raises ValueError for none."""
  if path.name.lower().endswith(".gz"):
    with gzip.open(path) as file:
      yield "", cast(BinaryIO, file)
  elif path.name.lower().endswith(".zip"):
    with zipfile.ZipFile(path) as archive:
      for member in _json_members(archive):
        with archive.open(member) as inner:
          yield f"{member}, ", io.BufferedReader(cast(io.RawIOBase, inner))
  else:
    with path.open("rb") as plain:
      yield "", plain


def _json_members(archive: zipfile.ZipFile) -> list[str]:
  """The names of the files in a zip that are JSON Lines, in its order; hidden ones are passed over."""
  names = archive.namelist()
  found = [name for name in names if name.lower().endswith(".jsonl") and not name.rpartition("/")[2].startswith(".")]
  if not found:
    raise ValueError(f"no .jsonl file is in it, but {', '.join(names) or 'nothing'}"[:400])
  return found


def _delimiter(name: str) -> str:
  return "\t" if name.endswith(".tsv") else ","


def _text(line: bytes) -> str:
  return line.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
