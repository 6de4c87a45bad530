"""Accuracy of short answers: that of VQA and its kin with ten annotators, iVQA's with five, and plain equality."""

import re
import string
from collections.abc import Callable, Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.score import Score, check_lengths, mean_score

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # the official pattern means to spare a digit before it too, but does not

_Compared = Callable[[str, Sequence[str]], tuple[str, list[str]]]  # answer and references as a script compares them

# The contractions of the official script. It mends each where one apostrophe is missing.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
  contracted[:place] + contracted[place + 1 :]: contracted
  for contracted in _CONTRACTED.split()
  for place, letter in enumerate(contracted)
  if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """VQA accuracy: an answer counts min(agreeing / 3, 1), averaged over the sets that leave one annotator out.

  Answers are normalised as in the official script of VQA 2.0, that is: not at all where all annotators agree.

  Args:
    answers: one a question.
    references: the annotators' answers to each question, ten as a rule.
  """
  return _accuracy(answers, references, _compared_by_vqa)


def textvqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """VQA accuracy by TextVQA's evaluator: answers and references are always normalised, after a step of its own."""
  return _accuracy(answers, references, _compared_by_textvqa)


def vizwiz_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """VQA accuracy by VizWiz's script: answers are always normalised, references never."""
  return _accuracy(answers, references, _compared_by_vizwiz)


def ivqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """iVQA accuracy: an answer counts min(annotators who gave it / 2, 1)."""
  check_lengths(answers, references)
  _check_answered(references)
  return mean_score(
    [
      min(sum(plain_answer(answer) == plain_answer(one) for one in each) / 2, 1.0)
      for answer, each in zip(answers, references, strict=True)
    ]
  )


def exact_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
  """Top-1 accuracy of generated answers: 1 where one of the references is met (MSVDQA, MSRVTTQA)."""
  check_lengths(answers, references)
  _check_answered(references)
  return mean_score(
    [
      float(plain_answer(answer) in {plain_answer(one) for one in each})
      for answer, each in zip(answers, references, strict=True)
    ]
  )


def plain_answer(answer: str) -> str:
  """Lower case, single spaces, no punctuation around it: the video data sets' answers are such already."""
  return " ".join(answer.lower().split()).strip(string.punctuation + " ")


def normalized_answer(answer: str) -> str:
  """An answer as the official VQA script compares it."""
  return _words_and_digits(_without_punctuation(_on_one_line(answer)))


def _accuracy(answers: Sequence[str], references: Sequence[Sequence[str]], compared: _Compared) -> Score:
  check_lengths(answers, references)
  _check_answered(references)
  pairs = (compared(answer, each) for answer, each in zip(answers, references, strict=True))
  return mean_score([_leaving_one_out(answer, annotated) for answer, annotated in pairs])


def _compared_by_vqa(answer: str, annotated: Sequence[str]) -> tuple[str, list[str]]:
  lines = [_on_one_line(one) for one in annotated]
  if len(set(lines)) == 1:
    return _on_one_line(answer), lines
  return normalized_answer(answer), [normalized_answer(one) for one in annotated]


def _compared_by_textvqa(answer: str, annotated: Sequence[str]) -> tuple[str, list[str]]:
  return _textvqa_answer(answer), [_textvqa_answer(one) for one in annotated]


def _compared_by_vizwiz(answer: str, annotated: Sequence[str]) -> tuple[str, list[str]]:
  return normalized_answer(answer), [_on_one_line(one) for one in annotated]


def _textvqa_answer(text: str) -> str:
  return normalized_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def _leaving_one_out(answer: str, annotated: Sequence[str]) -> float:
  agreeing = annotated.count(answer)
  others = [agreeing - (one == answer) for one in annotated]
  return sum(min(count / 3, 1.0) for count in others) / len(others)


def _on_one_line(text: str) -> str:
  return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
  """A mark next to a space anywhere in the answer, or any if digits are grouped by commas, goes; else it is a space."""
  result = text
  for mark in _PUNCTUATION:
    goes = f"{mark} " in text or f" {mark}" in text or _DIGIT_COMMA_DIGIT.search(text)
    result = result.replace(mark, "" if goes else " ")
  return _FULL_STOP.sub("", result)


def _words_and_digits(text: str) -> str:
  numbered = (_DIGITS.get(word, word) for word in text.lower().split())
  return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def _check_answered(references: Sequence[Sequence[str]]) -> None:
  empty = [place for place, each in enumerate(references) if not each]
  if empty:
    raise UserError(
      f"Question {empty[0]} has no reference answer ({len(empty)} such): a split without answers cannot be scored here."
    )
