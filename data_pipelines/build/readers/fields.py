"""The fields of a row or a sample that name a medium, its text and its terms, whatever a data set calls them."""

import base64
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.build.inputs import Source
from data_pipelines.build.interleaving import Lost, Medium
from data_pipelines.build.pictures import file_medium, inline_picture

# What LAION, img2dataset, Hugging Face, Conceptual Captions and the like call them; the first that is there counts.
PICTURE_FIELDS = ("image", "picture", "jpg", "jpeg", "png", "webp", "image_base64", "image_path", "file_name", "path")
URL_FIELDS = ("url", "URL", "image_url", "raw_url")
TEXT_FIELDS = ("caption", "text", "TEXT", "title", "alt_text")
LICENSE_FIELDS = ("license", "licence", "LICENSE", "rights")
LONGEST_NAME = 255  # of a file, in bytes; base64 of a picture is longer, and has no dot
SIMILARITY_FIELDS = ("similarity", "clip_similarity", "matched_sim")


def text_field(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
  """The first field that is there, as text; several texts are no one text, and read as none."""
  value = first_field(row, names)
  return value if isinstance(value, str) else ""


def license_field(row: Mapping[str, Any], named: str) -> str:
  """What a row says of its terms, in words or as an address; LAION writes "?" where it does not know."""
  text = text_field(row, (named,) if named else LICENSE_FIELDS).strip()
  return "" if text == "?" else text


def similarity_field(row: Mapping[str, Any]) -> float | None:
  """How alike the source finds picture and text, if it says so."""
  value = first_field(row, SIMILARITY_FIELDS)
  try:
    return None if value in (None, "") else float(value)
  except (TypeError, ValueError, OverflowError):
    return None


def picture_field(row: Mapping[str, Any], named: str, folder: pathlib.Path, source: Source) -> Medium | Lost | None:
  """The picture of a row, or None if it names none; its URL serves where there is nothing else."""
  url = text_field(row, URL_FIELDS)
  value = first_field(row, (named,) if named else (*PICTURE_FIELDS, *URL_FIELDS))
  return medium_of(value, folder, source, url)


def medium_of(value: Any, folder: pathlib.Path, source: Source, url: str = "") -> Medium | Lost | None:
  """The medium that a field holds or names: bytes, a string (see `named_medium`), or {"bytes", "path"} of these.

  Args:
    value: of the field.
    folder: where paths begin.
    source: of the build.
    url: of the medium, if it is known.
  """
  if isinstance(value, Mapping):  # as Hugging Face keeps a picture or a video
    value = value.get("bytes") or value.get("path")
  if isinstance(value, bytes) and value:
    return Medium(value, url)
  return named_medium(value, folder, source, url) if isinstance(value, str) and value else None


def with_similarity(medium: Medium | Lost, similarity: float | None) -> Medium | Lost:
  return dataclasses.replace(medium, similarity=similarity) if isinstance(medium, Medium) else medium


def named_medium(value: str, folder: pathlib.Path, source: Source, url: str = "") -> Medium | Lost:
  """What a string names: a data: address, a URL, a path under `folder`, a name in --pictures, or else base64."""
  if value.startswith("data:"):
    return inline_picture(value)
  if value.startswith(("http://", "https://", "//")):
    return _known(value, value, source.find, "remote")
  if len(value) > LONGEST_NAME and "." not in value:  # before it is tried as a path: a JPEG's begins with a slash
    return _base64(value, url)
  found = file_medium(value, folder, source.root)
  if isinstance(found, Lost) and found.cause == "missing":
    found = _known(value, url or value, source.find, "missing")
  return found


def first_field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
  return next((row[name] for name in names if row.get(name) is not None), None)


def _base64(value: str, url: str) -> Medium | Lost:
  try:
    return Medium(base64.b64decode(value, validate=True), url)
  except ValueError:
    return Lost("broken", url)


def _known(address: str, name: str, find: Callable[[str], bytes | None], cause: str) -> Medium | Lost:
  data = find(address)
  return Lost(cause, name[:200]) if data is None else Medium(data, name)
