"""Two evaluations against each other: which settings and examples they share, and whether a difference is chance."""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.ranking import roc_auc
from flamingo_jax.evaluation.metrics.score import Score, confidence_interval, mean_score

KEY = ("task", "split", "shots", "selection", "orders", "seed", "control")
MAY_VARY = ("control", "selection", "seed", "orders", "shots")
FIELDS = ("id", "prompt", "media", "references", "prediction")  # of every prediction
ROC_AUC, MWAP = "ROC AUC", "mWAP"  # the metrics that are no mean of their examples' scores
SEED = 0  # of the resamples


@dataclasses.dataclass(frozen=True)
class Finished:
  """A setting that has all its predictions.

  Attributes:
    name: for messages: where it is and what it is called.
    result: its object of scores.json.
    receipt: of its file of predictions.
    predictions: the lines of that file, one an example.

  Raises:
    UserError: a line lacks a field, an id stands twice, or scores and predictions are not of the same examples.
  """

  name: str
  result: dict
  receipt: dict
  predictions: list[dict]

  def __post_init__(self):
    for number, line in enumerate(self.predictions, 2):
      if lacking := [field for field in FIELDS if field not in line]:
        raise UserError(f"{self.name}, line {number}: lacks {', '.join(lacking)}. Delete the file and evaluate again.")
    [most] = collections.Counter(line["id"] for line in self.predictions).most_common(1) or [("", 0)]
    if most[1] > 1:
      raise UserError(
        f"{self.name}: the example {most[0]!r} has {most[1]} predictions; it needs one. Evaluate it again."
      )
    if self.own_scores is not None and len(self.own_scores) != len(self.predictions):
      raise UserError(
        f"{self.name}: scores.json has scores of {len(self.own_scores)} examples, but there are "
        f"{len(self.predictions)} predictions. Evaluate it again."
      )

  @functools.cached_property
  def places(self) -> dict[str, int]:
    """Where each example stands, by its id."""
    return {line["id"]: place for place, line in enumerate(self.predictions)}

  @property
  def own_scores(self) -> Float64[np.ndarray, "n"] | None:
    """The score of each example; None: there are none, or of groups of examples alone (mWAP: of actions)."""
    if self.result["score"] is None or self.result["metric"] == MWAP:
      return None
    return np.asarray(self.result["per_example"], np.float64)


