"""Documents that are interleaved already: MMC4 (JSON Lines) and OBELICS (Parquet or JSON Lines)."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault, Lost, Medium
from data_pipelines.build.readers.fields import license_field, medium_of, similarity_field, with_similarity
from data_pipelines.build.readers.rows import Row, read_rows, split
from data_pipelines.build.texts import BREAK

__all__ = ["read", "split"]


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [file] = part.files
  folder = (source.root / file).parent
  for row in read_rows(source.root / file, part.start, part.stop):
    if isinstance(row, Fault):
      yield row
      continue
    name, fields = f"{file}, {row[0]}", row[1]
    try:
      parts = mmc4_parts(fields, folder, source) if "text_list" in fields else obelics_parts(fields, folder, source)
      yield Document(tuple(parts), address_of(fields) or name, license_field(fields, source.settings.columns.license))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
      yield Fault("bad_document", name, f"neither MMC4 nor OBELICS: {error!r} among {', '.join(fields)}"[:400])


def mmc4_parts(fields: Row, folder: pathlib.Path, source: Source) -> list[str | Medium | Lost]:
  """Each picture before the sentence that it was matched with, as OpenFlamingo reads it.

  Pictures are listed in any order; those of one sentence keep theirs, each in its own place.
  """
  sentences = fields["text_list"]
  places: list[list[Medium | Lost]] = [[] for _ in sentences]
  for info in fields["image_info"]:
    index = int(info["matched_text_index"])
    if not 0 <= index < len(sentences):
      raise ValueError(f"matched_text_index {index} among {len(sentences)} sentences")
    places[index].append(_mmc4_picture(info, folder, source))
  return [part for pictures, sentence in zip(places, sentences, strict=True) for part in (*pictures, f"{sentence} ")]


def obelics_parts(fields: Row, folder: pathlib.Path, source: Source) -> list[str | Medium | Lost]:
  """`images` and `texts` are of one length, and at each place one of them is filled."""
  images, texts = fields["images"], fields["texts"]
  descriptions = _json(fields.get("metadata")) or [None] * len(images)
  parts: list[str | Medium | Lost] = []
  for image, text, about in zip(images, texts, descriptions, strict=True):
    if (image is None) == (text is None):
      raise ValueError(f"place {len(parts)} has both a picture and a text, or neither")
    parts.append(f"{text}{BREAK}" if image is None else _obelics_picture(image, about or {}, folder, source))
  return parts


def address_of(fields: Row) -> str:
  """The URL of a document: MMC4 has it as a field, OBELICS in `general_metadata`."""
  about = _json(fields.get("general_metadata")) or {}
  url = fields.get("url") or about.get("url") or ""
  return url if isinstance(url, str) else ""


def _mmc4_picture(info: Mapping[str, Any], folder: pathlib.Path, source: Source) -> Medium | Lost:
  named = info.get("image_base64") or info.get("image_name") or info.get("raw_url")
  medium = medium_of(named, folder, source, info.get("raw_url") or "") or Lost("missing", "")
  return with_similarity(medium, similarity_field(info))


def _obelics_picture(image: Any, about: Mapping[str, Any], folder: pathlib.Path, source: Source) -> Medium | Lost:
  medium = medium_of(image, folder, source, about.get("src") or "") or Lost("missing", "")
  if isinstance(medium, Lost):
    return medium
  return dataclasses.replace(medium, description=about.get("alt_text") or "")


def _json(value: Any) -> Any:
  """OBELICS keeps its metadata as text."""
  return json.loads(value) if isinstance(value, str) else value
