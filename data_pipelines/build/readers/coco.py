"""COCO captions: one JSON file of images, annotations and licenses; the pictures lie beside it or in --pictures.

`annotations/captions_train2017.json` names pictures of `train2017/`: they are looked for beside the JSON file, and in
the folders beside it and beside its own folder, first of all where the JSON file's name has the folder's. Every
annotation is a pair of its own.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault, Lost, Medium
from data_pipelines.build.pictures import file_medium

LARGEST_FILE = 2 * 2**30  # bytes; all captions of COCO are a twentieth of it


def split(path: pathlib.Path, size: int) -> list[tuple[int, int]]:
  """Ranges of annotations; none of a JSON file that is something else."""
  try:
    count = len(_read(path)["annotations"])
  except (ValueError, RecursionError):  # which `read` will name
    return [(0, 0)]
  except (KeyError, TypeError):
    return []
  return [(start, min(start + size, count)) for start in range(0, count, size)]


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  [file] = part.files
  path = source.root / file
  try:
    content = _read(path)
    images = {image["id"]: image for image in content["images"]}
    licenses = {license["id"]: license.get("url") or license["name"] for license in content.get("licenses", ())}
    annotations = content["annotations"][part.start : part.stop]
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    yield Fault("broken_file", file, f"no COCO captions: {error}")
    return
  folders = sorted({path.parent, *_folders(path.parent), *_folders(path.parent.parent, source.root)})
  named = [folder for folder in folders if _names(path.stem, folder.name)]
  for number, annotation in enumerate(annotations, part.start):
    name = f"{file}, annotation {number}"
    try:
      image, caption = images[annotation["image_id"]], annotation["caption"]
      parts = (_picture(image["file_name"], (named, folders), source), caption.strip())
      license = str(licenses.get(image.get("license"), ""))
    except (KeyError, TypeError, AttributeError) as error:
      yield Fault("bad_document", name, f"it lacks {error}")
    except ValueError as error:
      yield Fault("bad_document", name, str(error))
    else:
      yield Document(parts, name, license)


def _read(path: pathlib.Path) -> Any:
  with path.open("rb") as file:
    text = file.read(LARGEST_FILE + 1)
  if len(text) > LARGEST_FILE:
    raise ValueError(f"more than {LARGEST_FILE} bytes")
  return json.loads(text)


def _folders(folder: pathlib.Path, root: pathlib.Path | None = None) -> list[pathlib.Path]:
  inside = root is None or folder.resolve().is_relative_to(root.resolve())
  return [found for found in folder.iterdir() if found.is_dir()] if inside else []


def _names(stem: str, folder: str) -> bool:
  """Whether the name of a folder is a part of a file's, as train2017 is of captions_train2017."""
  return re.search(rf"(?<![^\W_]){re.escape(folder)}(?![^\W_])", stem) is not None


def _picture(name: str, choices: tuple[list[pathlib.Path], ...], source: Source) -> Medium | Lost:
  """The picture in the first of some lists of folders that has it. Raises ValueError when it has different ones."""
  outside = None
  for folders in choices:
    found = [file_medium(name, folder, source.root) for folder in folders]
    media = [medium for medium in found if isinstance(medium, Medium)]
    different = {medium.data: medium.address for medium in media}
    if len(different) > 1:
      raise ValueError(f"{name} is ambiguous: {' and '.join(sorted(different.values()))} are different files")
    if media:
      return media[0]
    outside = outside or next((lost for lost in found if lost.cause == "outside_folder"), None)
  data = None if outside else source.find(name)
  if data is not None:
    return Medium(data, name)
  return outside or Lost("missing", name)
