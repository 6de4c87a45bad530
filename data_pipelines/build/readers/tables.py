"""Captioned pictures in tables: LAION and other Parquet, CSV, TSV and JSON Lines files."""

import pathlib
from collections.abc import Iterator

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault
from data_pipelines.build.readers.fields import (
  TEXT_FIELDS,
  first_field,
  license_field,
  picture_field,
  similarity_field,
  text_field,
  with_similarity,
)
from data_pipelines.build.readers.rows import Row, read_rows, split

__all__ = ["read", "split"]


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [file] = part.files
  for row in read_rows(source.root / file, part.start, part.stop):
    if isinstance(row, Fault):
      yield row
    else:
      yield from pairs(f"{file}, {row[0]}", row[1], source, (source.root / file).parent)


def pairs(name: str, row: Row, source: Source, folder: pathlib.Path) -> Iterator[Document | Fault]:
  """One pair for each caption of a row, a text or a list of texts; a question stands before the picture.

  A list without captions gives a pair of an empty one, so that the row is counted where it is dropped.
  """
  columns = source.settings.columns
  captions = first_field(row, (columns.text,) if columns.text else TEXT_FIELDS)
  medium = picture_field(row, columns.picture, folder, source)
  captions = [captions] if isinstance(captions, str) else captions
  question = (text_field(row, (columns.question,)).strip(),) if columns.question else ()
  texts = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
  found = dict(picture=medium is not None, caption=texts, question=all(question))
  if lacking := [part for part, there in found.items() if not there]:
    yield Fault("bad_document", name, f"no {lacking[0]} among its fields {', '.join(map(str, row))}"[:400])
    return
  license = license_field(row, columns.license)
  for caption in captions or [""]:
    yield Document((*question, with_similarity(medium, similarity_field(row)), caption), name, license)
