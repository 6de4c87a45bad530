"""WebDataset tars: members of one name are a sample, told apart by what follows the first dot (as img2dataset writes).

    00000/000000012.jpg  000000012.txt  000000012.json

Members are read in the order of the file and never written to disk.
"""

import json
import pathlib
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Self

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault, Medium
from data_pipelines.build.readers.fields import (
  TEXT_FIELDS,
  URL_FIELDS,
  license_field,
  similarity_field,
  text_field,
)

MEDIA = {
  "pairs": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif", "tiff", "img"),
  "videos": ("mp4", "webm", "avi", "mov", "mkv"),
}
TEXTS = ("txt", "caption", "text")
LARGEST_SAMPLE = 2**30  # bytes of all its members: a tar may be compressed


def split(path: pathlib.Path, size: int) -> list[tuple[int, int]]:
  return [(0, 0)]  # the whole file: a tar has no table of contents


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [file] = part.files
  sample: dict[str, Any] = {}
  key = None
  for member in members(source.root / file):
    if isinstance(member, Fault):
      yield member
      continue
    name, data = member
    stem, suffix = split_name(name)
    if stem != key and sample:
      yield document(f"{file}/{key}", sample, source)
      sample = {}
    key = stem
    if len(data) + sum(map(len, sample.values())) > LARGEST_SAMPLE:
      yield Fault("too_large", f"{file}/{name}")
      continue
    sample[suffix] = data
  if sample:
    yield document(f"{file}/{key}", sample, source)


def document(name: str, sample: dict[str, bytes], source: Source) -> Document | Fault:
  """The Document of a sample; its text is that of a text file, or else of a field of its JSON file."""
  columns = source.settings.columns
  suffixes = (columns.picture or columns.video,) if columns.picture or columns.video else MEDIA[source.settings.kind]
  data = next((sample[suffix] for suffix in suffixes if suffix in sample), None)
  if data is None:
    return Fault("bad_document", name, f"no medium among {', '.join(sample)}")
  try:
    fields = json.loads(sample.get("json", b"{}"))
    written = next((sample[suffix].decode() for suffix in TEXTS if suffix in sample), None)
  except (ValueError, RecursionError) as error:
    return Fault("bad_document", name, str(error))
  if not isinstance(fields, dict):
    return Fault("bad_document", name, "its JSON is no object")
  text = written if written is not None else text_field(fields, (columns.text,) if columns.text else TEXT_FIELDS)
  medium = Medium(data, text_field(fields, URL_FIELDS), similarity=similarity_field(fields))
  return Document((medium, text), name, license_field(fields, columns.license))


class Header(tarfile.TarInfo):
  """Of a member of a tar. A damaged one is an error wherever it stands; tarfile takes all but the first for the end."""

  @classmethod
  def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
    try:
      return super().frombuf(buf, encoding, errors)
    except tarfile.HeaderError as error:
      if any(buf):  # zeros, or nothing, are the end
        raise tarfile.ReadError(f"no header of a member: {error}") from error
      raise


def members(path: pathlib.Path) -> Iterator[tuple[str, bytes] | Fault]:
  """(name, bytes) of each file in a tar; one that leads out of it is a Fault, and a damaged tar ends with one."""
  try:
    with tarfile.open(path, "r|*", tarinfo=Header) as tar:
      for member in tar:
        fault = _member_fault(member)
        if fault:
          yield Fault(fault, f"{path.name}/{member.name}")
        elif member.isfile():
          yield member.name, tar.extractfile(member).read()
  except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
    yield Fault("broken_file", path.name, str(error))


def places(path: pathlib.Path) -> Iterator[tuple[str, int, int] | Fault]:
  """(address, offset, size) of each picture in an uncompressed tar: by its name, and by the URL in its JSON file.

  The JSON file stands before or after the picture, with no member of another sample between them. A tar that is
  damaged or compressed ends with a Fault.
  """
  try:
    with tarfile.open(path, "r:", tarinfo=Header) as tar:
      key, url, place = None, "", None  # of the one sample that is being read
      for member in tar:
        stem, suffix = split_name(member.name)
        if not member.isfile() or suffix not in (*MEDIA["pairs"], "json"):
          continue
        if stem != key:
          key, url, place = stem, "", None
        if suffix == "json":
          url = url_of(tar.extractfile(member).read())
        else:
          place = (member.offset_data, member.size)
          yield member.name, *place
        if url and place:
          yield url, *place
  except (OSError, EOFError, ValueError, tarfile.TarError) as error:
    yield Fault("broken_file", str(path), f"as an uncompressed tar: {error}")  # what lies behind it counts as missing


def url_of(data: bytes) -> str:
  """The URL in a sample's JSON file; empty where that has none, or is none: the picture is still known by its name."""
  try:
    fields = json.loads(data)
  except (ValueError, RecursionError):
    return ""
  return text_field(fields, URL_FIELDS) if isinstance(fields, dict) else ""


def read_at(path: pathlib.Path, offset: int, size: int, address: str) -> bytes | None:
  with path.open("rb") as file:
    file.seek(offset)
    return file.read(size)


def split_name(name: str) -> tuple[str, str]:
  """("folder/key", "suffix") of a member; the suffix in lower case, from the first dot of the file's name on."""
  folder, file = posixpath.split(name)
  key, _, suffix = file.partition(".")
  return posixpath.join(folder, key), suffix.lower()


def _member_fault(member: tarfile.TarInfo) -> str | None:
  if member.name.startswith("/") or ".." in member.name.split("/"):
    return "outside_folder"
  if member.issym() or member.islnk():
    return "outside_folder"  # wherever it leads: a sample has its own bytes
  return "too_large" if member.size > LARGEST_SAMPLE else None
