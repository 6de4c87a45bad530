import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score, top_k_accuracy_score

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.ranking import (
  average_precision,
  mean_weighted_average_precision,
  ndcg,
  roc_auc,
  top_1_and_5_accuracy,
  top_k_accuracy,
)
from flamingo_jax.evaluation.metrics.score import Score, confidence_interval, mean_score


@pytest.fixture
def generator():
  return np.random.default_rng(0)


def test_roc_auc_is_scikit_learns(generator):
  for _ in range(20):
    scores, labels = generator.integers(0, 8, 50).astype(float), generator.random(50) < 0.3
    score = roc_auc(scores, labels)
    assert score.total == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert score.per_example[~labels].mean() == pytest.approx(score.total)
    drawn = generator.integers(0, 50, 50)
    assert score.of(drawn) == pytest.approx(roc_auc_score(labels[drawn], scores[drawn]), abs=1e-12)


def test_ndcg_is_scikit_learns(generator):
  for _ in range(20):
    scores, relevance = generator.normal(size=100), generator.choice([0, 0, 0.2, 0.5, 1], 100)
    expected = ndcg_score([relevance], [scores], k=np.count_nonzero(relevance), ignore_ties=True)
    assert ndcg([scores], [relevance]).total == pytest.approx(expected, abs=1e-12)


def test_top_k_accuracy_is_scikit_learns(generator):
  scores, labels = generator.normal(size=(60, 12)), generator.integers(0, 12, 60)
  expected = [top_k_accuracy_score(labels, scores, k=k, labels=range(12)) for k in (1, 5)]
  assert [top_k_accuracy(scores, labels, k).total for k in (1, 5)] == pytest.approx(expected)
  assert top_1_and_5_accuracy(scores, labels).total == pytest.approx(np.mean(expected))


def test_average_precision_is_scikit_learns(generator):
  for _ in range(20):
    scores, labels = generator.integers(0, 9, 40).astype(float), generator.random(40) < 0.4
    weights = generator.random(40) + 0.1
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert average_precision(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_mwap_follows_rareacts_script(generator):
  """Its rules, clip by clip and action by action, over scikit-learn's average precision."""
  actions = [("cut", "phone"), ("cut", "shirt"), ("wash", "phone"), ("hammer", "laptop")]
  classes = generator.integers(0, 4, 80)
  annotations = generator.integers(0, 5, 80)
  annotations[classes == 3] = 0  # no clip shows this action
  videos = generator.choice(list("abcdefgh"), 80)
  scores = generator.normal(size=(80, 4))
  precisions = []
  for column, (verb, noun) in enumerate(actions):
    positive, negative, hard = [], [], []
    for clip in range(80):
      other_verb, other_noun = actions[classes[clip]]
      if classes[clip] == column:
        (negative, positive, hard, hard, hard)[annotations[clip]].append(clip)
      elif annotations[clip] == 1:
        (hard if other_verb == verb or other_noun == noun else negative).append(clip)
    if positive:
      weights = [
        1 / sum(videos[other] == videos[clip] for other in group)
        for group in (positive, negative, hard)
        for clip in group
      ]
      clips = positive + negative + hard
      labels = [1] * len(positive) + [0] * (len(clips) - len(positive))
      precisions.append(average_precision_score(labels, scores[clips, column], sample_weight=weights))
  verbs, nouns = zip(*(actions[place] for place in classes), strict=True)
  score = mean_weighted_average_precision(scores, classes.tolist(), verbs, nouns, videos.tolist(), annotations.tolist())
  np.testing.assert_allclose(sorted(score.per_example), sorted(precisions), atol=1e-12)
  assert score.total == pytest.approx(np.mean(precisions)) and len(precisions) == 3


def test_ties_keep_the_candidates_order():
  np.testing.assert_array_equal(top_k_accuracy(np.zeros((2, 3)), np.array([0, 1])).per_example, [1, 0])


def test_what_has_no_metric_is_named():
  with pytest.raises(UserError, match="both classes"):
    roc_auc(np.zeros(3), np.ones(3, bool))
  with pytest.raises(UserError, match="Example 0 has no candidate of any relevance"):
    ndcg([np.arange(3.0)], [np.zeros(3)])
  with pytest.raises(UserError, match="Example 0 has 3 candidates, but relevance of 2"):
    ndcg([np.arange(3.0)], [np.ones(2)])
  with pytest.raises(UserError, match="No clip shows the action"):
    mean_weighted_average_precision(np.zeros((1, 1)), [0], ["cut"], ["egg"], ["a"], [0])


def test_the_interval_of_a_mean_is_the_normal_one(generator):
  """With 2,000 examples the percentile bootstrap comes near mean +- 1.96 standard errors."""
  values = generator.normal(3, 2, 2000)
  low, high = confidence_interval(mean_score(values), seed=1)
  error = 1.96 * values.std() / np.sqrt(2000)
  np.testing.assert_allclose([low, high], [values.mean() - error, values.mean() + error], atol=0.02)
  assert (low, high) == confidence_interval(mean_score(values), seed=1)
  assert (low, high) != confidence_interval(mean_score(values), seed=2)


def test_resamples_without_a_total_are_drawn_again():
  few = roc_auc(np.arange(6.0), np.array([0, 0, 0, 0, 0, 1]))
  low, high = confidence_interval(few, seed=0, resamples=200)
  assert low <= high == 1
  never = Score(np.zeros(3), 0.0, lambda _: float("nan"))
  assert np.isnan(confidence_interval(never, seed=0, resamples=10)).all()
