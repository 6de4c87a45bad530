"""Safetensors files piece by piece, for checkpoints that are larger than memory.

A file is the length of its header (8 bytes, little endian), the header (JSON: dtype, shape and span of bytes by name),
then the bytes of the tensors without holes. Files are not mapped: mapped pages count as memory once they were read.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.json_files import parse_object

DTYPES = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "F32": np.dtype(np.float32),
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F64": np.dtype(np.float64),
  "C64": np.dtype(np.complex64),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000  # what the format's own library accepts
LARGEST_TENSOR = 2**59  # elements; far more than any disk holds, and of 8 bytes each still an array for NumPy
MOST_AXES = 32  # of NumPy 1
CHUNK = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor in a file; `start` counts from the first byte of the file."""

  dtype: np.dtype
  shape: tuple[int, ...]
  start: int

  @property
  def size(self) -> int:
    """In bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
  """One file for reading, its header checked whole.

  Attributes:
    path: of the file.
    entries: by name.

  Raises:
    UserError: the file cannot be read, or is not as the format asks.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.entries = read_entries(path)

  def read(self, name: str) -> np.ndarray:
    """One tensor, the only copy of it in memory."""
    entry = self.entries[name]
    array = np.empty(entry.shape, entry.dtype)
    self.read_into(raw_bytes(array), entry.start)
    return array

  def chunks(self, name: str) -> Iterator[np.ndarray]:
    """The bytes of one tensor, uint8 [n] with n at most CHUNK."""
    entry = self.entries[name]
    end = entry.start + entry.size
    for start in range(entry.start, end, CHUNK):
      chunk = np.empty(min(CHUNK, end - start), np.uint8)
      self.read_into(chunk, start)
      yield chunk

  def read_into(self, target: np.ndarray, start: int) -> None:
    """Fills `target` uint8 [n] from byte `start` of the file."""
    try:
      with open(self.path, "rb") as file:
        file.seek(start)
        found = file.readinto(target)
    except OSError as error:
      raise UserError(f"{self.path}: cannot be read ({error.strerror}).") from error
    if found != len(target):
      raise UserError(f"{self.path}: became shorter while it was read. Wait until it is written, then start again.")


