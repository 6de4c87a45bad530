import json
import pathlib

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.captions import bleu, bleu_of_words, cider, cider_of_words
from flamingo_jax.evaluation.metrics.words import words

RECORDED = json.loads((pathlib.Path(__file__).parent / "words.json").read_text("utf-8"))


def drawn_captions(seed: int, examples: int = 40) -> tuple[list[list[str]], list[list[list[str]]]]:
  """Captions and references of few words, so that n-grams meet; some are empty or short."""
  generator = np.random.default_rng(seed)
  vocabulary = np.array(
    ["a", "the", "man", "dog", "rides", "eats", "red", "big", "wave", "pizza", "on", "in", "park", "with"]
  )

  def caption(least: int) -> list[str]:
    return generator.choice(vocabulary, generator.integers(least, 12)).tolist()

  return [caption(0) for _ in range(examples)], [
    [caption(1) for _ in range(generator.integers(1, 6))] for _ in range(examples)
  ]


def joined(captions):
  return [" ".join(caption) for caption in captions]


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_pycocoevalcaps(seed):
  captions, references = drawn_captions(seed)
  scorer = CiderScorer(n=4, sigma=6.0)
  for caption, each in zip(joined(captions), map(joined, references), strict=True):
    scorer += (caption, each)
  total, per_example = scorer.compute_score()
  score = cider_of_words(captions, references)
  np.testing.assert_allclose(score.per_example, per_example, atol=1e-9)
  np.testing.assert_allclose(score.total, total, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_pycocoevalcaps(seed):
  captions, references = drawn_captions(seed)
  scorer = BleuScorer(n=4)
  for caption, each in zip(joined(captions), map(joined, references), strict=True):
    scorer += (caption, each)
  totals, per_example = scorer.compute_score(option="closest", verbose=0)
  scores = bleu_of_words(captions, references)
  np.testing.assert_allclose([score.total for score in scores], totals, atol=1e-9)
  np.testing.assert_allclose([score.per_example for score in scores], per_example, atol=1e-9)
  assert scores[3].of(np.arange(len(captions))) == pytest.approx(totals[3])


def test_words_are_cut_as_the_reference_cuts_them():
  """Recorded by record_words.py, which runs the reference."""
  wrong = [(text, cut, words(text)) for text, cut in RECORDED if words(text) != cut.split()]
  assert not wrong


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("A man can't ride his friend's well-known horse.", "a man ca n't ride his friend 's well-known horse"),
    ('Sign reads: "STOP!!" (red)', "sign reads stop !! -lrb- red -rrb-"),
    ("At 10:30 a.m. in the U.S., Mr. O'Neil paid $5.00", "at 10:30 a.m. in the u.s. mr. o'neil paid $ 5.00"),
    ("", ""),
    (" .,- ", ""),
  ],
)
def test_words_of(caption, expected):
  assert words(caption) == expected.split()


def test_captions_and_references_are_cut_alike():
  score = cider(["A man rides.", "Two dogs!"], [["a man rides", "x"], ["two dogs", "y z"]])
  same = cider_of_words(
    [["a", "man", "rides"], ["two", "dogs"]], [[["a", "man", "rides"], ["x"]], [["two", "dogs"], ["y", "z"]]]
  )
  np.testing.assert_array_equal(score.per_example, same.per_example)


def test_the_references_themselves_score_most():
  _, references = drawn_captions(0)
  single = [[each[0]] for each in references]
  long_enough = [place for place, [reference] in enumerate(single) if len(reference) >= 4]
  score = cider_of_words([each[0] for each in single], single)
  np.testing.assert_allclose(score.per_example[long_enough], 10)
  assert bleu([" ".join(each[0]) for each in single], [[" ".join(each[0])] for each in single])[
    0
  ].total == pytest.approx(1)


def test_bad_input_is_named():
  with pytest.raises(UserError, match="2 predictions for 1 references"):
    cider(["a", "b"], [["a"]])
  with pytest.raises(UserError, match=r"Example 1 has no reference caption \(1 such\)"):
    cider(["a", "b"], [["a"], []])
  with pytest.raises(UserError, match="no predictions"):
    bleu([], [])