@dataclasses.dataclass(frozen=True)
class Matching:
  """Settings of two evaluations that belong together.

  Attributes:
    pairs: an object of scores.json of either, in the order of the first.
    varied: the field in which all pairs differ; empty: they agree in all of KEY.
    alone: the names of the others, of either.
  """

  pairs: tuple[tuple[dict, dict], ...]
  varied: str
  alone: tuple[tuple[str, ...], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One setting in two evaluations; all differences are the second's minus the first's.

  Attributes:
    shared: the place in either of each example that both have, in the order of the first.
    alone: how many examples only the first has, and only the second.
    difference: of the scores over the shared examples; of those in scores.json if it cannot be had over these; None:
      there are no scores.
    interval: paired bootstrap of the difference; None where `notes` say why.
    notes: what must be known to read the two.
    changes: of the shared examples' own scores; None: there are none.
    differing: of the shared examples, those whose predictions differ.
  """

  shared: Int[np.ndarray, "n 2"]
  alone: tuple[int, int]
  difference: float | None
  interval: tuple[float, float] | None
  notes: tuple[str, ...]
  changes: Float64[np.ndarray, "n"] | None
  differing: Bool[np.ndarray, "n"]


def match_settings(first: Sequence[dict], second: Sequence[dict]) -> Matching:
  """Pairs settings that agree in all of KEY; if none do, those that agree in all but one field.

  That field is the first of MAY_VARY for which there are pairs. One task may stand twice: benchmarks of the same name
  are paired first, then the others, whatever they are called. Settings that cannot be told apart stay alone.

  Args:
    first: objects of scores.json.
    second: objects of another's.
  """
  for varied in ("", *MAY_VARY):
    fields = [field for field in KEY if field != varied]
    pairs = _paired(first, second, ["benchmark", *fields])
    pairs += _paired(*_unpaired(first, second, pairs), fields)
    if pairs:
      names = [setting["setting"] for setting in first]
      pairs.sort(key=lambda pair: names.index(pair[0]["setting"]))
      return Matching(tuple(pairs), varied, _names(*_unpaired(first, second, pairs)))
  return Matching((), "", _names(first, second))


def compare(first: Finished, second: Finished) -> Comparison:
  """What changed from the first to the second, and how far chance in the choice of examples could have moved that.

  The interval is a percentile bootstrap of 1,000 resamples at 95 %: each draws examples that both have, and takes the
  difference of the two scores over them, so that what makes an example hard for both moves neither end. ROC AUC is
  computed anew for each resample; for mWAP, which has one score an action, actions are drawn in place of examples.
  """
  shared = shared_places(first, second)
  alone = (len(first.predictions) - len(shared), len(second.predictions) - len(shared))
  both, notes = _resampled_together(first, second, shared, whole=not any(alone))
  interval = confidence_interval(both, seed=SEED) if both else None
  if interval and np.isnan(interval).any():
    interval, notes = None, [*notes, "Most resamples have examples of one class alone: no interval."]
  own, totals = (first.own_scores, second.own_scores), (first.result["score"], second.result["score"])
  said = [[each.predictions[place]["prediction"] for place in places] for each, places in _sides(first, second, shared)]
  return Comparison(
    shared=shared,
    alone=alone,
    difference=both.total if both else None if None in totals else totals[1] - totals[0],
    interval=interval,
    notes=(*notes, *_differing_receipts(first.receipt, second.receipt, whole=not any(alone))),
    changes=None if own[0] is None or own[1] is None else own[1][shared[:, 1]] - own[0][shared[:, 0]],
    differing=np.array([here != there for here, there in zip(*said, strict=True)], bool),
  )


def shared_places(first: Finished, second: Finished) -> Int[np.ndarray, "n 2"]:
  """Where the examples that both have stand in either, in the order of the first."""
  pairs = [(place, second.places[name]) for name, place in first.places.items() if name in second.places]
  return np.array(pairs, int).reshape(-1, 2)


def paired_difference(first: Score, second: Score) -> Score:
  """The second minus the first as a score of its own, whose resamples are the same examples of both.

  Args:
    first: of some examples.
    second: of the same, in the same order.
  """
  return Score(
    second.per_example - first.per_example,
    second.total - first.total,
    lambda indices: second.of(indices) - first.of(indices),
  )


def _resampled_together(
  first: Finished, second: Finished, shared: Int[np.ndarray, "n 2"], *, whole: bool
) -> tuple[Score | None, list[str]]:
  """The difference as a score, None if it cannot be resampled; and why not, or how it is."""
  metric = first.result["metric"]
  if None in (first.result["score"], second.result["score"]):
    return None, ["The right answers are kept back: there are predictions, but no scores."]
  if not len(shared):
    return None, ["No example is in both: the scores are of different examples."]
  if metric == MWAP:
    scores = [mean_score(each.result["per_example"]) for each in (first, second)]
    if not whole or len(scores[0].per_example) != len(scores[1].per_example):
      return None, ["mWAP is of all clips at once, and the two have different ones: no interval."]
    return paired_difference(*scores), ["mWAP has one score an action: the interval draws actions, not clips."]
  notes = [] if whole else [f"The difference is over the {len(shared):,} examples that both have, the scores over all."]
  if metric == "CIDEr" and not whole:
    notes.append("CIDEr weighs words by all references of an evaluation, so they do not weigh the same in the two.")
  if metric != ROC_AUC:
    means = (mean_score(each.own_scores[places]) for each, places in _sides(first, second, shared))
    return paired_difference(*means), notes
  if len({first.predictions[place]["label"] for place in shared[:, 0]}) < 2:
    return None, ["ROC AUC needs both classes, and the examples that both have are of one: no interval."]
  areas = (_area(each, places) for each, places in _sides(first, second, shared))
  return paired_difference(*areas), [*notes, "ROC AUC is no mean: it is computed anew for each resample."]


def _sides(first: Finished, second: Finished, shared: Int[np.ndarray, "n 2"]):
  """Either setting with the places of the shared examples in it."""
  return (first, shared[:, 0]), (second, shared[:, 1])


def _area(setting: Finished, places: Int[np.ndarray, "n"]) -> Score:
  """ROC AUC of some of the examples, by the likelihood of "yes" over that of "no" as in `tasks.scoring`."""
  lines = [setting.predictions[place] for place in places]
  margins = np.array([line["scores"][1] - line["scores"][0] for line in lines], np.float64)
  return roc_auc(margins, np.array([line["label"] == 1 for line in lines]))


def _differing_receipts(first: dict, second: dict, *, whole: bool) -> list[str]:
  """What was not the same when the two were made, beside the fields of KEY and the checkpoint."""
  notes = []
  if whole and first["split_hash"] != second["split_hash"]:
    notes.append("The ids are the same, but not what the examples hold: the data sets differ.")
  if first["support_hash"] != second["support_hash"]:
    notes.append("Shots are chosen from different support sets.")
  here, there = first["decoding"], second["decoding"]
  for name in sorted(here.keys() | there.keys()):
    if here.get(name) != there.get(name):
      notes.append(f"Decoding differs: {name} is {here.get(name)} in the first, {there.get(name)} in the second.")
  return notes


def _paired(first: Sequence[dict], second: Sequence[dict], fields: Sequence[str]) -> list[tuple[dict, dict]]:
  """Settings of both that agree in these fields."""
  here, there = _by_key(first, fields), _by_key(second, fields)
  return [(here[key], there[key]) for key in here if key in there]


def _by_key(settings: Sequence[dict], fields: Sequence[str]) -> dict[tuple, dict]:
  """Settings by these fields; those that share all of them are left out."""
  keys = [tuple(setting[field] for field in fields) for setting in settings]
  counts = collections.Counter(keys)
  return {key: setting for key, setting in zip(keys, settings, strict=True) if counts[key] == 1}


def _unpaired(
  first: Sequence[dict], second: Sequence[dict], pairs: Sequence[tuple[dict, dict]]
) -> tuple[list[dict], list[dict]]:
  """The settings of either that stand in no pair."""
  here, there = ({pair[side]["setting"] for pair in pairs} for side in (0, 1))
  return (
    [setting for setting in first if setting["setting"] not in here],
    [setting for setting in second if setting["setting"] not in there],
  )


def _names(first: Sequence[dict], second: Sequence[dict]) -> tuple[tuple[str, ...], tuple[str, ...]]:
  return tuple(setting["setting"] for setting in first), tuple(setting["setting"] for setting in second)
