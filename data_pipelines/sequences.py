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
    loss_weights: float32; 0 on <BOS>, on media markers and on a pair's prompt.
    media_index: int32, the media slot each token attends to; -1: none.
    media: which of the record's media fill slots 0, 1, ...
  """

  tokens: np.ndarray
  loss_weights: np.ndarray
  media_index: np.ndarray
  media: tuple[int, ...]


PAIR_MARKERS = 4  # tokens of a pair beside its caption
TEXT_MARKERS = 2  # tokens of a document beside its text


QUESTION = "{}"  # in a prompt: where a pair's question stands


def pair_text(texts: Sequence[str]) -> str:
  """The caption of a pair, whichever side of its medium it stands on; may be empty."""
  return " ".join(text.strip() for text in texts).strip()


def prompted(texts: Sequence[str], prompt: str) -> tuple[str, str]:
  """What a pair is asked, and what is learnt of it.

  The latter is the caption; where the prompt asks the pair's own question, the text before its medium, it is the answer
  after it. It is empty where there is no caption, or no question or no answer.
  """
  if QUESTION not in prompt:
    return prompt, pair_text(texts)
  question, answer = texts[0].strip(), pair_text(texts[1:])
  return prompt.replace(QUESTION, question), answer if question else ""


def pair_row(caption: Sequence[int], tokenizer: Tokenizer, length: int, prompt: Sequence[int] = ()) -> Row:
  """`<BOS><image>prompt caption<EOC><EOS>`, where the prompt is not learnt.

  A caption too long is cut before its `<EOC>`, which then is missing.
  """
  tokens = [tokenizer.bos, tokenizer.image, *prompt, *caption, tokenizer.end_of_chunk, tokenizer.eos]
  row = make_row(tokens[:length], tokenizer, see_next=False)
  row.loss_weights[2 : 2 + len(prompt)] = 0
  return row


def document_text(texts: Sequence[str]) -> str:
  """All text of a record, media left out, as one document; may be empty."""
  return "\n".join(text.strip() for text in texts if text.strip())


def text_row(words: Sequence[int], tokenizer: Tokenizer, *, length: int, start: float) -> Row:
  """`<BOS>` and a window of a document with its `<EOS>`; all of it where it is no longer than the row.

  Args:
    words: tokens of the document.
    tokenizer: gives the special tokens.
    length: L, of the window with its <BOS>.
    start: in [0, 1), where the window starts among all its possible places.
  """
  tokens = [*words, tokenizer.eos]
  first = int(start * windows(tokens, length))
  return make_row([tokenizer.bos, *tokens[first : first + length - 1]], tokenizer, see_next=False)


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
  tokens = document(chunks, tokenizer)
  first = int(start * windows(tokens, length))
  passed = tokens[:first].count(tokenizer.image)
  row = make_row([tokenizer.bos, *tokens[first : first + length - 1]], tokenizer, see_next=see_next, passed=passed)
  return keep_media(row, slots, tokenizer)


def windows(tokens: Sequence[int], length: int) -> int:
  """How many windows a page or a document has that are `length` tokens long with their <BOS>."""
  return max(len(tokens) - (length - 1), 0) + 1


def document(chunks: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[int]:
  """A whole page as tokens.

  `<EOC>` stands before every image, the first too when text precedes it, and at the document's end.
  """
  tokens = list(chunks[0])
  for chunk in chunks[1:]:
    tokens += [tokenizer.end_of_chunk] * bool(tokens) + [tokenizer.image, *chunk]
  return [*tokens, tokenizer.end_of_chunk]


def make_row(tokens: Sequence[int], tokenizer: Tokenizer, *, see_next: bool, passed: int = 0) -> Row:
  """Numbers the media by their place, and says what each token sees and whether it is learnt.

  Args:
    tokens: from <BOS> on. No text encodes to the id of `<image>`, so each of these is a marker.
    tokenizer: gives that id.
    see_next: which phi.
    passed: how many of the record's media stand before these tokens.
  """
  row = np.asarray(tokens, np.int32)
  marker = row == tokenizer.image
  weights = text_weights(marker, np.ones_like(marker))
  weights[0] = 0
  return Row(
    tokens=row,
    loss_weights=weights,
    media_index=next_media(marker) if see_next else previous_media(marker),
    media=tuple(range(passed, passed + int(marker.sum()))),
  )


def keep_media(row: Row, slots: int, tokenizer: Tokenizer) -> Row:
  """Discards the media beyond the first `slots`, their markers, and the `<EOC>` that each of these brought.

  Text that saw one of them now sees none, as where a window cuts a marker off: it is not about the image before.
  """
  if len(row.media) <= slots:
    return row
  places = np.flatnonzero(row.tokens == tokenizer.image)[slots:]
  before = places - 1
  dropped = np.union1d(places, before[row.tokens[before] == tokenizer.end_of_chunk])
  return Row(
    tokens=np.delete(row.tokens, dropped),
    loss_weights=np.delete(row.loss_weights, dropped),
    media_index=np.delete(np.where(row.media_index < slots, row.media_index, -1), dropped),
    media=row.media[:slots],
  )


def previous_media(marker: np.ndarray) -> np.ndarray:
  """The paper's phi: for each token the last medium at or before it; -1 before the first."""
  return np.cumsum(marker, dtype=np.int32) - 1


def next_media(marker: np.ndarray) -> np.ndarray:
  """The other phi of p_next: for each token the first medium at or after it; -1 after the last."""
  count = int(marker.sum())
  index = np.cumsum(marker, dtype=np.int32) - marker
  return np.where(index < count, index, -1).astype(np.int32)
