"""The train loop: one for every objective, read top to bottom. Files, logs and devices are touched here only."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flamingo_jax.errors import Preempted, UserError
from flamingo_jax.memory import give_back_freed
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.training import crash, goodput
from flamingo_jax.training.checkpoints import About, Checkpoints, saved_steps
from flamingo_jax.training.config import AS_BEFORE, Feed, Frozen, Resume, TrainingConfig
from flamingo_jax.training.metrics import METRICS, MetricsLog, read_metrics
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.placing import begin_from, check_fit, place_frozen
from flamingo_jax.training.preemption import StopNotice
from flamingo_jax.training.prefetch import DeviceBatches, HostBatches, placed
from flamingo_jax.training.profiling import Profiler
from flamingo_jax.training.progress import TrainingProgress
from flamingo_jax.training.rewind import Rewind, add_rewind, batch_number, check_rewind, read_rewinds, segments
from flamingo_jax.training.step import (
  State,
  initial_state,
  jitted,
  make_train_step,
  slot_shardings,
)
from flamingo_jax.training.surroundings import surroundings
from flamingo_jax.training.tally import make_host_seconds, make_tally
from flamingo_jax.training.watchdog import Watchdog
from flamingo_jax.training.workdir import LOCK, Change, claim_workdir, locked, note, read_history, write_config
from flamingo_jax.training.writers import Record, check_writers, following

LOCK_PATIENCE = 120.0  # seconds; network disks free what a host that died had locked after 90 or so
REFUSALS = ("No space left", "Read-only file system", "Permission denied", "Disk quota exceeded", "Input/output error")


Evaluate = Callable[[Parameters, Mesh, bool], dict[str, float]]  # (all parameters, mesh, is baseline) -> metrics


def train(
  objective: Objective,
  config: TrainingConfig,
  feed: Feed,
  frozen: Frozen,
  evaluate: Evaluate,
  workdir: pathlib.Path,
  record: dict,
  resume: Resume = AS_BEFORE,
) -> State:
  """Trains to the last step, from the newest checkpoint of `workdir` if it has one.

  Args:
    objective: what is minimized.
    config: how.
    feed: the data.
    frozen: the parameters that stay.
    evaluate: called before the first step, every `evaluate_every` steps and after the last.
    workdir: claimed once everything else has been found right.
    record: the config as it is kept in the work directory, to tell whose it is.
    resume: how to go on with what is there.

  Raises:
    UserError: the mesh does not fit the devices or the batches, frozen parameters do not fit the model or are not
      those of the checkpoint, which may be beyond the last step, `workdir` belongs to another config, is in use or
      cannot be written, the devices have too little memory, or too many updates in a row had to be left out.
    Preempted: the machine is about to be taken away, and the state is saved.
  """
  began = time.perf_counter() if resume.began is None else resume.began
  check_writers(config.writers)
  check_fit(objective, config, feed.rows, jax.device_count())
  mesh = make_mesh(config.mesh)
  rate = learning_rate(config.optimizer, config.total_steps)
  optimizer = make_optimizer(config.optimizer, rate)
  with jax.set_mesh(mesh), telling_memory():
    held = place_frozen(objective, frozen, mesh, config)
    fresh = initial_state(objective, optimizer, mesh, config.trainable, config.seed, config.sharding)
    fresh = begin_from(frozen.start, fresh)
    placement = slot_shardings(objective, mesh, config.trainable, config.sharding)
    step_function = jitted(make_train_step(objective, optimizer, rate, feed.weights, placement, config.guard), fresh)
    run = Run(objective, config, feed, evaluate, workdir, record, mesh, held)
    with contextlib.ExitStack() as claim:
      with writing(workdir):
        changes = run.claim(resume, claim)
        begun = run.begin(fresh, About(frozen.hashes, feed.hashes, (), record), resume, changes)
      if begun.step == config.total_steps:
        begun.checkpoints.close()
        with run.writers(begun.about):  # they may have missed some of it
          return begun.state
      return run.go_on(begun, step_function, began)


@dataclasses.dataclass
class Begun:
  """Where a start stands.

  Attributes:
    step: done so far.
    state: after it.
    checkpoints: of the work directory.
    about: what the run trains with.
    changes: of the config since the last start.
    seconds: spent by now, by cause.
  """

  step: int
  state: State
  checkpoints: Checkpoints
  about: About
  changes: list[Change]
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
  """A run on its devices: what `train` was given, and the frozen parameters in place."""

  objective: Objective
  config: TrainingConfig
  feed: Feed
  evaluate: Evaluate
  workdir: pathlib.Path
  record: dict
  mesh: Mesh
  held: Parameters

  @property
  def leads(self) -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0

  def claim(self, resume: Resume, closing: contextlib.ExitStack) -> list[Change]:
    """Claims the work directory, for this run alone until `closing`; returns what of its config has changed."""
    changes = []
    if self.leads:
      if resume.rewind is not None:
        check_rewind(self.workdir, resume.rewind, saved_steps(self.workdir))
      changes = claim_workdir(self.workdir, self.record, resume.allow_changed)
      busy = "another process trains here. Wait for it, or end it."
      closing.enter_context(locked(self.workdir / LOCK, busy, LOCK_PATIENCE))
    multihost_utils.sync_global_devices("the work directory is claimed")
    return changes

  def begin(self, fresh: State, about: About, resume: Resume, changes: list[Change]) -> Begun:
    """Takes up what is in the work directory; nothing that is there is written over."""
    checkpoints = Checkpoints(self.workdir, self.config.checkpoint)
    if resume.rewind is not None and self.leads:
      keep_aside(self.workdir, resume.rewind)
      add_rewind(self.workdir, resume.rewind)
    multihost_utils.sync_global_devices("the rewind is written down")
    about = dataclasses.replace(about, rewinds=read_rewinds(self.workdir))
    say = functools.partial(print, file=sys.stderr, flush=True) if self.leads else lambda *_: None
    checkpoints.set_rewound_aside(about.rewinds, say)
    (step, state), restoring = timed(lambda: checkpoints.restore_newest(fresh, about, resume.allow_changed, say))
    if step > self.config.total_steps:
      raise UserError(f"{self.workdir}: has made {step} steps; total_steps is {self.config.total_steps}: it is more.")
    seconds = dict(restore=restoring, replayed=seconds_after(self.workdir, step) if self.leads else 0.0)
    if changes:
      write_config(self.workdir, self.record)
    return Begun(step, state, checkpoints, about, changes, seconds)

  def go_on(self, begun: Begun, step_function, began: float) -> State:
    """Makes the steps that are left.

    Args:
      begun: where the run stands.
      step_function: the jitted update.
      began: when the process did.
    """
    config, workdir, rewinds, state = self.config, self.workdir, begun.about.rewinds, begun.state
    with contextlib.ExitStack() as closing:
      closing.callback(begun.checkpoints.wait)  # a save that is under way when something fails is seen through
      with writing(workdir):
        log = closing.enter_context(MetricsLog(workdir, begun.step, active=self.leads))
      closing.enter_context(self.writers(begun.about))
      progress = TrainingProgress(self.objective.name, config.total_steps, begun.step, active=self.leads)
      closing.enter_context(progress)
      progress.say(opening(self.objective, config, self.mesh, state, self.held, begun.step))
      extra = {}
      if begun.step == 0:
        extra, begun.seconds["evaluation"] = timed(lambda: prefixed("baseline", self.evaluated(state, True)))
      batches = placed(self.batches(begun.step, rewinds), self.mesh)
      ahead = next(batches)
      programs = Programs(step_function, self.held)
      _, begun.seconds["compile"] = timed(lambda: programs.of(state, ahead[0]))
      account = self.started(begun, time.perf_counter() - began)
      tally, host_seconds = make_tally(self.mesh), make_host_seconds(self.mesh)
      notice = closing.enter_context(StopNotice())
      watchdog = Watchdog(workdir / "hangs", config.guard.hang_seconds, jax.process_index())
      closing.enter_context(watchdog)
      profiler = closing.enter_context(Profiler(workdir, leads=self.leads))

      for step in range(begun.step + 1, config.total_steps + 1):
        began, last = time.perf_counter(), step == config.total_steps
        step_batches, counts = next(batches) if ahead is None else ahead
        ahead = None
        alone = time.perf_counter() - began  # in which the devices had nothing to do
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          tallied, own = tally(counts, alone, profiler.asked()), host_seconds(alone)
          state, numbers = programs.of(state, step_batches)(state, self.held, step_batches)
          numbers, (counted, waited, wanted), own = jax.device_get((numbers, tallied, own))
        in_a_row = int(numbers.pop("skipped_in_a_row"))
        metrics = recorded(numbers) | nonzero(dict(zip(sorted(counts), counted.tolist(), strict=True)))
        metrics |= timing(metrics["tokens"], began, float(waited)) | device_memory() | of_hosts(own) | extra
        if rewinds:
          metrics["batch"] = batch_number(step, rewinds)
        watchdog.step_ended(step)
        if step % config.evaluate_every == 0 or last:
          found, seconds = timed(lambda state=state: self.evaluated(state, False))
          metrics |= found | dict(evaluation_seconds=seconds)
          watchdog.step_ended(step)
        account.update(goodput.of_line(metrics))
        metrics["goodput"] = goodput.goodput(account)
        stops, extra = notice.reached(step), {}
        with writing(workdir):
          log.write(step, metrics)
          if step % config.checkpoint.every == 0 or last or stops:
            log.sync()
            save = functools.partial(begun.checkpoints.save, step, state, begun.about, metrics)
            _, extra["save_seconds"] = timed(save)
        progress.update(step, metrics)
        diverged = in_a_row >= config.guard.skips_in_a_row
        profiler.step_ended(step, int(wanted), is_last=last or stops or diverged)
        if stops or diverged:
          break
      with writing(workdir):
        _, seconds = timed(begun.checkpoints.close)
        if self.leads:
          note(workdir, "end", step=step, save_seconds=extra.get("save_seconds", 0.0) + seconds)
    if diverged:  # unwatched: what finds the fault has yet to be compiled
      self.give_up(step, state, step_batches, begun.about, log.tail())
    if not last:
      raise Preempted(f"{workdir}: stopped as asked, after step {step} of {config.total_steps}. It is saved.")
    return state

  def writers(self, about: About) -> contextlib.AbstractContextManager:
    """Those of the config, of the process that writes."""
    names = self.config.writers if self.leads else ()
    return following(names, Record(self.workdir, self.record, about.rewinds, self.config.total_steps))

  def batches(self, start: int, rewinds: tuple[Rewind, ...]) -> Iterator[tuple[HostBatches, dict[str, int]]]:
    """Those of the steps that are left."""
    for first, count in segments(start, self.config.total_steps, rewinds):
      yield from itertools.islice(self.feed.batches_from(first - 1), count)

  def evaluated(self, state: State, is_baseline: bool) -> dict[str, float]:
    return self.evaluate({**state.trainable, **self.held}, self.mesh, is_baseline)

  def started(self, begun: Begun, seconds: float) -> collections.Counter:
    """Writes down that the run goes on, after so many seconds; returns where all its time went by now."""
    if not self.leads:
      return goodput.spent([], [])
    spent = begun.seconds | dict(start_up=seconds - sum(begun.seconds.values()) + begun.seconds["replayed"])
    with writing(self.workdir):
      note(self.workdir, "start", step=begun.step, seconds=spent, changed=begun.changes, **surroundings(self.mesh))
      return goodput.spent(read_metrics(self.workdir), read_history(self.workdir))

  def give_up(self, step: int, state: State, batches: DeviceBatches, about: About, tail: list[dict]) -> None:
    """Writes a crash bundle of the last step, which left `state` as it was, and raises UserError."""
    faults = crash.find_faults(self.objective, state, self.held, batches, self.feed.weights, self.mesh)
    records = self.feed.records(batch_number(step, about.rewinds))
    named = {
      name: [dict(row=row, records=records[name][row]) for row in fault["rows"] if name in records]
      for name, fault in faults.items()
    }
    facts = dict(streams=faults, rows=named, metrics=tail)
    bundle = crash.write_bundle(self.workdir, self.record, step, state, about, batches, facts)
    raise UserError(crash.report(bundle, step, self.config.guard.skips_in_a_row, facts))


class Programs:
  """The compiled updates of a run: one, or in a round robin one for each stream."""

  def __init__(self, step_function, held: Parameters):
    self.step_function, self.held = step_function, held
    self.compiled: dict[tuple[str, ...], jax.stages.Compiled] = {}  # by the streams that a step reads

  def of(self, state: State, batches: DeviceBatches) -> jax.stages.Compiled:
    """The update from these batches; compiled where there is none yet."""
    streams = tuple(batches)
    if streams not in self.compiled:
      self.compiled[streams] = self.step_function.lower(state, self.held, batches).compile()
      give_back_freed()
    return self.compiled[streams]


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
  """Tells of a disk that refuses.

  Raises:
    UserError: what it said, and what is safe.
  """
  try:
    yield
  except (OSError, ValueError) as error:
    # TensorStore, which writes arrays, raises ValueErrors that quote the system's words.
    if isinstance(error, ValueError) and not any(words in str(error) for words in REFUSALS):
      raise
    raise UserError(
      f"{workdir} cannot be written: {error}\nThe last complete checkpoint is not touched. When there is room and "
      "permission, run the same command again to go on from it."
    ) from error


@contextlib.contextmanager
def telling_memory() -> Iterator[None]:
  """Tells of devices that have too little memory.

  Raises:
    UserError: what was asked for, and what takes less.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise UserError(
      f"The devices have too little memory: {str(error).splitlines()[0]}\nLess is needed with smaller streams.*."
      "batch_size, model.remat=full, or more devices along mesh.fsdp or mesh.model. `flamingo plan` says how much, "
      "before a device is used. The last complete checkpoint is not touched."
    ) from error


