"""What the trials of a sweep came to: read from their work directories, and set side by side."""

import dataclasses
import fnmatch
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from flamingo_jax.training.metrics import METRICS, complete_lines
from launch.sweep.settings import Changes, Trial, fields_of

SEED = "seed"  # trials that differ in nothing else are one setting, measured several times
CONFIDENCE = 0.95
STATES = DONE, FAILED, PRUNED, RUNNING, WAITING = "done", "failed", "pruned", "running", "waiting"


@dataclasses.dataclass(frozen=True)
class Result:
  """One trial as it stands.

  Attributes:
    trial: which.
    state: one of the words above.
    steps: done.
    outcome: the newest, also of a trial that is still running; None before there is one, or where it is not finite.
    others: what is shown beside it, by field, of the last step.
    why: of a failure.
  """

  trial: Trial
  state: str
  steps: int = 0
  outcome: float | None = None
  others: Mapping[str, float] = dataclasses.field(default_factory=dict)
  why: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
  """Trials that differ in their seed alone.

  Attributes:
    changes: what makes the setting, in the fields in which trials differ.
    results: of its trials.
  """

  changes: Changes
  results: tuple[Result, ...]

  @property
  def mean(self) -> float | None:
    """Of the outcomes of the trials that are done."""
    return self.summary(None)[0]

  @property
  def interval(self) -> float | None:
    """Half the width of its 95% interval; None for fewer than two outcomes."""
    return self.summary(None)[1]

  @property
  def failed(self) -> int:
    """How many of its trials did: a mean of those that are left says less than it seems to."""
    return sum(result.state == FAILED for result in self.results)

  def summary(self, field: str | None) -> tuple[float | None, float | None]:
    """(mean, half its 95% interval) of a field that is shown beside the outcome, or of the outcome itself."""
    done = [result for result in self.results if result.state == DONE]
    found = [result.outcome if field is None else result.others.get(field) for result in done]
    values = [value for value in found if value is not None]
    return (float(np.mean(values)) if values else None), half_interval(values)


def half_interval(values: Sequence[float]) -> float | None:
  """Half the width of the 95% confidence interval of a mean, by Student's t; None for fewer than two values."""
  if len(values) < 2:
    return None
  spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return spread * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


def points_of(lines: Sequence[Mapping], outcome: str) -> tuple[int, list[tuple[int, float]]]:
  """(the last step, (step, outcome) of every line that has a finite one) of the record of a run."""
  points = [(line["step"], value_of(line, outcome)) for line in lines]
  return (lines[-1]["step"] if lines else 0), [(step, value) for step, value in points if value is not None]


def read_lines(workdir: pathlib.Path) -> list[dict]:
  """The whole lines of a run's record; none before it has one. Raises UserError where one is damaged."""
  path = workdir / METRICS
  return [line for _, line in complete_lines(path)] if path.exists() else []


def value_of(line: Mapping, field: str) -> float | None:
  """A field of a line, or the mean of all that a * fits; None where there is none, or one is not finite."""
  values = [line[name] for name in names_of(line, field)]
  if not values or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
    return None
  return float(np.mean(values))


def names_of(line: Mapping, field: str) -> list[str]:
  """Those of a line that a field means."""
  return fnmatch.filter(line, field) if "*" in field else [name for name in (field,) if name in line]


def settings_of(results: Sequence[Result]) -> list[Setting]:
  """The settings of a sweep, in the order of their first trials."""
  fields = [field for field in fields_of(result.trial for result in results) if field != SEED]
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(repr([result.trial.value(field) for field in fields]), []).append(result)
  return [
    Setting(
      {field: group[0].trial.value(field) for field in fields},
      tuple(group),
    )
    for group in groups.values()
  ]


def ranked(settings: Sequence[Setting], best: str) -> list[Setting]:
  """The best first; then those of which a trial failed, however good the others are; those without an outcome last."""
  sign = 1 if best == "min" else -1
  return sorted(settings, key=lambda setting: (setting.mean is None, setting.failed > 0, sign * (setting.mean or 0.0)))


def importances(results: Sequence[Result], best: str) -> dict[str, float]:
  """How much each field decides whether a trial is among the best, shares of 1, by PED-ANOVA (Watanabe et al., 2023).

  Optuna's own implementation, also for lists of trials. Empty where there are too few trials, or they came to the same.
  """
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  done = [result for result in results if result.state == DONE and result.outcome is not None]
  fields = fields_of(result.trial for result in done)
  if len(done) < 4 or len({result.outcome for result in done}) == 1 or not fields:
    return {}
  spaces = {field: distribution([result.trial.value(field) for result in done]) for field in fields}
  study = optuna.create_study(direction="minimize" if best == "min" else "maximize")
  for result in done:
    values = {field: coded(result.trial.value(field), spaces[field]) for field in fields}
    study.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=result.outcome))
  evaluator = optuna.importance.PedAnovaImportanceEvaluator()
  found = optuna.importance.get_param_importances(study, evaluator=evaluator)
  return {field: float(share) for field, share in found.items() if math.isfinite(share)}


def distribution(values: Sequence):
  """The Optuna distribution that these values may have come from."""
  import optuna

  if not all(type(value) in (int, float) for value in values):
    return optuna.distributions.CategoricalDistribution(sorted({repr(value) for value in values}))
  low, high = float(min(values)), float(max(values))
  return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def coded(value: object, space) -> object:
  import optuna

  return repr(value) if isinstance(space, optuna.distributions.CategoricalDistribution) else float(value)
