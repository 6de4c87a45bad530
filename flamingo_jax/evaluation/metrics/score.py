"""What a metric says of predictions, and how far chance could have moved it."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence, Sized

import numpy as np
from jaxtyping import Float64, Int

from flamingo_jax.errors import UserError

Indices = Int[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Score:
  """A metric of a set of examples, in the units of its reference implementation: times 100 it is the paper's figure.

  Attributes:
    per_example: one number an example (an action for mWAP), in the order given.
    total: of all examples; their mean unless the metric says otherwise.
    recompute: the total of a resample, given its indices; None: the mean of its per-example scores.
  """

  per_example: Float64[np.ndarray, "n"]
  total: float
  recompute: Callable[[Indices], float] | None = None

  def of(self, indices: Indices) -> float:
    """The total of a resample. CIDEr keeps the document frequencies of the whole set: it is a mean of its scores."""
    return self.recompute(indices) if self.recompute else float(self.per_example[indices].mean())


def mean_score(per_example: Sequence[float] | np.ndarray) -> Score:
  """The score whose total is the mean."""
  values = np.asarray(per_example, np.float64)
  if not values.size:
    raise UserError("There are no predictions to score: give at least one.")
  return Score(values, float(values.mean()))


def confidence_interval(score: Score, *, seed: int, resamples: int = 1000, level: float = 0.95) -> tuple[float, float]:
  """The percentile bootstrap interval of a score's total.

  Resamples for which the total does not exist (ROC AUC of one class) are drawn again; if one in two is such, the
  interval is not a number.

  Args:
    score: of the whole set.
    seed: same seed, same interval.
    resamples: how many sets of as many examples are drawn with replacement.
    level: the share of resamples between the ends.
  """
  generator = np.random.default_rng(seed)
  count = len(score.per_example)
  draws = (score.of(generator.integers(0, count, count)) for _ in range(2 * resamples))
  totals = list(itertools.islice((total for total in draws if not np.isnan(total)), resamples))
  if len(totals) < resamples:
    return float("nan"), float("nan")
  low, high = np.quantile(totals, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def check_lengths(predictions: Sized, references: Sized) -> None:
  """There are examples, and each has a prediction."""
  if len(predictions) != len(references):
    raise UserError(f"There are {len(predictions)} predictions for {len(references)} references: give one for each.")
  if not len(predictions):
    raise UserError("There are no predictions to score: give at least one.")
