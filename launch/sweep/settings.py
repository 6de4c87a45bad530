"""A sweep file, read and checked: its trials, or the study that chooses them."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping

from flamingo_jax.errors import UserError
from launch.config import build, find_config, load_config, overridden, run_file
from launch.experiment import read_experiment

CONFIG = "config"  # among the changes of a trial: another file in place of the sweep's
LONGEST_NAME = 80  # characters of a trial's
BEST = ("min", "max")
SAMPLERS = ("tpe", "random")
PRUNERS = ("", "median")
KINDS = {
  "uniform": {"low", "high"},
  "log_uniform": {"low", "high"},
  "whole": {"low", "high"},
  "choice": {"values"},
}

Changes = dict[str, object]


@dataclasses.dataclass(frozen=True)
class TrialsConfig:
  """A list of trials.

  Attributes:
    config: the file that is changed.
    changes: of each trial: field -> value; `config` -> another file.
    outcome: a field of metrics.jsonl; with a * in it the mean of all that fit.
    best: "min" or "max" of it.
    also: other such fields that are shown beside it.
  """

  config: str
  changes: list
  outcome: str
  best: str = "min"
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """What Optuna chooses from (configs/sweep.py has the meaning of each field)."""

  config: str
  space: dict
  count: int
  outcome: str
  best: str = "min"
  sampler: str = "tpe"
  pruner: str = ""
  storage: str = ""
  seed: int = 0
  also: tuple[str, ...] = ()


SweepConfig = TrialsConfig | StudyConfig


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep.

  Attributes:
    name: of its work directory.
    config: its file.
    changes: of fields of it.
    raw: the whole config as its work directory keeps it, changes and all.
  """

  name: str
  config: str
  changes: Changes
  raw: dict

  @property
  def steps(self) -> int:
    """It makes in all."""
    return self.raw["total_steps"]

  def value(self, field: str) -> object:
    """Of a field of its config; of CONFIG, its file. None where its config has no such field."""
    if field == CONFIG:
      return self.config
    found: object = self.raw
    for name in field.split("."):
      found = found.get(name) if isinstance(found, dict) else None
    return found


def read_sweep(path: str) -> SweepConfig:
  """What `get_sweep()` of a file returns.

  Raises:
    UserError: there is no such file, it fails, or what it returns is not a sweep; every fault at once.
  """
  given = run_file(find_config(path, "get_sweep"), "get_sweep")
  if not isinstance(given, dict):
    raise UserError(f"{path}: get_sweep() returns {given!r}; it returns sweep.trials(...) or sweep.study(...).")
  faults: list[str] = []
  config = build(StudyConfig if "space" in given else TrialsConfig, given, "", faults)
  if config is not None:
    faults += check_study(config) if isinstance(config, StudyConfig) else check_changes(config.changes)
    faults += [f"best is {config.best!r}; it is one of {', '.join(BEST)}."] if config.best not in BEST else []
    faults += [] if config.outcome else ["outcome is empty; it names a field of metrics.jsonl."]
  if faults:
    raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
  return config


def check_changes(changes: list) -> list[str]:
  if not changes:
    return ["changes: none given; a sweep has at least one trial, which may change nothing: {}."]
  faults = [
    f"changes[{place}] is {each!r}; it is a dict from a field to its value."
    for place, each in enumerate(changes)
    if not isinstance(each, dict) or not all(isinstance(name, str) for name in each)
  ]
  if faults:
    return faults
  seen: dict[str, int] = {}
  for place, each in enumerate(changes):
    first = seen.setdefault(repr(sorted(each.items(), key=lambda item: item[0])), place)
    if first != place:
      faults.append(f"changes[{place}] are those of changes[{first}]: {each!r}.")
  return faults


def check_study(study: StudyConfig) -> list[str]:
  faults = [] if study.count >= 1 else [f"count is {study.count}; a study has at least one trial."]
  for field, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
    if getattr(study, field) not in known:
      faults.append(f"{field} is {getattr(study, field)!r}; it is one of {', '.join(map(repr, known))}.")
  if not study.space:
    faults.append("space: no field is given.")
  for field, values in study.space.items():
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in KINDS or values.keys() - {"kind"} != KINDS[kind]:
      faults.append(f"space[{field!r}] is {values!r}; it is made by one of {', '.join(KINDS)} of configs/sweep.py.")
    elif kind == "choice" and not values["values"]:
      faults.append(f"space[{field!r}]: choice() has no values.")
    elif kind != "choice" and not is_range(values):
      lowest = "above 0" if kind == "log_uniform" else "a number"
      faults.append(f"space[{field!r}]: {values['low']!r} to {values['high']!r}; low is {lowest} and below high.")
  return faults


def is_range(values: Mapping) -> bool:
  low, high = values["low"], values["high"]
  kinds = (int,) if values["kind"] == "whole" else (int, float)
  if not all(type(each) in kinds and math.isfinite(each) for each in (low, high)):
    return False
  return low < high and (values["kind"] != "log_uniform" or low > 0)


def make_trials(sweep: TrialsConfig, overrides: dict[str, str], path: str) -> list[Trial]:
  """The trials of a list, each with its config checked whole.

  Args:
    sweep: the list.
    overrides: of fields of all trials, from the command line.
    path: of the sweep file, for messages.

  Raises:
    UserError: all faults of all trials.
  """
  made, faults = [], []
  for changes in sweep.changes:
    name, config = trial_name(changes), changes.get(CONFIG, sweep.config)
    fields = {field: value for field, value in changes.items() if field != CONFIG}
    try:
      made.append(make_trial(name, config, fields, overrides))
    except UserError as error:
      faults.append(f"{path}, trial {name}:\n{error}")
  if faults:
    raise UserError("\n".join(faults))
  return made


def make_trial(name: str, config: str, changes: Changes, overrides: dict[str, str]) -> Trial:
  """A trial, its config checked whole. Raises UserError with every fault of it."""
  raw = overridden(load_config(config, overrides), texts(changes), config)
  return Trial(name, config, changes, read_experiment(raw, config).raw)


def texts(changes: Changes) -> dict[str, str]:
  """As they stand on a command line."""
  return {field: value if isinstance(value, str) else repr(value) for field, value in changes.items()}


def trial_name(changes: Changes) -> str:
  """A trial's folder, such as learning_rate=0.001,seed=2; where that is less than all it changes, a hash follows."""
  if not changes:
    return "unchanged"
  whole = ",".join(f"{field}={value}" for field, value in changes.items())
  short = ",".join(f"{field.rpartition('.')[2]}={shown(value)}" for field, value in changes.items())
  name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", short)
  if name == whole and len(name) <= LONGEST_NAME:
    return name
  return f"{name[:LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def shown(value: object) -> str:
  """Of a number, four digits; of a path, its last part."""
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value).rpartition("/")[2]


def fields_of(trials: Iterable[Trial]) -> list[str]:
  """What trials differ in, in the order in which it is first changed."""
  trials = list(trials)
  changed = dict.fromkeys(field for trial in trials for field in (CONFIG, *trial.changes))
  return [field for field in changed if len({repr(trial.value(field)) for trial in trials}) > 1]
