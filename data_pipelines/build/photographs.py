"""The sample photographs of scikit-image, described in its docstrings, become caption pairs.

The wheel is read as a zip file and its module as a syntax tree: nothing is installed, imported or run.
"""

import ast
import collections
import hashlib
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator

from data_pipelines.build.fetch import read_member
from data_pipelines.build.filters import check_picture
from data_pipelines.schema import Example
from flamingo_jax.errors import UserError

COLLECTION = "scikit-image"
FETCHERS = "skimage/data/_fetchers.py"
# Docstrings that name a picture, or say what it is good for, without saying what it shows: written after looking at it.
CAPTIONS = {
  "camera.png": "A photographer in a dark coat looks through a camera on a tripod, in black and white.",
  "chessboard_GRAY.png": "A checkerboard of black and white squares.",
  "logo.png": "The scikit-image logo: a snake in orange and green inside a circle.",
  "microaneurysms.png": "Detail from an image of the retina, with microaneurysms, in shades of gray.",
  "motorcycle_left.png": "A red motorcycle parked in a workshop, seen by the left camera of a stereo pair.",
  "motorcycle_right.png": "A red motorcycle parked in a workshop, seen by the right camera of a stereo pair.",
  "page.png": "A scanned page of printed text, unevenly lit.",
  "text.png": "Handwritten letters and symbols on paper, seen at an angle, in shades of gray.",
}
# Of a docstring's later sentences, those that go on describing what is seen.
_DESCRIBES = re.compile(r"(This|The) (image|picture|photograph) (shows|contains|of a wall)")


def photograph_pairs(wheel: pathlib.Path, counts: collections.Counter) -> Iterator[tuple[str, str, Example]]:
  """(file name, sha256 of the picture, pair) of each picture in the wheel that its package describes.

  `counts` grows by `not_in_wheel` (the package would download it) and the causes of `filters.check_picture`.
  Raises UserError when `wheel` is not a scikit-image wheel.
  """
  try:
    with zipfile.ZipFile(wheel) as archive:
      members = set(archive.namelist())
      for name, docstring in described_files(read_member(archive, FETCHERS).decode()):
        if f"skimage/{name}" not in members:
          counts["not_in_wheel"] += 1
          continue
        data = read_member(archive, f"skimage/{name}")
        cause = check_picture(data)
        if cause:
          counts[cause] += 1
          continue
        file = name.rsplit("/", 1)[-1]
        example = Example(("", caption(file, docstring)), (data,), f"{COLLECTION}/{file}", license_of(docstring))
        yield file, hashlib.sha256(data).hexdigest(), example
  except (OSError, EOFError, KeyError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{wheel} is not a readable scikit-image wheel ({error}). Remove it and run again.") from error


def described_files(module: str) -> Iterator[tuple[str, str]]:
  """(file, docstring) for each file that a function of the module loads as a picture."""
  for function in ast.parse(module).body:
    docstring = isinstance(function, ast.FunctionDef) and ast.get_docstring(function)
    if not docstring:
      continue
    for call in ast.walk(function):
      match call:
        case ast.Call(func=ast.Name(id="_load"), args=[ast.Constant(value=str(file)), *_]):
          yield file, docstring


def caption(file: str, docstring: str) -> str:
  """What a picture shows: the docstring's first sentence and those that go on describing it, or our own words."""
  if file in CAPTIONS:
    return CAPTIONS[file]
  body = re.split(r"\n\w[^\n]*\n-{3,}", docstring)[0]  # up to the first section, such as Returns
  first, *paragraphs = (" ".join(paragraph.split()) for paragraph in body.split("\n\n"))
  sentences = [s for paragraph in paragraphs for s in re.split(r"(?<=\.) ", paragraph) if _DESCRIBES.match(s)]
  return " ".join([first.rstrip(".") + ".", *sentences])


def license_of(docstring: str) -> str:
  """What a docstring says of the picture's rights; where it says nothing the package's licence holds."""
  if re.search(r"CC-?0|Creative\s+Commons\s+CC0", docstring):
    return "CC0-1.0"
  if re.search(r"public\s+domain", docstring, re.IGNORECASE):
    return "public domain"
  if re.search(r"No\s+known\s+copyright\s+restrictions", docstring):
    return "no known copyright restrictions"
  return "BSD-3-Clause"
