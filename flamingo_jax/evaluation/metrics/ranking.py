"""Metrics of candidates' scores: accuracy, NDCG, ROC AUC and RareAct's mWAP."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.score import Indices, Score, check_lengths, mean_score


def top_k_accuracy(scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"], k: int = 1) -> Score:
  """Is the right candidate among the k best? Candidates of the same score stand in their own order.

  Candidates may be fewer in some rows: give the missing ones minus infinity.
  """
  check_lengths(scores, labels)
  best = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
  return mean_score((best == np.asarray(labels)[:, None]).any(axis=1))


def top_1_and_5_accuracy(scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"]) -> Score:
  """The mean of top-1 and top-5 accuracy, as Kinetics700 is reported."""
  return mean_score((top_k_accuracy(scores, labels).per_example + top_k_accuracy(scores, labels, 5).per_example) / 2)


def ndcg(scores: Sequence[Float[np.ndarray, "C"]], relevance: Sequence[Float[np.ndarray, "C"]]) -> Score:
  """VisDial's NDCG: over as many of the best candidates as have any relevance; ties in their own order.

  Raises:
    UserError: candidates and relevance differ in number, or nothing is relevant.
  """
  check_lengths(scores, relevance)
  return mean_score([_one_ndcg(place, *pair) for place, pair in enumerate(zip(scores, relevance, strict=True))])


def roc_auc(scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]) -> Score:
  """Area under the ROC curve; an example's own score is the share of the other class that it is ranked right against.

  The total is the mean of the positives' own scores, and equally of the negatives'; a tie counts one half.
  """
  check_lengths(scores, labels)
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
  if labels.all() or not labels.any():
    raise UserError("ROC AUC needs examples of both classes, but all have the same label.")
  placements = _placements(scores, labels)

  def recompute(indices: Indices) -> float:
    drawn = labels[indices]
    if drawn.all() or not drawn.any():
      return float("nan")
    return float(_placements(scores[indices], drawn)[drawn].mean())

  return Score(placements, float(placements[labels].mean()), recompute)


def mean_weighted_average_precision(
  scores: Float[np.ndarray, "n C"],
  classes: Sequence[int],
  verbs: Sequence[str] | np.ndarray,
  nouns: Sequence[str] | np.ndarray,
  videos: Sequence[str] | np.ndarray,
  annotations: Sequence[int] | np.ndarray,
) -> Score:
  """RareAct's mWAP, as its own script has it: average precision of each action, clips weighing 1 / their video's clips.

  An action's negatives are the clips annotated as not showing it, and every clip that shows another action. Its score
  is one of `per_example`; actions that no clip shows are left out.

  Args:
    scores: of each clip (a row of rareact.csv) for each action.
    classes: the column of the action that the clip is annotated for.
    verbs: of that action.
    nouns: of that action.
    videos: which video the clip is of.
    annotations: 1: shows the action; 0: does not; 2, 3, 4: something near it.
  """
  check_lengths(scores, annotations)
  scores, annotations = np.asarray(scores, np.float64), np.asarray(annotations)
  verbs, nouns, videos = np.asarray(verbs), np.asarray(nouns), np.asarray(videos)
  positive = annotations == 1
  precisions = []
  for action in sorted(set(zip(verbs.tolist(), nouns.tolist(), classes, strict=True))):
    verb, noun, column = action
    own = (verbs == verb) & (nouns == noun)
    if not (own & positive).any():
      continue
    half = (verbs == verb) ^ (nouns == noun)
    groups = [
      own & positive,
      own & (annotations == 0) | positive & (verbs != verb) & (nouns != noun),
      own & (annotations > 1) | positive & half,
    ]
    rows = np.concatenate([np.flatnonzero(group) for group in groups])
    weights = np.concatenate([_weights(videos[group]) for group in groups])
    precisions.append(average_precision(scores[rows, column], np.arange(len(rows)) < groups[0].sum(), weights))
  if not precisions:
    raise UserError("No clip shows the action it is annotated for (annotation 1): mWAP is of such clips.")
  return mean_score(precisions)


def average_precision(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "n"]
) -> float:
  """The sum over thresholds of precision times the recall gained there."""
  order = np.argsort(-scores, kind="stable")
  scores, hits, weights = scores[order], (labels * weights)[order], weights[order]
  thresholds = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
  found = np.cumsum(hits)[thresholds]
  precision = found / np.cumsum(weights)[thresholds]
  return float(np.sum(np.diff(found, prepend=0.0) * precision) / found[-1])


def _one_ndcg(place: int, scores: Float[np.ndarray, "C"], relevance: Float[np.ndarray, "C"]) -> float:
  scores, relevance = np.asarray(scores), np.asarray(relevance, np.float64)
  if scores.shape != relevance.shape:
    raise UserError(f"Example {place} has {scores.size} candidates, but relevance of {relevance.size}.")
  relevant = np.count_nonzero(relevance)
  if not relevant:
    raise UserError(f"Example {place} has no candidate of any relevance: NDCG does not exist.")
  discounts = 1 / np.log2(np.arange(relevant) + 2)
  ranked = relevance[np.argsort(-scores, kind="stable")][:relevant]
  ideal = np.sort(relevance)[::-1][:relevant]
  return float(ranked @ discounts / (ideal @ discounts))


def _placements(scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  """Of each example the share of the other class on its right side."""
  ranks = _ranks(scores)
  within = np.empty_like(ranks)
  within[labels], within[~labels] = _ranks(scores[labels]), _ranks(scores[~labels])
  below = ranks - within  # how many of the other class score less, ties by half
  return np.where(labels, below / (~labels).sum(), 1 - below / labels.sum())


def _weights(videos: np.ndarray) -> Float[np.ndarray, "n"]:
  _, inverse, counts = np.unique(videos, return_inverse=True, return_counts=True)
  return 1 / counts[inverse]


def _ranks(scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  """Ranks from 1, the lowest first; equal scores share the mean of theirs."""
  _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
