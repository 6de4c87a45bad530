"""Captioned videos: rows that name a file, a caption, and perhaps from where to where in the file it holds.

{"video": "films/a.mp4", "caption": "A dog runs.", "start": 2.0, "end": 7.5, "license": "CC-BY-4.0"}
"""

import pathlib
from collections.abc import Iterator

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault
from data_pipelines.build.readers.fields import TEXT_FIELDS, first_field, license_field, medium_of, text_field
from data_pipelines.build.readers.rows import Row, read_rows, split

__all__ = ["read", "split"]

VIDEO_FIELDS = ("video", "mp4", "webm", "avi", "video_path", "file_name", "path")
START_FIELDS, END_FIELDS = ("start", "clip_start", "start_seconds"), ("end", "clip_end", "end_seconds")


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [file] = part.files
  for row in read_rows(source.root / file, part.start, part.stop):
    yield row if isinstance(row, Fault) else clip(f"{file}, {row[0]}", row[1], source, (source.root / file).parent)


def clip(name: str, row: Row, source: Source, folder: pathlib.Path) -> Document | Fault:
  columns = source.settings.columns
  medium = medium_of(first_field(row, (columns.video,) if columns.video else VIDEO_FIELDS), folder, source)
  caption = text_field(row, (columns.text,) if columns.text else TEXT_FIELDS)
  if medium is None or not caption:
    wanted = "video" if medium is None else "caption"
    return Fault("bad_document", name, f"no {wanted} among its fields {', '.join(map(str, row))}"[:400])
  try:
    start, end = (_seconds(first_field(row, names)) for names in (START_FIELDS, END_FIELDS))
  except (TypeError, ValueError, OverflowError):
    return Fault("bad_document", name, "start and end are to be seconds")
  start = start or 0.0
  if not (start >= 0 and (end is None or start < end < float("inf"))):
    return Fault("bad_document", name, f"from {start} s to {end} s is no span of time")
  return Document((medium, caption), name, license_field(row, columns.license), (start, end))


def _seconds(value) -> float | None:
  return None if value in (None, "") else float(value)
