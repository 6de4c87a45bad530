"""CIDEr-D and BLEU of captions, equal to pycocoevalcap's."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.score import Indices, Score, check_lengths, mean_score
from flamingo_jax.evaluation.metrics.words import words

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words, of the penalty on length

Words = Sequence[str]
Counts = collections.Counter[tuple[str, ...]]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """CIDEr-D with the document frequencies of the references given, as captioning benchmarks report it (0 to 10).

  A set of one example scores 0: every n-gram of its references is in every document.

  Args:
    captions: one an example.
    references: of each example, one or more.
  """
  return cider_of_words(*_cut(captions, references))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Score, ...]:
  """BLEU 1 to 4; the totals are of the corpus, with the closest reference's length, the rest of single captions."""
  return bleu_of_words(*_cut(captions, references))


def cider_of_words(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
  """CIDEr-D of captions that are cut into words already."""
  _check(captions, references)
  counted = [[ngrams(reference) for reference in of_example] for of_example in references]
  frequency: Counts = collections.Counter(gram for each in counted for gram in set().union(*each))
  documents = math.log(len(references))

  def weighted(counts: Counts) -> tuple[list[dict], np.ndarray, int]:
    """TF-IDF by n-gram length, the norms of it, and how many bigrams there are (which is what stands for length)."""
    vectors: list[dict] = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
      vectors[len(gram) - 1][gram] = count * (documents - math.log(max(1, frequency[gram])))
    norms = np.array([math.sqrt(sum(value * value for value in vector.values())) for vector in vectors])
    return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

  def similarity(caption: tuple, reference: tuple) -> float:
    (vectors, norms, length), (others, other_norms, other_length) = caption, reference
    products = [
      sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in vector.items())
      for vector, other in zip(vectors, others, strict=True)
    ]
    scale = norms * other_norms
    cosines = np.divide(products, scale, out=np.zeros(LONGEST), where=scale != 0)
    return float(cosines.mean()) * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))

  scores = []
  for caption, of_example in zip(captions, counted, strict=True):
    vector = weighted(ngrams(caption))
    scores.append(10 * np.mean([similarity(vector, weighted(reference)) for reference in of_example]))
  return mean_score(scores)


def bleu_of_words(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[Score, ...]:
  """BLEU of captions that are cut into words already."""
  _check(captions, references)
  table = np.array([_matches(caption, each) for caption, each in zip(captions, references, strict=True)], np.float64)
  single = np.array([_bleu(row) for row in table])

  def recompute(order: int):
    def of(indices: Indices) -> float:
      return float(_bleu(table[indices].sum(axis=0))[order])

    return of

  corpus = _bleu(table.sum(axis=0))
  return tuple(Score(single[:, order], float(corpus[order]), recompute(order)) for order in range(LONGEST))


def ngrams(caption: Words) -> Counts:
  """How often each n-gram of 1 to 4 words occurs."""
  return collections.Counter(
    tuple(caption[start : start + length])
    for length in range(1, LONGEST + 1)
    for start in range(len(caption) - length + 1)
  )


def _matches(caption: Words, references: Sequence[Words]) -> list[int]:
  """Its length, the closest reference's, its n-grams by length, and how many of these a reference has."""
  most: Counts = collections.Counter()
  for reference in references:
    most |= ngrams(reference)
  length = len(caption)
  closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
  correct = [0] * LONGEST
  for gram, count in ngrams(caption).items():
    correct[len(gram) - 1] += min(count, most[gram])
  return [length, closest, *(max(0, length - order) for order in range(LONGEST)), *correct]


def _bleu(row: np.ndarray) -> np.ndarray:
  """BLEU 1 to 4 of summed matches, with the reference's small numbers that keep 0/0 away."""
  length, closest, guessed, correct = row[0], row[1], row[2 : 2 + LONGEST], row[2 + LONGEST :]
  precision = np.cumprod((correct + 1e-15) / (guessed + 1e-9)) ** (1 / np.arange(1, LONGEST + 1))
  ratio = (length + 1e-15) / (closest + 1e-9)
  return precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _cut(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[Words], list[list[Words]]]:
  return [words(caption) for caption in captions], [[words(one) for one in each] for each in references]


def _check(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
  check_lengths(captions, references)
  empty = [place for place, each in enumerate(references) if not each]
  if empty:
    raise UserError(f"Example {empty[0]} has no reference caption ({len(empty)} such): give each at least one.")
