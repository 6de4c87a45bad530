"""What every source is read as, and how its parts become the texts and media of an Example."""

import collections
import dataclasses
from collections.abc import Callable, Iterable

from data_pipelines.build.texts import BREAK, tidy


@dataclasses.dataclass(frozen=True)
class Medium:
  """An encoded picture or video, as it was found.

  Attributes:
    data: the file.
    address: where it was found: a URL, a path, or empty where it has none of its own.
    description: text that stands for it (an alt text); kept after it, and dropped with it.
    similarity: to its text, as the source says, if it says so.
  """

  data: bytes
  address: str = ""
  description: str = ""
  similarity: float | None = None


@dataclasses.dataclass(frozen=True)
class Lost:
  """A medium that cannot be had, and why."""

  cause: str
  address: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
  """A page, a captioned picture or a captioned video, before anything is judged.

  Attributes:
    parts: texts and media in reading order.
    name: of the document in its collection: a URL or a path.
    license: under what terms it may be used, if the source says so.
    clip: seconds of a video from which and up to which it counts; None: to its end.
  """

  parts: tuple["str | Medium | Lost", ...]
  name: str
  license: str = ""
  clip: tuple[float, float | None] = (0.0, None)


@dataclasses.dataclass(frozen=True)
class Fault:
  """A document that cannot be read: its name, why, and what was found there, for people."""

  cause: str
  name: str
  detail: str = ""


def judge_parts(
  parts: Iterable["str | Medium | Lost"], judge: Callable[[Medium], str | None], counts: collections.Counter
) -> list["str | Medium"]:
  """The parts without the media that are lost or that `judge` has a cause against; `counts` grows by the causes."""
  kept: list[str | Medium] = []
  for part in parts:
    if not isinstance(part, str):
      cause = part.cause if isinstance(part, Lost) else judge(part)
      if cause:
        counts[cause] += 1
        continue
    kept.append(part)
  return kept


def interleave(parts: Iterable["str | Medium"]) -> tuple[tuple[str, ...], tuple[Medium, ...]]:
  """(texts, media) of an Example: one text more than media, tidy; a description stands on a line after its medium."""
  texts, media = [[]], []
  for part in parts:
    if isinstance(part, str):
      texts[-1].append(part)
    else:
      media.append(part)
      texts.append([part.description, BREAK])
  return tuple(tidy("".join(pieces)) for pieces in texts), tuple(media)


def adjacent_media(texts: tuple[str, ...]) -> int:
  """How many media have no text between them and the next one: no token attends to them."""
  return texts[1:-1].count("")
