"""METEOR of captions by NLTK: words match as they are, by their stem, or as synonyms in WordNet.

This is METEOR of 2007 (Lavie and Agarwal). Version 1.5, which COCO caption evaluation runs in Java, also has tables of
paraphrases and tuned weights: its figures are others.
"""

import dataclasses
from collections.abc import Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.score import Score, check_lengths, mean_score
from flamingo_jax.evaluation.metrics.wordnet import WordNet
from flamingo_jax.evaluation.metrics.words import words


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]], wordnet: WordNet) -> Score:
  """METEOR, of several references the best; 0 to 1.

  Args:
    captions: one an example.
    references: of each example, one or more.
    wordnet: the database.

  Raises:
    UserError: NLTK is not installed.
  """
  try:
    from nltk.translate.meteor_score import meteor_score
  except ImportError as error:
    raise UserError("METEOR needs nltk: pip install 'flamingo_jax[meteor]'.") from error
  check_lengths(captions, references)
  synonyms = _Synonyms(wordnet)
  return mean_score(
    [
      meteor_score([words(reference) for reference in each], words(caption), wordnet=synonyms)
      for caption, each in zip(captions, references, strict=True)
    ]
  )


@dataclasses.dataclass(frozen=True)
class _Synonyms:
  """What NLTK asks of a WordNet reader: synsets(word), each with lemmas(), each with name()."""

  wordnet: WordNet

  def synsets(self, word: str) -> list["_Synset"]:
    return [_Synset(sense.words) for sense in self.wordnet.senses(word)]


@dataclasses.dataclass(frozen=True)
class _Synset:
  words: tuple[str, ...]

  def lemmas(self) -> list["_Lemma"]:
    return [_Lemma(word) for word in self.words]


@dataclasses.dataclass(frozen=True)
class _Lemma:
  word: str

  def name(self) -> str:
    return self.word