def timed(call: Callable):
  """(what a call returns, the seconds it took)."""
  began = time.perf_counter()
  return call(), time.perf_counter() - began


def keep_aside(workdir: pathlib.Path, rewind: Rewind) -> None:
  """Keeps a copy of the record that a new rewind will shorten."""
  known, path = read_rewinds(workdir), workdir / METRICS
  if rewind not in known and path.exists():
    shutil.copyfile(path, workdir / f"metrics-before-rewind-{len(known) + 1}.jsonl")


def seconds_after(workdir: pathlib.Path, step: int) -> float:
  """Of the steps in the record that have to be made again."""
  lines = read_metrics(workdir) if (workdir / METRICS).exists() else []
  return sum(line["seconds"] for line in lines if line["step"] > step)


def recorded(numbers: dict[str, np.ndarray]) -> dict[str, float]:
  """Numbers of a step as they are logged; updates left out only where there are any."""
  skips = {name: int(number) for name, number in numbers.items() if name.startswith("skipped_update/")}
  return {name: float(number) for name, number in numbers.items() if name not in skips} | nonzero(skips)


def nonzero(counts: dict[str, int]) -> dict[str, int]:
  return {name: number for name, number in counts.items() if number}


def timing(tokens: float, began: float, waited: float) -> dict[str, float]:
  """Seconds of a step, and the share of them that went by waiting for input; tokens without padding.

  Another host may have begun the step a moment before this one, and waited a moment longer than it took here.
  """
  seconds = time.perf_counter() - began
  share = min(waited / seconds, 1.0)
  return dict(tokens=int(tokens), seconds=seconds, tokens_per_second=tokens / seconds, input_wait=share)


def of_hosts(own: np.ndarray) -> dict[str, float]:
  """What each host of several needed for itself in a step: float32 [hosts]."""
  return {f"host_seconds/{host}": float(seconds) for host, seconds in enumerate(own)} if len(own) > 1 else {}


def device_memory() -> dict[str, int]:
  """Bytes that were in use at most on the fullest device of this host; empty where devices do not tell, as CPUs."""
  told = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [each["peak_bytes_in_use"] for each in told if "peak_bytes_in_use" in each]
  return {"device_memory": max(peaks)} if peaks else {}


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
  return {f"{prefix}/{name}": value for name, value in metrics.items()}


def opening(
  objective: Objective, config: TrainingConfig, mesh: Mesh, state: State, held: Parameters, start: int
) -> str:
  """One line on what is about to run."""
  trained = sum(array.size for array in state.trainable.values())
  kept = sum(array.size for array in held.values())
  devices = f"{mesh.size} {jax.devices()[0].platform} device" + ("s" if mesh.size > 1 else "")
  begin = f"from step {start} of {config.total_steps}" if start else f"{config.total_steps} steps"
  return f"{objective.name}: {trained / 1e6:.1f}M trained, {kept / 1e6:.1f}M frozen parameters on {devices}, {begin}"
