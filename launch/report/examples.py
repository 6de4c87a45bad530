"""One example of an evaluation as its pages show it: the prompt with its pictures, what was said, what is right."""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines.clips import read_clip
from data_pipelines.media import MediaError, read_image
from flamingo_jax.evaluation.tasks.reading import VIDEO_SUFFIXES
from launch.report.page import Piece, picture

QUERY_SIDE, SHOT_SIDE = 224, 112  # of pictures on the page, pixels
MOST_SHOTS = 8  # whose pictures stand in a page; the prompt's text is always whole
MOST_CANDIDATES = 5
KEPT_PICTURES = 512  # many examples are asked after the same shots
UNNAMED = ("a medium", None, None)  # where a damaged line names fewer media than its prompt has
MARKER = re.compile(r"\\(<image>|<EOC>|\\)|(<image>|<EOC>)")


@dataclasses.dataclass(frozen=True)
class Thumbnail:
  """A medium of a prompt, small.

  Attributes:
    name: of its file, and of a clip the seconds.
    source: a data: URI; empty: it cannot be shown.
    fault: why not.
    film: whether this is one frame out of many.
  """

  name: str
  source: str
  fault: str = ""
  film: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A part of a prompt that ends with `<EOC>`: a shot, or at the end the query."""

  media: tuple[Thumbnail, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class ShownPrompt:
  """A prompt for people to look at.

  Attributes:
    pieces: the whole text, its markers apart.
    unseen: how many shots stand before those whose pictures are shown.
    shots: the last ones.
    query: what is asked.
    orders: of how many orders of the shots this is the first.
  """

  pieces: tuple[Piece, ...]
  unseen: int
  shots: tuple[Chunk, ...]
  query: Chunk
  orders: int


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One of the answers that were ranked: its place from 1, its log-likelihood, whether it is the example's label."""

  place: int
  text: str
  score: float
  is_label: bool


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a model made of a prompt.

  Attributes:
    prediction: what is scored.
    raw: all that was written; empty: it is the prediction, or candidates were ranked.
    candidates: the best of those that were ranked, and the label.
    of: how many were ranked.
    score: the example's own; None: it has none.
  """

  prediction: str
  raw: str
  candidates: tuple[Candidate, ...]
  of: int
  score: float | None


def shown_prompt(line: dict) -> ShownPrompt:
  """The prompt of a line of predictions, with its pictures where their files still are."""
  pieces = tuple(prompt_pieces(line["prompt"]))
  *shots, (asked, text) = prompt_chunks(pieces, line["media"])
  seen = shots[-MOST_SHOTS:]
  return ShownPrompt(
    pieces=pieces,
    unseen=len(shots) - len(seen),
    shots=tuple(Chunk(tuple(thumbnail(medium, SHOT_SIDE) for medium in media), words) for media, words in seen),
    query=Chunk(tuple(thumbnail(medium, QUERY_SIDE) for medium in asked), text),
    orders=len(line.get("orders", [0])),
  )


def prompt_pieces(prompt: str) -> Iterator[Piece]:
  """Reads what `prompts.written` wrote: markers, and text whose backslashes are undone."""
  text, end = "", 0
  for found in MARKER.finditer(prompt):
    text += prompt[end : found.start()] + (found[1] or "")
    end = found.end()
    if found[2]:
      if text:
        yield Piece(text, special=False)
      yield Piece(found[2], special=True)
      text = ""
  if text + prompt[end:]:
    yield Piece(text + prompt[end:], special=False)


def prompt_chunks(pieces: Sequence[Piece], media: Sequence[list]) -> Iterator[tuple[list, str]]:
  """The media and the text of each chunk, without markers; the last one is the query's."""
  remaining, own, text = iter(media), [], ""
  for piece in pieces:
    if not piece.special:
      text += piece.text
    elif piece.text == "<image>":
      own.append(next(remaining, UNNAMED))
    else:
      yield own, text
      own, text = [], ""
  yield own, text


def thumbnail(medium: Sequence, side: int) -> Thumbnail:
  """A picture, or the middle frame of a clip; of a file that cannot be shown, why."""
  path, start, end = medium
  film = pathlib.PurePath(path).suffix.lower() in VIDEO_SUFFIXES
  name = pathlib.PurePath(path).name
  if start is not None or end is not None:
    name += f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"
  source, fault = embedded(path, start or 0.0, np.inf if end is None else end, film, side)
  return Thumbnail(name, source, fault, film)


@functools.lru_cache(KEPT_PICTURES)
def embedded(path: str, start: float, end: float, film: bool, side: int) -> tuple[str, str]:
  """A medium as a data: URI, or why there is none."""
  try:
    return picture(middle_frame(pathlib.Path(path), start, end, film, side), side), ""
  except OSError as error:
    return "", error.strerror or "cannot be read"
  except MediaError as error:
    return "", error.cause.replace("_", " ")


def middle_frame(path: pathlib.Path, start: float, end: float, film: bool, side: int) -> UInt8[np.ndarray, "H W 3"]:
  if not path.is_file():  # nor is it a device, which might never end
    raise FileNotFoundError(2, "the file is not there")
  if not film:
    return read_image(path.read_bytes(), side)
  [frame] = read_clip(path.read_bytes(), side, frames=1, per_second=0.0, span=(start, end), start=0.0)
  return frame


def answer(line: dict, score: float | None) -> Answer:
  """What a line of predictions says the model answered."""
  raw, options = line.get("raw", ""), line.get("options", [])
  return Answer(
    prediction=line["prediction"],
    raw="" if raw.strip() == line["prediction"] else raw,
    candidates=best_candidates(options, line["scores"], line["label"]) if options else (),
    of=len(options),
    score=None if score is None else float(score),
  )


def best_candidates(options: Sequence[str], scores: Sequence[float], label: int | None) -> tuple[Candidate, ...]:
  """The likeliest candidates, the best first, and the label wherever it stands."""
  order = sorted(range(len(options)), key=lambda place: -scores[place])
  ranked = [Candidate(rank, options[place], scores[place], place == label) for rank, place in enumerate(order, 1)]
  return tuple(each for each in ranked if each.place <= MOST_CANDIDATES or each.is_label)


def counted(references: Sequence[str]) -> list[tuple[str, int]]:
  """References with how often each was given, the most frequent first."""
  return collections.Counter(references).most_common()
