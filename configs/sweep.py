"""What a sweep is made of. A sweep file is Python with get_sweep(), which returns `trials(...)` or `study(...)`.

Changes are dicts from a field of the config, as `optimizer.learning_rate`, to its value.
"""

import itertools
import random as randomness
from collections.abc import Mapping, Sequence

Changes = dict[str, object]


def grid(fields: Mapping[str, Sequence]) -> list[Changes]:
  """Every combination of the values of all fields."""
  return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


def zipped(fields: Mapping[str, Sequence]) -> list[Changes]:
  """The first values of all fields, then the second ones, ...; all fields have the same number."""
  return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def random(space: Mapping[str, dict], count: int, seed: int = 0) -> list[Changes]:
  """So many draws from a space of `uniform`, `log_uniform`, `whole` and `choice`; the same ones for the same seed."""
  draws = randomness.Random(seed)
  return [{field: drawn(values, draws) for field, values in space.items()} for _ in range(count)]


def each_with(changes: Sequence[Changes], others: Sequence[Changes]) -> list[Changes]:
  """Every one of the changes together with every one of the others."""
  return [{**first, **second} for first, second in itertools.product(changes, others)]


def seeds(count: int) -> list[Changes]:
  """For `each_with`: every trial so many times, each with a seed of its own."""
  return grid({"seed": range(count)})


def uniform(low: float, high: float) -> dict:
  """Any number from low to high."""
  return dict(kind="uniform", low=low, high=high)


def log_uniform(low: float, high: float) -> dict:
  """The same, where factors count: as many from 1 to 10 as from 10 to 100."""
  return dict(kind="log_uniform", low=low, high=high)


def whole(low: int, high: int) -> dict:
  """A whole number from low to high, both included."""
  return dict(kind="whole", low=low, high=high)


def choice(*values) -> dict:
  """One of these."""
  return dict(kind="choice", values=values)


def drawn(space: dict, draws: randomness.Random) -> object:
  """One value of a field's space."""
  if space["kind"] == "choice":
    return draws.choice(space["values"])
  low, high = space["low"], space["high"]
  if space["kind"] == "whole":
    return draws.randint(low, high)
  if space["kind"] == "uniform":
    return draws.uniform(low, high)
  return low * (high / low) ** draws.random()


def trials(config: str, changes: Sequence[Changes], outcome: str, best: str = "min", also: Sequence[str] = ()) -> dict:
  """A list of trials.

  Args:
    config: the file that is changed.
    changes: of each trial.
    outcome: a field of the last line of metrics.jsonl, such as "heldout/text_loss/captions"; with a * in it the mean of
      all that fit, as "heldout/text_loss/*".
    best: "min" or "max" of it.
    also: other fields that are shown beside it.
  """
  return dict(config=config, changes=list(changes), outcome=outcome, best=best, also=tuple(also))


def study(
  config: str,
  space: Mapping[str, dict],
  count: int,
  outcome: str,
  best: str = "min",
  sampler: str = "tpe",
  pruner: str = "",
  storage: str = "",
  seed: int = 0,
  also: Sequence[str] = (),
) -> dict:
  """An Optuna study, which chooses each trial by what those before it came to.

  Args:
    config: the file that is changed.
    space: of each field: `uniform`, `log_uniform`, `whole` or `choice`.
    count: trials in all.
    outcome: a field of metrics.jsonl, there after every evaluation; a * as in `trials`.
    best: "min" or "max" of it.
    sampler: "tpe" or "random".
    pruner: "median" ends trials that are behind the others at the same step; empty: none is ended.
    storage: a database as SQLAlchemy names it, which several machines may share; empty: study.db in the work directory.
    seed: of the sampler.
    also: other fields that are shown beside the outcome.
  """
  return dict(
    config=config,
    space=dict(space),
    count=count,
    outcome=outcome,
    best=best,
    sampler=sampler,
    pruner=pruner,
    storage=storage,
    seed=seed,
    also=tuple(also),
  )
