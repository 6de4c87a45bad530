import re

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.vqa import (
  exact_accuracy,
  ivqa_accuracy,
  normalized_answer,
  textvqa_accuracy,
  vizwiz_accuracy,
  vqa_accuracy,
)

PIECES = ["a", "The", "two", "none", "ten", "yes", "dont", "can't", "1,000", "3.5", "5.", "blue-green", "blue - green"]
PIECES += [
  "(red)",
  "what?",
  "it's",
  "\n",
  "\t",
  "he's",
  "u.s.",
  "left/right",
  "left / right",
  "&",
  ":",
  "_",
  "wouldn'tve",
]


def official_accuracy(answer: str, annotated: list[str], rules: str) -> float:
  """VQA's rules, written anew: marks, case, numbers, articles, contractions, and nine of ten annotators at a time.

  `rules` says what is cleaned: by "vqa" all, unless annotators agree; by "textvqa" all, after commas and question marks
  went and possessives were set apart; by "vizwiz" the answer alone.
  """
  marks = list(';/[]"{}()=+\\_-><@`,?!')
  numbers = {"none": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
  numbers |= {"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
  contracted = {"dont": "don't", "wouldn'tve": "wouldn't've"}

  def clean(text):
    out = text
    for mark in marks:
      if mark + " " in text or " " + mark in text or re.search(r"(\d)(,)(\d)", text) is not None:
        out = "".join(out.split(mark))
      else:
        out = " ".join(out.split(mark))
    out = re.sub(r"(?!<=\d)(\.)(?!\d)", "", out)
    kept = []
    for word in out.lower().split():
      word = str(numbers.get(word, word))
      if word not in ("a", "an", "the"):
        kept.append(contracted.get(word, word))
    return " ".join(kept)

  everything = [answer, *annotated]
  if rules == "textvqa":
    everything = [re.sub("'s", " 's", re.sub("[,?]", "", one.lower())).strip() for one in everything]
  strip = [one.replace("\n", " ").replace("\t", " ").strip() for one in everything]
  cleaned = {"vqa": 11 if len(set(strip[1:])) > 1 else 0, "textvqa": 11, "vizwiz": 1}[rules]
  strip[:cleaned] = [clean(one) for one in strip[:cleaned]]
  answer, annotated = strip[0], strip[1:]
  leave_one_out = []
  for left_out in range(len(annotated)):
    others = annotated[:left_out] + annotated[left_out + 1 :]
    leave_one_out.append(min(1.0, sum(other == answer for other in others) / 3))
  return sum(leave_one_out) / len(leave_one_out)


@pytest.mark.parametrize(
  ("rules", "accuracy"), [("vqa", vqa_accuracy), ("textvqa", textvqa_accuracy), ("vizwiz", vizwiz_accuracy)]
)
def test_accuracies_follow_the_official_rules(rules, accuracy):
  generator = np.random.default_rng(0)

  def drawn() -> str:
    return generator.choice([" ", ""]).join(generator.choice(PIECES, generator.integers(1, 4)))

  pool = [drawn() for _ in range(40)]
  answers, references = [], []
  for _ in range(500):
    base, agreeing = generator.choice(pool), generator.integers(0, 11)
    references.append([base] * agreeing + [str(one) for one in generator.choice(pool, 10 - agreeing)])
    answers.append(str(generator.choice([base, base.upper(), f"the {base} ", generator.choice(pool)])))
  score = accuracy(answers, references)
  expected = [official_accuracy(*pair, rules) for pair in zip(answers, references, strict=True)]
  np.testing.assert_allclose(score.per_example, expected, atol=1e-12)
  assert score.total == pytest.approx(np.mean(expected))
  assert 0.05 < score.total < 0.9  # the cases are neither all right nor all wrong


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_the_number_of_annotators_that_agree(agreeing, expected):
  """The closed form that VQA's paper gives for ten annotators."""
  others = [f"other {number}" for number in range(10 - agreeing)]
  assert vqa_accuracy(["cat"], [["cat"] * agreeing + others]).total == pytest.approx(expected)


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("The two  Dogs", "2 dogs"),
    ("dont", "don't"),
    ("yall'd've", "y'all'd've"),
    ("ow's'at", "'ow's'at"),
    ("somebody'd", "somebodyd"),  # as the official table has it
    ("wed", "wed"),
    ("1,000", "1000"),
    ("3.5 a.m.", "3.5 am"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
  ],
)
def test_normalized_answers(answer, expected):
  assert normalized_answer(answer) == expected


def test_where_annotators_agree_answers_are_compared_as_they_are():
  assert vqa_accuracy(["the cat"], [["cat"] * 10]).total == 0
  assert vqa_accuracy(["the cat"], [["cat"] * 9 + ["dog"]]).total == 1


def test_textvqa_cleans_answers_where_annotators_agree_too():
  assert textvqa_accuracy(["the cat"], [["Cat?"] * 10]).total == 1
  assert textvqa_accuracy(["1,000"], [["1000"] * 10]).total == 1
  assert textvqa_accuracy(["red?blue,green"], [["redbluegreen"] * 10]).total == 1
  assert textvqa_accuracy(["wendy's"], [["wendy 's"] * 10]).total == 1


def test_vizwiz_cleans_the_answer_alone():
  assert vizwiz_accuracy(["The Cat."], [["cat"] * 10]).total == 1
  assert vizwiz_accuracy(["cat\n"], [["\tcat "] * 9 + ["dog"]]).total == 1
  assert vizwiz_accuracy(["The Cat."], [["The Cat."] * 9 + ["dog"]]).total == 0


def test_ivqa_counts_half_for_one_annotator():
  answers = ["Spoon", "fork ", "knife.", "none"]
  references = [["spoon", "fork", "knife", "pan", "pot"], ["fork", "fork", "a", "b", "c"], ["knife"] * 5, ["pot"] * 5]
  np.testing.assert_array_equal(ivqa_accuracy(answers, references).per_example, [0.5, 1, 1, 0])


def test_generated_answers_are_right_or_wrong():
  np.testing.assert_array_equal(exact_accuracy(["Cat.", "a cat"], [["cat"], ["cat"]]).per_example, [1, 0])


def test_a_question_without_answers_is_named():
  with pytest.raises(UserError, match=r"Question 1 has no reference answer \(1 such\)"):
    vqa_accuracy(["a", "b"], [["a"], []])
