"""WARC files: their HTML pages, and the pictures that a crawler kept beside them."""

import dataclasses
import os
import pathlib
import urllib.parse
from collections.abc import Iterator

from fastwarc.warc import ArchiveIterator, WarcRecordType

from data_pipelines.build.html import BrokenPage, read_page
from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault
from data_pipelines.build.pictures import UrlPictures
from data_pipelines.build.readers.html import page_document

PAGE_TYPES = ("text/html", "application/xhtml+xml")
LARGEST_BODY = 256 * 2**20  # bytes, unpacked; of a picture or a page
_KINDS = WarcRecordType.response | WarcRecordType.resource


@dataclasses.dataclass(frozen=True)
class Response:
  """What a server answered, or what a crawler kept as a resource: whole, and decoded from its transfer."""

  url: str
  type: str
  charset: str | None
  body: bytes
  offset: int


def split(path: pathlib.Path, size: int) -> list[tuple[int, int]]:
  return [(0, 0)]  # the whole file: it is compressed record by record, and only read from its beginning


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [name] = part.files
  pictures = UrlPictures(source.find)
  for response in responses(source.root / name, PAGE_TYPES):
    if isinstance(response, Fault):
      yield dataclasses.replace(response, name=name)
      continue
    try:
      page = read_page(response.body, response.charset, source.settings.most_linked)
      base = urllib.parse.urljoin(response.url, page.base)
    except (BrokenPage, ValueError) as error:
      yield Fault("broken_page", response.url, str(error))
    else:
      yield page_document(page, pictures, base, response.url)


def responses(path: pathlib.Path, types: tuple[str, ...], offset: int = 0) -> Iterator[Response | Fault]:
  """The successful responses of some content types, from an offset on; a damaged file ends with a Fault."""
  try:
    with path.open("rb") as file:
      if not file.seek(0, os.SEEK_END):
        yield Fault("broken_file", str(path), "it is empty")
      file.seek(offset)
      for record in ArchiveIterator(file, record_types=_KINDS, parse_http=False):
        declared, place = record.content_length, record.stream_pos
        if declared > LARGEST_BODY:
          yield Fault("too_large", str(path), f"the record at byte {place} has {declared} bytes")
          continue
        record.freeze()
        if record.content_length < declared:
          yield Fault("broken_file", str(path), f"the record at byte {place} ends early")
          return
        response = _response(record, place)
        if response and len(response.body) > LARGEST_BODY:
          yield Fault("too_large", response.url, f"more than {LARGEST_BODY} bytes, unpacked")
        elif response and response.type.startswith(types):
          yield response
  except (OSError, ValueError, RuntimeError) as error:
    yield Fault("broken_file", str(path), str(error))


def places(path: pathlib.Path) -> Iterator[tuple[str, int, int]]:
  """(URL, offset, 0) of each picture in a file."""
  for response in responses(path, ("image/",)):
    if isinstance(response, Response):
      yield response.url, response.offset, 0


def read_at(path: pathlib.Path, offset: int, size: int, address: str) -> bytes | None:
  """The picture at an offset, if it is the one of this URL."""
  response = next(responses(path, ("image/",), offset), None)
  return response.body if isinstance(response, Response) and response.url == address else None


def _response(record, offset: int) -> Response | None:
  url = record.headers.get("WARC-Target-URI", "").strip("<>")
  if record.record_type == WarcRecordType.resource:
    return Response(url, record.headers.get("Content-Type", "").lower(), None, _body(record), offset)
  record.parse_http(auto_decode="all")
  if record.http_headers is None or record.http_headers.status_code != 200:
    return None
  return Response(url, (record.http_content_type or "").lower(), record.http_charset, _body(record), offset)


def _body(record) -> bytes:
  """What a record holds, unpacked, or as much of it as tells that it is too large."""
  return record.reader.read(LARGEST_BODY + 1)
