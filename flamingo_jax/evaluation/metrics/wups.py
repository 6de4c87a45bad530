"""WUPS of open-ended answers, as NextQA's script has it: words that mean nearly the same count in part."""

from collections.abc import Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.score import Score, check_lengths, mean_score
from flamingo_jax.evaluation.metrics.wordnet import WordNet, wu_palmer
from flamingo_jax.evaluation.metrics.words import words

COUNTED_TYPES = ("DC", "DB")  # counts, and yes or no: only the very answer will do


def next_qa_wups(
  answers: Sequence[str],
  references: Sequence[Sequence[str]],
  types: Sequence[str],
  wordnet: WordNet,
  stop_words: frozenset[str],
) -> Score:
  """NextQA's WUPS at threshold 0: the best of an answer's references; counts and yes/no must be the same.

  Before they are compared, words become their base forms and stop words go. The official script asks a part-of-speech
  tagger for the part of speech; here it is the first of noun, verb, adjective and adverb that WordNet has.

  Args:
    answers: one a question.
    references: of each question, one or two.
    types: of each question: CW, CH, TN, TP, TC, DL, DO, DC or DB.
    wordnet: the database.
    stop_words: the data set's own list.
  """
  check_lengths(answers, references)
  check_lengths(types, references)
  scores = []
  for place, (answer, each, kind) in enumerate(zip(answers, references, types, strict=True)):
    if not each:
      raise UserError(f"Question {place} has no reference answer: give it at least one.")
    given = content_words(answer, wordnet, stop_words)
    wanted = [content_words(reference, wordnet, stop_words) for reference in each]
    if kind in COUNTED_TYPES:
      scores.append(float(given in wanted))
    else:
      scores.append(max(wups(given, reference, wordnet) for reference in wanted))
  return mean_score(scores)


def content_words(sentence: str, wordnet: WordNet, stop_words: frozenset[str]) -> list[str]:
  """Base forms of a sentence's words, without stop words."""
  lemmas = [_base_form(word, wordnet) for word in words(sentence)]
  return [lemma for lemma in lemmas if lemma not in stop_words]


def wups(first: Sequence[str], second: Sequence[str], wordnet: WordNet, threshold: float = 0.0) -> float:
  """The lesser of both directions' products of best similarities; words that are like none of the others are passed.

  Args:
    first: words.
    second: words.
    wordnet: the database.
    threshold: similarities below it count a tenth.
  """

  def similarity(word: str, other: str) -> float:
    if word == other:
      return 1.0
    senses, others = wordnet.senses(word), wordnet.senses(other)
    if not senses or not others:
      return 0.0
    value = wu_palmer(senses[0], others[0])
    return value if value >= threshold else 0.1 * value

  def one_way(these: Sequence[str], those: Sequence[str]) -> float:
    product, seen = 1.0, False
    for word in these:
      best = max((similarity(word, other) for other in those), default=0.0)
      if best > 0:
        product, seen = product * best, True
    return product if seen else 0.0

  return min(one_way(first, second), one_way(second, first))


def _base_form(word: str, wordnet: WordNet) -> str:
  """The shortest form that the first part of speech has, as NLTK's lemmatizer chooses."""
  found = (wordnet.base_forms(word, part) for part in ("n", "v", "a", "r"))
  return min(next((forms for forms in found if forms), [word]), key=len)
