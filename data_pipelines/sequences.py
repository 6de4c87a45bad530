"""From tokenized pieces of text and media to one row of a batch: markers, windows, which token sees which medium.

The rules are the paper's (section 2.1 to 2.3, appendix A.3.1). A row never holds media objects, only which of the
record's media it needs: decoding comes after, and a medium that cannot be decoded is masked, not attended.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.ops.labels import text_weights


@dataclasses.dataclass(frozen=True)
class Row:
  """One row before padding; every array has the length of the text, at most the stream's L.

  Attributes:
    tokens: int32, with markers.
    loss_weights: float32; 0 on <BOS> and on media markers.
    media_index: int32, the media slot each token attends to; -1: none.
    media: which of the record's media fill slots 0, 1, ...
  """

  tokens: np.ndarray
  loss_weights: np.ndarray
  media_index: np.ndarray
  media: tuple[int, ...]


NOT_A_MARKER = -1
PAIR_MARKERS = 4  # tokens of a pair beside its caption


def pair_text(texts: Sequence[str]) -> str:
  """The caption of a pair, whichever side of its medium it stands on; may be empty."""
  return " ".join(text.strip() for text in texts).strip()


def pair_row(caption: Sequence[int], tokenizer: Tokenizer, length: int) -> Row:
  """`<BOS><image>caption<EOC><EOS>`; a caption too long is cut before its `<EOC>`, which then is missing."""
  tokens = [tokenizer.bos, tokenizer.image, *caption, tokenizer.end_of_chunk, tokenizer.eos][:length]
  marks = [NOT_A_MARKER] * len(tokens)
  marks[1] = 0
  return finish_row(tokens, marks, see_next=False)


def page_row(
  chunks: Sequence[Sequence[int]],
  tokenizer: Tokenizer,
  *,
  length: int,
  slots: int,
  start: float,
  see_next: bool,
) -> Row:
  """`<BOS>` and a window of an interleaved page, with its first `slots` media (paper, section 2.3 and A.3.1).

  Args:
    chunks: tokens of the text before, between and after the media: one more than there are media.
    tokenizer: gives the special tokens.
    length: L, of the window with its <BOS>.
    slots: N; media beyond the first N of the window are discarded with their markers.
    start: in [0, 1), where the window starts among all its possible places.
    see_next: whether tokens attend to the next medium rather than to the previous one.
  """
  tokens, marks = document(chunks, tokenizer)
  first = int(start * (max(len(tokens) - (length - 1), 0) + 1))
  tokens, marks = tokens[first : first + length - 1], marks[first : first + length - 1]
  tokens, marks = keep_media(tokens, marks, slots, tokenizer)
  return finish_row([tokenizer.bos, *tokens], [NOT_A_MARKER, *marks], see_next=see_next)


def document(chunks: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
  """A whole page as tokens, and for each token the medium it marks or NOT_A_MARKER.

  `<EOC>` stands before every image, the first too when text precedes it, and at the document's end.
  """
  tokens: list[int] = []
  marks: list[int] = []
  for medium, chunk in enumerate(chunks):
    tokens += chunk
    last = medium == len(chunks) - 1
    if tokens or last:
      tokens.append(tokenizer.end_of_chunk)
    marks += [NOT_A_MARKER] * (len(tokens) - len(marks))
    if not last:
      tokens.append(tokenizer.image)
      marks.append(medium)
  return tokens, marks


def keep_media(tokens: list[int], marks: list[int], slots: int, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
  """Drops the markers beyond the first `slots`, each with the `<EOC>` that it brought."""
  places = [place for place, mark in enumerate(marks) if mark != NOT_A_MARKER][slots:]
  dropped = set(places) | {place - 1 for place in places if place and tokens[place - 1] == tokenizer.end_of_chunk}
  kept = [place for place in range(len(tokens)) if place not in dropped]
  return [tokens[place] for place in kept], [marks[place] for place in kept]


def finish_row(tokens: Sequence[int], marks: Sequence[int], *, see_next: bool) -> Row:
  """Numbers the media by their place, and says what each token sees and whether it is learnt."""
  marker = np.asarray(marks) != NOT_A_MARKER
  weights = text_weights(marker, np.ones_like(marker))
  weights[0] = 0
  return Row(
    tokens=np.asarray(tokens, np.int32),
    loss_weights=weights,
    media_index=next_media(marker) if see_next else previous_media(marker),
    media=tuple(mark for mark in marks if mark != NOT_A_MARKER),
  )


def previous_media(marker: np.ndarray) -> np.ndarray:
  """The paper's phi: for each token the last medium at or before it; -1 before the first."""
  return np.cumsum(marker, dtype=np.int32) - 1


def next_media(marker: np.ndarray) -> np.ndarray:
  """The other phi of p_next: for each token the first medium at or after it; -1 after the last."""
  count = int(marker.sum())
  index = np.cumsum(marker, dtype=np.int32) - marker
  return np.where(index < count, index, -1).astype(np.int32)
