"""What a person builds on the page, as a prompt. Nothing here knows the page, or trusts what a browser sends."""

import dataclasses
import pathlib
from collections.abc import Sequence

from flamingo_jax.errors import UserError

MOST_MEDIA = 33  # the paper's 32 shots and a query
MOST_CHARACTERS = 20_000  # of all texts together
FIELDS = dict(path=str, text=str, ends=bool)
MARKERS = ("<image>", "<EOC>")


@dataclasses.dataclass(frozen=True)
class Part:
  """A medium, or none, and the text that follows it.

  Attributes:
    path: of the medium's file; empty: there is none.
    text: as it was typed.
    ends: whether the text is the end of an example, which `<EOC>` closes.
  """

  path: str
  text: str
  ends: bool


def read_parts(value: object, folder: pathlib.Path) -> tuple[Part, ...]:
  """The parts of a prompt as the page sends them: a list of objects with FIELDS.

  Args:
    value: what came.
    folder: where uploads lie; no file outside it is ever opened.

  Raises:
    UserError: it is something else, names a file that was not uploaded, holds markers as text, is empty or too long.
  """
  if not isinstance(value, list) or not all(map(is_part, value)):
    raise UserError("What came from the page is not a prompt. Load the page again.")
  parts = tuple(Part(**{name: each[name] for name in FIELDS}) for each in value)
  if faults := list(part_faults(parts, folder)):
    raise UserError("\n".join(faults))
  return parts


def is_part(value: object) -> bool:
  return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in FIELDS.items())


def part_faults(parts: Sequence[Part], folder: pathlib.Path):
  media, length = sum(bool(part.path) for part in parts), sum(len(part.text) for part in parts)
  if not media and not any(part.text.strip() for part in parts):
    yield "The prompt is empty. Drop a picture, write some text, or both."
  if media > MOST_MEDIA:
    yield f"The prompt has {media} pictures and videos; it may have {MOST_MEDIA}. Remove some."
  if length > MOST_CHARACTERS:
    yield f"The prompt has {length:,} characters; it may have {MOST_CHARACTERS:,}. Shorten it."
  for number, part in enumerate(parts, 1):
    name = pathlib.PurePath(part.path).name
    if part.path and not is_upload(part.path, folder):
      yield f"Part {number}: {name} is no longer here. Remove it, and drop the file again."
    for marker in MARKERS:
      if marker in part.text:
        yield f"Part {number} has {marker} in its text. Parts bring their markers themselves; leave it out."


def is_upload(path: str, folder: pathlib.Path) -> bool:
  """Whether a path is a file below a folder, links followed."""
  try:
    file = pathlib.Path(path).resolve()
    return file.is_relative_to(folder.resolve()) and file.is_file()
  except (OSError, ValueError):  # no path can be like that
    return False


def prompt_text(parts: Sequence[Part]) -> str:
  """The prompt as `flamingo generate` takes it. The last part stays open: the model goes on there."""
  last = len(parts) - 1
  return "".join(
    f"{'<image>' if part.path else ''}{part.text}{'<EOC>' if part.ends and number < last else ''}"
    for number, part in enumerate(parts)
  )


def media_files(parts: Sequence[Part]) -> list[str]:
  """The files that its markers stand for."""
  return [part.path for part in parts if part.path]
