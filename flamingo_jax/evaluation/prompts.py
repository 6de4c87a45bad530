"""Few-shot prompts as pieces, so that what a data set writes is never taken for a marker.

A prompt is a tuple of pieces: a medium, a text, or the end of a chunk. A text is text whatever it holds; a literal
`<image>` or `<EOC>` in a caption stays those letters. Whoever makes tokens of a prompt puts `<BOS>` first, gives each
medium the token `<image>`, each end of a chunk `<EOC>`, and looks for no markers inside a text.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Medium:
  """A picture or a film.

  Attributes:
    path: of the file.
    start: where the clip begins, in seconds; None: at the film's beginning.
    end: where it ends; None: at the film's end.
  """

  path: str
  start: float | None = None
  end: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class EndOfChunk:
  pass


Prompt = tuple[Medium | Text | EndOfChunk, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
  """An example in the form of its task: what the model is given, and what should follow.

  Attributes:
    given: the medium and the text before the answer; no space at its end.
    completion: the answer, with the space that parts it from what stands before; empty: it is not known.
  """

  given: Prompt
  completion: str


def assemble(shots: Sequence[Shot], query: Shot) -> Prompt:
  """The prompt for a query: each shot with its completion and `<EOC>`, then what the query gives (paper, figure 8)."""
  return tuple(piece for shot in shots for piece in completed(shot)) + query.given


def assemble_zero_shot(examples: Sequence[Shot], query: Shot) -> Prompt:
  """The prompt without shots: examples as text alone show the form of an answer (paper, section 4; two as a rule).

  `<BOS>Output: a<EOC>Output: b<EOC><image>Output:` for captions.
  """
  return assemble([Shot(without_media(example.given), example.completion) for example in examples], query)


def completed(shot: Shot) -> Prompt:
  """A shot with its completion, closed by the end of its chunk."""
  if not shot.completion.strip():
    raise UserError(f"An example without an answer cannot be a shot: {written(shot.given)}")
  *before, last = shot.given
  return (*before, Text(last.text + shot.completion), EndOfChunk())


def written(prompt: Prompt) -> str:
  """A prompt for people to read. A backslash stands before a marker that is only text, and before a backslash."""

  def piece_written(piece: Medium | Text | EndOfChunk) -> str:
    if isinstance(piece, Text):
      return re.sub(r"(<image>|<EOC>|\\)", r"\\\1", piece.text)
    return "<image>" if isinstance(piece, Medium) else "<EOC>"

  return "".join(map(piece_written, prompt))


def trimmed(generated: str, keywords: Sequence[str]) -> str:
  """An answer up to where the model goes on with the next example instead of ending the chunk (paper, section 4.4)."""
  ends = [generated.index(keyword) for keyword in keywords if keyword in generated]
  return generated[: min(ends, default=None)].strip()


def without_media(prompt: Prompt) -> Prompt:
  """The control that sees nothing: the same text, no media."""
  return tuple(piece for piece in prompt if not isinstance(piece, Medium))


def media_of(prompt: Prompt) -> tuple[Medium, ...]:
  return tuple(piece for piece in prompt if isinstance(piece, Medium))


def with_shuffled_media(prompt: Prompt, seed: int) -> Prompt:
  """The control that sees the wrong thing: the media of the prompt change places, and none keeps its own.

  Raises:
    UserError: that cannot be: the prompt has one medium, or one of them stands in more than half of the places.
  """
  places = [place for place, piece in enumerate(prompt) if isinstance(piece, Medium)]
  media = media_of(prompt)
  most = max((media.count(medium) for medium in media), default=0)
  if most == 0 or 2 * most > len(media):
    raise UserError(
      f"The media of a prompt with {len(media)} cannot be shuffled so that none keeps its place"
      f"{f' (one stands {most} times)' if most > 1 else ''}: take more shots."
    )
  # Equal media stand together, in random order otherwise; a shift by the most equal ones meets none of its own.
  rank = dict(zip(dict.fromkeys(media), np.random.default_rng(seed).permutation(len(set(media))), strict=True))
  order = sorted(range(len(media)), key=lambda place: rank[media[place]])
  pieces = list(prompt)
  for place, source in zip(order, np.roll(order, -most), strict=True):
    pieces[places[place]] = media[source]
  return tuple(pieces)


def with_shuffled_shots(prompt: Prompt, seed: int) -> Prompt:
  """The control of the order: the chunks before the query in another random order; the query stays last."""
  chunks, start = [], 0
  for place, piece in enumerate(prompt):
    if isinstance(piece, EndOfChunk):
      chunks.append(prompt[start : place + 1])
      start = place + 1
  order = np.random.default_rng(seed).permutation(len(chunks))
  return tuple(piece for place in order for piece in chunks[place]) + prompt[start:]
