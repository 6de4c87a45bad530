"""`flamingo sweep`: runs the trials of a sweep through a launcher, several at a time, and says what they came to."""

import dataclasses
import difflib
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from flamingo_jax.errors import DONE, PREEMPTED, USER_FAULT, UserError
from flamingo_jax.training.metrics import METRICS
from flamingo_jax.training.workdir import CONFIG, LOCK, differing, locked, read_config
from launch.local import log_folder
from launch.supervisor import INTERRUPTED, hearing, last_step
from launch.sweep import outcomes
from launch.sweep.outcomes import Result, points_of, read_lines, value_of
from launch.sweep.plans import ListPlan, Plan, StudyPlan
from launch.sweep.settings import StudyConfig, SweepConfig, Trial, make_trials, read_sweep, texts
from launch.sweep.summary import summarize, table

TICK = 0.5  # seconds between looks at the processes
LOOK = 10.0  # seconds between looks at the record of a trial
FAILURES = 1  # the exit code where a trial failed
LAUNCHER = ("--on=local",)
LAUNCHER_SAYS = "flamingo launch:"
WAIT = "--wait"  # makes the launch of a job last as long as the job


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is run, and where.

  Attributes:
    path: of the sweep file.
    config: what it says.
    overrides: of fields of all trials.
    folder: of the sweep.
    launcher: what `flamingo launch` is told of each trial, `--on` among it.
  """

  path: str
  config: SweepConfig
  overrides: dict[str, str]
  folder: pathlib.Path
  launcher: tuple[str, ...]

  def workdir(self, trial: Trial) -> pathlib.Path:
    return self.folder / "trials" / trial.name

  def log(self, trial: Trial) -> pathlib.Path:
    return self.folder / "logs" / f"{trial.name}.log"

  def held(self, trial: Trial) -> pathlib.Path | None:
    """The lock that a launch of a trial, or its training, has; None where nobody is at it."""
    folders = log_folder(str(self.workdir(trial))), self.workdir(trial)
    return next((folder / LOCK for folder in folders if is_held(folder / LOCK)), None)

  def command(self, trial: Trial) -> list[str]:
    """The launch of a trial."""
    changes = self.overrides | texts(trial.changes)
    where = [f"--config={trial.config}", f"--workdir={self.workdir(trial)}"]
    fields = [f"--config.{field}={value}" for field, value in changes.items()]
    return [sys.executable, "-m", "launch.cli", "launch", *self.launcher, *where, *fields]

  def changes(self, trial: Trial) -> list[str]:
    """Where a trial that has made all of its steps was run with another config than it has now."""
    workdir = self.workdir(trial)
    if last_step(workdir / METRICS) < trial.steps:
      return []  # `flamingo train` looks itself
    return [
      f"{workdir}: {field} was {there!r} when it was run, and is {here!r}."
      for field, there, here in differing(read_config(workdir / CONFIG), json.loads(json.dumps(trial.raw)))
    ]

  def look(self, trial: Trial, state: str = outcomes.WAITING, why: str = "") -> Result:
    """A trial as its work directory shows it; done is what has made all of its steps."""
    lines = read_lines(self.workdir(trial))
    step, points = points_of(lines, self.config.outcome)
    if step >= trial.steps:
      state, why = outcomes.DONE, ""
      if not points or points[-1][0] != step:
        state, why = outcomes.FAILED, f"metrics.jsonl has no finite {self.config.outcome} at its last step"
      why = self.unrecorded(trial, lines) or why
    found = {field: value_of(lines[-1], field) for field in self.config.also} if lines else {}
    others = {field: value for field, value in found.items() if value is not None}
    return Result(trial, state, step, points[-1][1] if points else None, others, why)

  def unrecorded(self, trial: Trial, lines: Sequence[dict]) -> str:
    """Why a trial can have no outcome: it was evaluated, and no field is of that name. Empty if it can."""
    first = min(trial.raw["evaluate_every"], trial.steps)
    evaluated = [line for line in lines if line["step"] <= first]
    if not evaluated or evaluated[-1]["step"] < first:
      return ""
    names = {name: None for line in evaluated for name in line}  # in a round robin a line has one stream's alone
    if outcomes.names_of(names, self.config.outcome):
      return ""
    near = difflib.get_close_matches(self.config.outcome, names, n=3) or names
    return f"outcome is {self.config.outcome!r}, which metrics.jsonl does not have. Is it one of {', '.join(near)}?"


@dataclasses.dataclass
class Running:
  """A launch of a trial under way.

  Attributes:
    trial: which.
    process: of the launch.
    attempt: which one it is of the trial.
    ending: the state and the reason with which it was asked to end; None while it was not.
    looked: when its record was last read, of `time.monotonic`.
  """

  trial: Trial
  process: subprocess.Popen
  attempt: int
  ending: tuple[str, str] | None = None
  looked: float = 0.0


def run_sweep(
  path: str, overrides: dict[str, str], workdir: str, parallel: int, retries: int, launcher: Sequence[str]
) -> int:
  """Runs the trials of a sweep file that are not done yet.

  Args:
    path: of the sweep file.
    overrides: of fields of all trials.
    workdir: the sweep's folder: trials, logs, outcomes.json, sweep.html, winner.py.
    parallel: trials at a time.
    retries: of a trial that fails, each from its newest checkpoint.
    launcher: arguments of `flamingo launch`; none: --on=local.

  Returns:
    DONE; 1 where a trial failed; PREEMPTED after SIGTERM or the end of the terminal, INTERRUPTED after Ctrl-C.

  Raises:
    UserError: the sweep file, a trial's config or the folder is not as it should be, or another sweep runs there.
  """
  config = read_sweep(path)
  folder = pathlib.Path(workdir)
  sweep = Sweep(path, config, overrides, folder, tuple(launcher) or LAUNCHER)
  trials = None if isinstance(config, StudyConfig) else make_trials(config, overrides, path)
  try:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{folder} cannot be written ({error.strerror}).") from error
  with locked(folder / LOCK, "a sweep is at work here. Wait for it, or end it."), hearing() as asked:
    plan = StudyPlan(config, overrides, folder) if trials is None else ListPlan(trials)
    if changes := [change for trial in plan.known() for change in sweep.changes(trial)]:
      raise UserError("\n".join([*changes, "Choose another --workdir; these trials are done."]))
    results = Trials(sweep, plan, retries).run(parallel, asked)
    summarize(sweep.folder, sweep.path, config, results)
  print(table(config, results))
  if asked:
    print("flamingo sweep: stopped as asked. The same command goes on.", flush=True)
    return PREEMPTED if asked[0] == signal.SIGTERM else INTERRUPTED
  return FAILURES if any(result.state == outcomes.FAILED for result in results) else DONE


class Trials:
  """The trials of a sweep as they run."""

  def __init__(self, sweep: Sweep, plan: Plan, retries: int):
    self.sweep, self.plan, self.retries = sweep, plan, retries
    self.ended: dict[str, Result] = {}
    self.running: list[Running] = []
    self.left: list[tuple[Trial, int]] = []  # whose launch was left behind and is at work yet; which attempt follows

  def run(self, parallel: int, asked: list[int]) -> list[Result]:
    """Until none is left, or a signal is heard; launches under way are then asked to end, and waited for."""
    try:
      while not asked and (self.fill(parallel) or self.running or self.left):
        self.look_after(asked)
        time.sleep(TICK)
    finally:
      self.stop()
    return self.results()

  def results(self) -> list[Result]:
    return [self.ended.get(trial.name) or self.sweep.look(trial, self.state(trial)) for trial in self.plan.known()]

  def state(self, trial: Trial) -> str:
    under_way = [each.trial.name for each in self.running] + [each.name for each, _ in self.left]
    return outcomes.RUNNING if trial.name in under_way else self.plan.state(trial)

  def fill(self, parallel: int) -> bool:
    """Takes trials up while there is room; returns whether there was one."""
    took = False
    while len(self.running) + len(self.left) < parallel and (trial := self.plan.take()) is not None:
      took = True
      self.take_up(trial, attempt=1)
    return took

  def take_up(self, trial: Trial, attempt: int) -> None:
    """Launches a trial that is not done; where a launch that was left behind is at it, that comes first."""
    found, lock = self.sweep.look(trial), self.sweep.held(trial)
    if found.state != outcomes.WAITING:
      self.end(found)
    elif lock is not None:
      say(f"{trial.name}: an earlier launch is still at work, and is waited for; it has {lock}")
      self.left.append((trial, attempt))
    else:
      self.running.append(self.launch(trial, attempt))

  def launch(self, trial: Trial, attempt: int) -> Running:
    say(f"{trial.name}: launch {attempt}")
    command = self.sweep.command(trial)
    with self.sweep.log(trial).open("ab") as log:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to pass on
      )
    return Running(trial, process, attempt)

  def look_after(self, asked: list[int]) -> None:
    for each in list(self.running):
      code = each.process.poll()
      if code is None:
        self.watch(each)
      elif not asked:
        self.settle(each, code)
    for trial, attempt in [each for each in self.left if not asked and self.sweep.held(each[0]) is None]:
      self.left.remove((trial, attempt))
      self.take_up(trial, attempt)

  def watch(self, each: Running) -> None:
    """Asks a launch to end whose trial falls behind, or can have no outcome."""
    if each.ending or time.monotonic() - each.looked < LOOK:
      return
    each.looked = time.monotonic()
    lines = read_lines(self.sweep.workdir(each.trial))
    if why := self.sweep.unrecorded(each.trial, lines):
      each.ending = outcomes.FAILED, why
    elif self.plan.prunes and self.plan.reached(each.trial, points_of(lines, self.sweep.config.outcome)[1]):
      each.ending = outcomes.PRUNED, ""
    if each.ending:
      each.process.send_signal(signal.SIGTERM)

  def settle(self, each: Running, code: int) -> None:
    """What follows the end of a launch: the end of its trial, another launch, or waiting for what it submitted."""
    made = last_step(self.sweep.workdir(each.trial) / METRICS)
    if code == DONE and made < each.trial.steps and WAIT not in self.sweep.launcher:
      return  # a cluster has it
    found = self.sweep.look(each.trial, outcomes.RUNNING)
    self.running.remove(each)
    if found.state == outcomes.RUNNING and each.ending:
      state, why = each.ending
      found = dataclasses.replace(found, state=state, why=why)
    elif found.state == outcomes.RUNNING and code != USER_FAULT and each.attempt <= self.retries:
      self.take_up(each.trial, each.attempt + 1)
      return
    elif found.state == outcomes.RUNNING:
      found = dataclasses.replace(found, state=outcomes.FAILED, why=why_failed(self.sweep.log(each.trial)))
    self.end(found)

  def end(self, result: Result) -> None:
    """Writes down what became of a trial, and all there is by now."""
    self.ended[result.trial.name] = result
    self.plan.ended(result)
    shown = "" if result.outcome is None else f", {self.sweep.config.outcome} {result.outcome:.5g}"
    say(f"{result.trial.name}: {result.state} at step {result.steps}{shown}{result.why and f' ({result.why})'}")
    summarize(self.sweep.folder, self.sweep.path, self.sweep.config, self.results())

  def stop(self) -> None:
    """Asks all launches under way to end, and waits; what a cluster has, or an earlier sweep has left, goes on."""
    for each in self.running:
      if each.process.poll() is None:
        each.process.send_signal(signal.SIGTERM)
    for each in self.running:
      each.process.wait()
    self.running.clear()


def is_held(lock: pathlib.Path) -> bool:
  """Whether a process has a lock."""
  if not lock.exists():
    return False
  try:
    with locked(lock, ""):
      return False
  except UserError:
    return True


def why_failed(log: pathlib.Path) -> str:
  """The last words of a trial itself, or else of its launcher; the file is named for the rest."""
  lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
  own = [line for line in lines if not line.startswith(LAUNCHER_SAYS)]
  return f"{(own or lines or ['nothing was said'])[-1]}; see {log}"


def say(text: str) -> None:
  print(f"flamingo sweep: {text}", flush=True)
