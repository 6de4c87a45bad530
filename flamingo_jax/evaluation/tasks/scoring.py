"""Each benchmark's metric of its examples and a model's predictions.

Predictions of open-ended tasks are texts; of close-ended tasks, the log-likelihoods of each example's candidates.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics import captions, ranking, vqa
from flamingo_jax.evaluation.metrics.score import Score
from flamingo_jax.evaluation.metrics.wordnet import WordNet
from flamingo_jax.evaluation.metrics.wups import next_qa_wups
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.evaluation.tasks.reading import annotation_file


@dataclasses.dataclass(frozen=True)
class Resources:
  """What metrics read besides examples.

  Attributes:
    folder: of the data set.
    wordnet: folder of WordNet's database, which only WUPS needs; empty: there is none.
  """

  folder: pathlib.Path
  wordnet: str = ""


Prediction = str | np.ndarray
Scorer = Callable[[Sequence[Example], Sequence[Prediction], Resources], Score]


def cider(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return captions.cider(predictions, _references(examples))


def vqa_accuracy(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return vqa.vqa_accuracy(predictions, _references(examples))


def textvqa_accuracy(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return vqa.textvqa_accuracy(predictions, _references(examples))


def vizwiz_accuracy(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return vqa.vizwiz_accuracy(predictions, _references(examples))


def ivqa_accuracy(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return vqa.ivqa_accuracy(predictions, _references(examples))


def exact_accuracy(examples: Sequence[Example], predictions: Sequence[str], _: Resources) -> Score:
  return vqa.exact_accuracy(predictions, _references(examples))


def wups(examples: Sequence[Example], predictions: Sequence[str], resources: Resources) -> Score:
  kinds = [example.kind for example in examples]
  return next_qa_wups(predictions, _references(examples), kinds, *open_words(resources))


def open_words(resources: Resources) -> tuple[WordNet, frozenset[str]]:
  """What WUPS reads besides examples: WordNet's database, and the data set's stop words.

  Raises:
    UserError: either is not there.
  """
  if not resources.wordnet:
    raise UserError(
      "WUPS needs WordNet's database: name its folder, such as /usr/share/wordnet of Debian's package wordnet-base."
    )
  path = annotation_file(resources.folder, "stopwords.txt", "github.com/doc-doc/NExT-OE")
  return WordNet(resources.wordnet), frozenset(path.read_text("utf-8").split())


def top_1(examples: Sequence[Example], predictions: Sequence[np.ndarray], _: Resources) -> Score:
  return ranking.top_k_accuracy(_table(examples, predictions), _labels(examples))


def top_1_and_5(examples: Sequence[Example], predictions: Sequence[np.ndarray], _: Resources) -> Score:
  return ranking.top_1_and_5_accuracy(_table(examples, predictions), _labels(examples))


def ndcg(examples: Sequence[Example], predictions: Sequence[np.ndarray], _: Resources) -> Score:
  return ranking.ndcg(predictions, [np.array(example.relevance) for example in examples])


def roc_auc(examples: Sequence[Example], predictions: Sequence[np.ndarray], _: Resources) -> Score:
  """By the log-likelihood of "yes" above that of "no"."""
  table = _table(examples, predictions)
  return ranking.roc_auc(table[:, 1] - table[:, 0], _labels(examples) == 1)


def mwap(examples: Sequence[Example], predictions: Sequence[np.ndarray], _: Resources) -> Score:
  clips = [example.clip for example in examples]
  return ranking.mean_weighted_average_precision(
    _table(examples, predictions),
    [example.label for example in examples],
    [clip.verb for clip in clips],
    [clip.noun for clip in clips],
    [clip.video for clip in clips],
    [clip.annotation for clip in clips],
  )


def _references(examples: Sequence[Example]) -> list[tuple[str, ...]]:
  return [example.references for example in examples]


def _labels(examples: Sequence[Example]) -> np.ndarray:
  hidden = [example.id for example in examples if example.label is None]
  if hidden:
    raise UserError(f"The right candidates of {len(hidden)} examples are kept back ({hidden[0]}): score another split.")
  return np.array([example.label for example in examples])


def _table(examples: Sequence[Example], predictions: Sequence[np.ndarray]) -> np.ndarray:
  """Log-likelihoods as a table; examples with fewer candidates have minus infinity for the rest."""
  wrong = [
    (example.id, len(scores), len(example.options))
    for example, scores in zip(examples, predictions, strict=True)
    if len(scores) != len(example.options)
  ]
  if wrong:
    name, given, wanted = wrong[0]
    raise UserError(f"Example {name} has {wanted} candidates, but {given} log-likelihoods ({len(wrong)} such).")
  table = np.full((len(examples), max(len(example.options) for example in examples)), -np.inf)
  for row, scores in zip(table, predictions, strict=True):
    row[: len(scores)] = scores
  return table
