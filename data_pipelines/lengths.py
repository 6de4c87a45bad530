"""How many tokens each pair or document of a stream has, counted once and kept beside the shards."""

import hashlib
import io
import pathlib
import uuid
from collections.abc import Callable

import numpy as np

from data_pipelines.schema import parse
from data_pipelines.sequences import PAIR_MARKERS, TEXT_MARKERS, document_text, prompted
from data_pipelines.shards import Shards, write_durably
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError

RULES_VERSION = 2  # of what is counted; other rules count anew
CHUNK = 1024  # records whose texts are held and tokenized at once


def pair_lengths(shards: Shards, tokenizer: Tokenizer, prompt: str = "") -> np.ndarray:
  """Tokens of each pair's row before it is cut, int32 [records]; 0 where the record cannot be used.

  Without a prompt half of the captions get a space before them, which may change how many tokens they are: the larger
  number counts.

  They are kept under a hash of the prompt too. Raises as `counted_once` does.
  """
  return counted_once(shards, tokenizer, prompt, lambda: count_lengths(shards, tokenizer, prompt))


def document_lengths(shards: Shards, tokenizer: Tokenizer) -> np.ndarray:
  """Tokens of each document's row before it is cut, int32 [records]; 0 where the record cannot be used.

  Raises as `counted_once` does.
  """
  return counted_once(shards, tokenizer, " documents", lambda: count_documents(shards, tokenizer))


def counted_once(shards: Shards, tokenizer: Tokenizer, rule: str, count: Callable[[], np.ndarray]) -> np.ndarray:
  """Lengths that are kept as `lengths-<hash>.npy` beside the shards.

  The hash is of the shards' content, of the tokenizer and of the rules by which was counted. Where the file is missing,
  damaged or cannot be written, they are counted again.

  Args:
    shards: whose records are counted.
    tokenizer: what they are counted in.
    rule: which of the countings it is; no prompt begins with a space.
    count: the counting itself; raises UserError where a record cannot be read.

  Raises:
    UserError: they are not known yet, and a record cannot be read. Another number in its place would stay for good, or
      make another plan than there is on hosts, and in starts, that can read it.
  """
  key = f"{RULES_VERSION} {shards.content_hash} {tokenizer.fingerprint()}{rule}"
  path = shards.directory / f"lengths-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
  lengths = kept_lengths(path, len(shards))
  if lengths is None:
    try:
      lengths = count()
    except UserError as error:
      raise UserError(
        f"{shards.directory}: its rows cannot be planned before every record has been read once, to count its tokens.\n"
        f"{error}\nOr set pack=False for the stream, which skips what it cannot read."
      ) from error
    keep_lengths(path, lengths)
  return lengths


def count_lengths(shards: Shards, tokenizer: Tokenizer, prompt: str) -> np.ndarray:
  """The same, from the records themselves."""
  lengths = np.zeros(len(shards), np.int32)
  for start in range(0, len(shards), CHUNK):
    indices = range(start, min(start + CHUNK, len(shards)))
    texts = {index: both for index in indices if (both := usable_texts(shards, index, prompt))[1]}
    asked = tokenizer.encode_all([question for question, _ in texts.values()])
    for space in (" ",) if prompt else ("", " "):
      encoded = tokenizer.encode_all([space + caption for _, caption in texts.values()])
      for index, before, tokens in zip(texts, asked, encoded, strict=True):
        lengths[index] = max(lengths[index], len(before) + len(tokens) + PAIR_MARKERS)
  return lengths


def count_documents(shards: Shards, tokenizer: Tokenizer) -> np.ndarray:
  """`document_lengths`, from the records themselves."""
  lengths = np.zeros(len(shards), np.int32)
  for start in range(0, len(shards), CHUNK):
    indices = range(start, min(start + CHUNK, len(shards)))
    texts = {index: text for index in indices if (text := usable_document(shards, index))}
    for index, tokens in zip(texts, tokenizer.encode_all(list(texts.values())), strict=True):
      lengths[index] = len(tokens) + TEXT_MARKERS
  return lengths


def usable_document(shards: Shards, index: int) -> str:
  """The text of a record; empty where that is no Example. Raises UserError when it cannot be read."""
  record = shards[index]
  try:
    return document_text(parse(record).texts)
  except UserError:
    return ""


def usable_texts(shards: Shards, index: int, prompt: str) -> tuple[str, str]:
  """`prompted` of a record, empty where there is no medium, or no Example. Raises UserError when it cannot be read."""
  record = shards[index]
  try:
    example = parse(record)
  except UserError:
    return "", ""
  return prompted(example.texts, prompt) if example.media else ("", "")


def kept_lengths(path: pathlib.Path, records: int) -> np.ndarray | None:
  """What the file holds, or None where that is not a length for each record."""
  try:
    lengths = np.load(path, mmap_mode="r")  # which refuses a file that is shorter than it says
  except (OSError, ValueError, EOFError):
    return None
  fits = isinstance(lengths, np.ndarray) and lengths.dtype == np.int32 and lengths.shape == (records,)
  return np.array(lengths) if fits and (lengths >= 0).all() else None


def keep_lengths(path: pathlib.Path, lengths: np.ndarray) -> None:
  """Writes the file as a whole or not at all; shards may well lie where nobody may write."""
  partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
  file = io.BytesIO()
  np.save(file, lengths)
  try:
    write_durably(partial, file.getvalue())
    partial.replace(path)
  except OSError:
    partial.unlink(missing_ok=True)
