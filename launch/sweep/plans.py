"""Which trial comes next: from a list, or from an Optuna study, which learns from those before."""

import pathlib
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

import optuna

from data_pipelines.build.files import write_whole
from flamingo_jax.errors import UserError
from launch.sweep.outcomes import DONE, FAILED, PRUNED, WAITING, Result
from launch.sweep.settings import StudyConfig, Trial, make_trial, texts

STATES = {
  DONE: optuna.trial.TrialState.COMPLETE,
  PRUNED: optuna.trial.TrialState.PRUNED,
  FAILED: optuna.trial.TrialState.FAIL,
}
SPACE, FOLDER = "space", "folder"  # what a study notes of itself, and of each trial
FOLDER_NAME = "study.id"  # what a database that several folders share knows a folder by
SCALARS = (type(None), bool, int, float, str)  # all that Optuna gives back from a database as it was


class Plan(Protocol):
  """Gives out trials and hears what became of them.

  Attributes:
    prunes: whether it may end a trial that is running.
  """

  prunes: bool

  def known(self) -> Sequence[Trial]:
    """Those there are so far, in order, given out or not."""

  def state(self, trial: Trial) -> str:
    """What became of one that is not under way: a word of `outcomes`."""

  def take(self) -> Trial | None:
    """The next one to run; None when there is none left."""

  def reached(self, trial: Trial, points: Sequence[tuple[int, float]]) -> bool:
    """Hears the outcomes of a running trial, by step; returns whether it is to be ended."""

  def ended(self, result: Result) -> None:
    """Hears of the end of a trial."""


class ListPlan:
  """All trials of a list, in its order."""

  prunes = False

  def __init__(self, trials: Sequence[Trial]):
    self.trials, self.given = list(trials), 0

  def known(self) -> Sequence[Trial]:
    return self.trials

  def state(self, trial: Trial) -> str:
    return WAITING

  def take(self) -> Trial | None:
    if self.given == len(self.trials):
      return None
    self.given += 1
    return self.trials[self.given - 1]

  def reached(self, trial: Trial, points: Sequence[tuple[int, float]]) -> bool:
    return False

  def ended(self, result: Result) -> None:
    return None