class TensorWriter:
  """Writes one file of known layout: whole tensors, or slices of their first axis, in any order.

  As a context manager it closes the file, and checks it only if nothing was raised within. Write in a temporary folder
  and rename: until `close` has returned, the file is not complete.

  Args:
    path: of the file; what was there is replaced.
    layout: shape and dtype by name.
    metadata: free text by name, kept in the header.

  Raises:
    UserError: the format cannot hold a dtype or name, or the disk refuses.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    layout: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    metadata: Mapping[str, str] | None = None,
  ):
    self.path = pathlib.Path(path)
    self.written: dict[str, set[int | None]] = collections.defaultdict(set)
    header, self.entries = lay_out(self.path, layout, metadata or {})
    with disk_errors(self.path):
      self.file = open(self.path, "wb")  # noqa: SIM115  the writer is the context manager
      self.file.write(header)
      self.file.truncate(len(header) + sum(entry.size for entry in self.entries.values()))

  def write(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    """Writes a tensor.

    Args:
      name: in the layout.
      array: of the layout's shape and dtype; without the first axis if there is an index.
      index: the slice of the first axis that `array` is.

    Raises:
      UserError: `array` is not what the layout promises, was written before, or the disk refuses.
    """
    if name not in self.entries:
      raise UserError(f"{self.path}: {name!r} is not in the layout of the file.")
    entry, written = self.entries[name], self.written[name]
    if index is not None and not (entry.shape and 0 <= index < entry.shape[0]):
      raise UserError(f"{self.path}: {name!r} has the shape {entry.shape}, which has no slice {index}.")
    shape = entry.shape if index is None else entry.shape[1:]
    if (array.shape, array.dtype) != (shape, entry.dtype):
      found = f"{array.dtype} {array.shape}"
      raise UserError(f"{self.path}: {name!r} was given as {found}; the layout says {entry.dtype} {shape}.")
    if None in written or index in written or (index is None and written):
      place = name if index is None else f"{name}[{index}]"
      raise UserError(f"{self.path}: {place!r} is written twice.")
    with disk_errors(self.path):
      self.file.seek(entry.start + (index or 0) * array.nbytes)
      self.file.write(raw_bytes(array))
    written.add(index)

  def close(self) -> None:
    """Brings everything to the disk. Raises UserError when a part was never written, or the disk refuses."""
    with disk_errors(self.path), self.file:
      self.file.flush()
      os.fsync(self.file.fileno())
    missing = [name for name in sorted(self.entries) if not self.is_written(name)]
    if missing:
      raise UserError(
        f"{self.path}: {len(missing)} of {len(self.entries)} tensors were not written whole, {missing[0]!r} first."
      )

  def is_written(self, name: str) -> bool:
    """Whether every byte of a tensor is there; a stack of no slices is from the start."""
    written, shape = self.written[name], self.entries[name].shape
    return None in written or (shape != () and len(written) == shape[0])

  def __enter__(self) -> "TensorWriter":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind is None:
      return self.close()
    with contextlib.suppress(OSError):  # a full disk was already reported by what was raised
      self.file.close()


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what the disk says into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def raw_bytes(array: np.ndarray) -> np.ndarray:
  """The bytes of an array in C order, uint8 [n]; the same memory where the array is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def lay_out(
  path: pathlib.Path, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
  """The first bytes of a file, and where its tensors go: the widest dtypes first, so that every one is aligned."""
  offsets, end = {}, 0
  for name, (shape, dtype) in sorted(layout.items(), key=lambda item: (-np.dtype(item[1][1]).itemsize, item[0])):
    entry = Entry(np.dtype(dtype), tuple(int(length) for length in shape), end)
    if entry.dtype not in DTYPE_NAMES or name == METADATA:
      raise UserError(f"{path}: safetensors cannot hold {name!r} of dtype {entry.dtype}.")
    offsets[name] = entry
    end += entry.size
  header: dict[str, dict] = {METADATA: dict(metadata)} if metadata else {}
  for name, entry in offsets.items():
    span = [entry.start, entry.start + entry.size]
    header[name] = dict(dtype=DTYPE_NAMES[entry.dtype], shape=entry.shape, data_offsets=span)
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  first = LENGTH_BYTES + len(text)
  entries = {name: dataclasses.replace(entry, start=first + entry.start) for name, entry in offsets.items()}
  return len(text).to_bytes(LENGTH_BYTES, "little") + text, entries


def read_entries(path: pathlib.Path) -> dict[str, Entry]:
  """Reads and checks the header of a file."""
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      length = int.from_bytes(file.read(LENGTH_BYTES), "little")
      text = file.read(length) if length <= min(LARGEST_HEADER, size - LENGTH_BYTES) else None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
  if size < LENGTH_BYTES:
    raise UserError(f"{path}: {size} bytes are too few for a safetensors file. Get the file again.")
  if text is None:
    raise UserError(
      f"{path}: says its header is {length} bytes long, but the file has {size} bytes and a header at most "
      f"{LARGEST_HEADER}. It is no safetensors file, was cut short, or is only a Git LFS pointer. Get it again."
    )
  header = parse_object(text, f"{path}: the header")
  metadata = header.pop(METADATA, {})
  if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
    raise UserError(f"{path}: {METADATA} is {reprlib.repr(metadata)}; it should map names to text.")
  first = LENGTH_BYTES + length
  entries = {name: parse_entry(path, name, described, first, size) for name, described in header.items()}
  check_spans(path, entries, first, size)
  return entries


def parse_entry(path: pathlib.Path, name: str, described: object, first: int, size: int) -> Entry:
  """One tensor of a header; the bytes of the tensors are those from `first` to the file's `size`."""
  where = f"{path}: tensor {name!r}"
  if not isinstance(described, dict):
    raise UserError(f"{where} is {reprlib.repr(described)}; it should have a dtype, a shape and data_offsets.")
  dtype, shape, offsets = (described.get(field) for field in ("dtype", "shape", "data_offsets"))
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise UserError(f"{where} has the dtype {reprlib.repr(dtype)}; known are {', '.join(DTYPES)}.")
  if not are_lengths(shape) or len(shape) > MOST_AXES or math.prod(max(n, 1) for n in shape) > LARGEST_TENSOR:
    raise UserError(
      f"{where} has the shape {reprlib.repr(shape)}; it should be a list of at most {MOST_AXES} whole numbers."
    )
  if not are_lengths(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise UserError(f"{where} has the data_offsets {reprlib.repr(offsets)}; they should be [begin, end].")
  entry = Entry(DTYPES[dtype], tuple(shape), first + offsets[0])
  if entry.size != offsets[1] - offsets[0]:
    raise UserError(f"{where}, {dtype} {shape}, takes {entry.size} bytes, but its data_offsets are {offsets}.")
  if entry.start + entry.size > size:
    raise UserError(f"{where} ends at byte {first + offsets[1]}, but the file has {size}. Get the whole file.")
  return entry


def are_lengths(value: object) -> bool:
  """Whether this is a list of whole numbers from 0; true and false are none."""
  return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def check_spans(path: pathlib.Path, entries: dict[str, Entry], first: int, size: int) -> None:
  """Raises UserError unless the tensors cover the file from byte `first` to its end, each byte once."""
  end, before = first, "the header"
  for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
    if entry.start < end:
      raise UserError(f"{path}: tensor {name!r} overlaps {before}. The file is damaged; get it again.")
    if entry.start > end:
      raise UserError(f"{path}: {entry.start - end} bytes before tensor {name!r} belong to none. Get the file again.")
    end, before = entry.start + entry.size, f"tensor {name!r}"
  if end < size:
    raise UserError(f"{path}: the last {size - end} bytes belong to no tensor. The file is damaged; get it again.")
