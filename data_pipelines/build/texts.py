"""Text as it is kept: tidy lines without control characters; and which texts are worth learning from."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable

from flamingo_jax.errors import UserError

BREAK = "\n"
# Control characters that are no space: terminals and tokenizers stumble over them, and nobody sees them. Lone halves of
# a surrogate pair, which JSON can spell, are no text at all.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")
LANGUAGE_SAMPLE = 5000  # characters from which the language is told


@dataclasses.dataclass(frozen=True)
class TextRules:
  """Which texts are kept; all counts are of a document's texts together.

  Attributes:
    shortest: characters.
    longest: characters.
    fewest_words: words, as space parts them.
    languages: ISO 639-1 codes; none: any.
  """

  shortest: int = 1
  longest: int = 1_000_000
  fewest_words: int = 0
  languages: tuple[str, ...] = ()


def clean(text: str) -> str:
  """The text without control characters; a lone surrogate becomes U+FFFD."""
  return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def tidy(text: str) -> str:
  """Clean lines without space around them and without empty ones among them; runs of space of any kind become one."""
  lines = (" ".join(line.split()) for line in clean(text).split(BREAK))
  return BREAK.join(line for line in lines if line)


def check_text(text: str, rules: TextRules) -> str | None:
  """Why a text is to be dropped, or None: `empty_text`, `short_text`, `long_text` or `language`."""
  if not text:
    return "empty_text"
  if len(text) < rules.shortest or len(text.split()) < rules.fewest_words:
    return "short_text"
  if len(text) > rules.longest:
    return "long_text"
  if rules.languages and language_of(text) not in rules.languages:
    return "language"
  return None


def refuse_languages(languages: Iterable[str]) -> None:
  """Raises UserError when one is not among those that can be told."""
  known = {language for language, _ in _classifier().rank("")}
  if unknown := sorted(set(languages) - known):
    raise UserError(f"--languages: {', '.join(unknown)} cannot be told; it can be {', '.join(sorted(known))}.")


def language_of(text: str) -> str:
  """The likeliest language, as an ISO 639-1 code; always the same for the same text."""
  return _classifier().classify(text[:LANGUAGE_SAMPLE])[0]


@functools.cache
def _classifier():
  import py3langid  # here: its model takes a while to load, and most builds ask for no language

  return py3langid


def text_digest(texts: Iterable[str]) -> str:
  """SHA-256 of texts, in hex; the same for texts that differ in case and space alone."""
  return hashlib.sha256(" ".join(" ".join(texts).casefold().split()).encode()).hexdigest()