class StudyPlan:
  """The trials of a study in its database that are run from this folder; others share what they came to.

  Those that an earlier call left unfinished come first. A draw that makes no whole config counts as a failed one.
  """

  def __init__(self, config: StudyConfig, overrides: dict[str, str], folder: pathlib.Path):
    """Raises UserError when the database cannot be opened, its study is another one, or the folder's trials are."""
    self.config, self.overrides = config, overrides
    self.prunes = bool(config.pruner)
    self.study = open_study(config, folder)
    self.folder = folder_name(self.study, folder) if config.storage else str(folder.absolute())
    self.trials: list[Trial] = []
    self.numbers: dict[str, int] = {}  # of trials in the study, by name
    self.unfinished: list[Trial] = []
    for trial in self.study.get_trials(deepcopy=False):
      if self.is_ours(trial):
        made = self.add(trial.number, trial.params)
        self.unfinished += [made] if trial.state == optuna.trial.TrialState.RUNNING else []
    if not self.trials and any(folder.glob("trials/*")):
      kept = FOLDER_NAME if config.storage else "study.db"
      raise UserError(
        f"{folder}: has trials, and the study {self.study.study_name!r} knows none of them. Bring back its {kept}, "
        "move it back to where it was, or choose a new --workdir."
      )
    if config.storage:
      write_whole(folder / FOLDER_NAME, lambda file: file.write(self.folder.encode()))

  def is_ours(self, trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is run from this folder; in a database of the folder's own, all are that make a whole config."""
    return FOLDER in trial.user_attrs and (not self.config.storage or trial.user_attrs[FOLDER] == self.folder)

  def add(self, number: int, values: dict) -> Trial:
    changes = {field: meant(self.config.space[field], value) for field, value in values.items()}
    trial = make_trial(f"trial-{number:04}", self.config.config, changes, self.overrides)
    self.trials.append(trial)
    self.numbers[trial.name] = number
    return trial

  def known(self) -> Sequence[Trial]:
    return self.trials

  def state(self, trial: Trial) -> str:
    known = self.frozen(trial).state
    return next((ours for ours, theirs in STATES.items() if theirs == known), WAITING)

  def take(self) -> Trial | None:
    if self.unfinished:
      return self.unfinished.pop(0)
    while len(self.study.get_trials(deepcopy=False)) < self.config.count:
      asked = self.study.ask({field: distribution(space) for field, space in self.config.space.items()})
      try:
        made = self.add(asked.number, asked.params)
      except UserError as error:
        self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        print(f"flamingo sweep: {asked.params} cannot be run, and counts as a failed trial:\n{error}", flush=True)
        continue
      asked.set_user_attr(FOLDER, self.folder)
      return made
    if all(trial.state is optuna.trial.TrialState.FAIL for trial in self.study.get_trials(deepcopy=False)):
      raise UserError(f"All {self.config.count} trials of the study failed. Choose another space and a new --workdir.")
    return None

  def reached(self, trial: Trial, points: Sequence[tuple[int, float]]) -> bool:
    if not points:
      return False
    known = self.frozen(trial)
    asked = optuna.trial.Trial(self.study, known._trial_id)  # of an earlier call, too, which the public way forgets
    for step, value in points:
      if step not in known.intermediate_values:
        asked.report(value, step)
    return asked.should_prune()

  def frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
    """What the study knows of a trial."""
    number = self.numbers[trial.name]
    return next(each for each in self.study.get_trials(deepcopy=False) if each.number == number)

  def ended(self, result: Result) -> None:
    value = result.outcome if result.state == DONE else None
    self.study.tell(self.numbers[result.trial.name], value, STATES[result.state], skip_if_finished=True)


def open_study(config: StudyConfig, folder: pathlib.Path) -> optuna.Study:
  """The study of a sweep, begun or gone on with.

  Raises:
    UserError: its database cannot be opened, or holds a study of other fields.
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  storage = config.storage or f"sqlite:///{folder.absolute() / 'study.db'}"
  samplers: dict[str, Callable] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
  pruner = optuna.pruners.MedianPruner() if config.pruner else optuna.pruners.NopPruner()
  try:
    study = optuna.create_study(
      storage=storage,
      study_name=study_name(config, folder, storage),
      load_if_exists=True,
      direction="minimize" if config.best == "min" else "maximize",
      sampler=samplers[config.sampler](seed=config.seed),
      pruner=pruner,
    )
  except Exception as error:  # SQLAlchemy and its drivers have no common class of errors
    raise UserError(f"storage is {storage!r}; it cannot be opened: {error}") from error
  asked = {field: texts(space) for field, space in config.space.items()}
  before = study.user_attrs.get(SPACE, asked)
  if before != asked:
    raise UserError(
      f"{storage}: its study {study.study_name!r} is of {before}, not of {asked}. Choose a new --workdir."
    )
  study.set_user_attr(SPACE, asked)
  return study


def study_name(config: StudyConfig, folder: pathlib.Path, storage: str) -> str:
  """The folder's last name; in a database of its own, the one that it had when the study began."""
  there = [] if config.storage else optuna.get_all_study_names(storage)
  return there[0] if there else folder.name


def folder_name(study: optuna.Study, folder: pathlib.Path) -> str:
  """What a shared database knows a folder by, wherever it is moved: a random text, kept there.

  Folders were once known by their paths; one that has such trials keeps the path that they have.
  """
  kept, path = folder / FOLDER_NAME, str(folder.absolute())
  if kept.exists():
    return kept.read_text()
  begun = any(trial.user_attrs.get(FOLDER) == path for trial in study.get_trials(deepcopy=False))
  return path if begun else uuid.uuid4().hex


def meant(space: dict, value: object) -> object:
  """What one of Optuna's values is in a field's space, where `distribution` may have given it a text in its place."""
  values = space.get("values", ())
  return next((each for each in values if not isinstance(each, SCALARS) and repr(each) == value), value)


def distribution(space: dict) -> optuna.distributions.BaseDistribution:
  """Of a field's space (configs/sweep.py). Of a choice of tuples, lists or the like, Optuna is given the texts."""
  if space["kind"] == "choice":
    values = space["values"]
    return optuna.distributions.CategoricalDistribution([v if isinstance(v, SCALARS) else repr(v) for v in values])
  if space["kind"] == "whole":
    return optuna.distributions.IntDistribution(space["low"], space["high"])
  return optuna.distributions.FloatDistribution(space["low"], space["high"], log=space["kind"] == "log_uniform")
