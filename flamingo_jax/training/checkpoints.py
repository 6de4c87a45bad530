"""Orbax checkpoints of what changes in a run, and what they were trained with."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import place
from flamingo_jax.training.rewind import Rewind, in_force
from flamingo_jax.training.step import State
from flamingo_jax.training.sums import array_sums

FOLDER = "checkpoints"
ARRAYS = ("trainable", "optimizer", "guard")
UNREADABLE, REWOUND = "checkpoints-unreadable", "checkpoints-rewound"  # beside it; what is in the way is moved there


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save, and what to keep: whatever any of the three kinds of `keep` names."""

  every: int = 1000  # steps; the last step is always saved
  keep: int = 3  # the newest; with one there is none to fall back to
  keep_every: int = 0  # steps, whose multiples are kept for good; 0: none
  best: str = ""  # a metric of the step's line in metrics.jsonl, by which the best are kept; empty: none
  best_mode: str = "min"  # or "max"
  keep_best: int = 1


def check_checkpoints(config: CheckpointConfig, evaluate_every: int) -> list[str]:
  """What is wrong with the settings, one line a fault."""
  faults = [
    f"checkpoint.{field} is {getattr(config, field)}; it is at least {least}."
    for field, least in (("every", 1), ("keep", 1), ("keep_every", 0), ("keep_best", 1))
    if getattr(config, field) < least
  ]
  if config.best_mode not in ("min", "max"):
    faults.append(f"checkpoint.best_mode is {config.best_mode!r}; it is 'min' or 'max'.")
  if not faults and config.keep_every % config.every:
    faults.append(
      f"checkpoint.keep_every is {config.keep_every}, but only multiples of checkpoint.every={config.every} are saved."
    )
  evaluated = config.best.startswith(("heldout/", "train/", "visual_gain/"))
  if not faults and evaluated and config.every % evaluate_every:
    faults.append(
      f"checkpoint.best is {config.best!r}, which is known every evaluate_every={evaluate_every} steps only; "
      f"let checkpoint.every, {config.every}, be a multiple of it."
    )
  return faults


@dataclasses.dataclass(frozen=True)
class About:
  """What a checkpoint was trained with.

  Attributes:
    frozen: a content hash for each frozen part.
    data: a content hash for each stream's records, and for the tokenizer.
    rewinds: those made before it.
    config: the whole config.
  """

  frozen: dict[str, str] = dataclasses.field(default_factory=dict)
  data: dict[str, str] = dataclasses.field(default_factory=dict)
  rewinds: tuple[Rewind, ...] = ()
  config: dict = dataclasses.field(default_factory=dict)


def open_manager(directory: pathlib.Path, **options) -> ocp.CheckpointManager:
  asked = ocp.CheckpointManagerOptions(**options)
  over = asked.multiprocessing_options
  arrays = {name: ocp.StandardCheckpointHandler(multiprocessing_options=over) for name in ARRAYS}
  about = ocp.JsonCheckpointHandler(multiprocessing_options=over)
  return ocp.CheckpointManager(directory, options=asked, item_handlers=arrays | dict(about=about))


def open_reader(directory: pathlib.Path) -> ocp.CheckpointManager:
  """One that waits for no other host: where one of them finds damage, the others still end, and can be told."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=None,
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f"reader{jax.process_index()}",
  )
  return open_manager(directory, read_only=True, multiprocessing_options=alone)


def preservation(config: CheckpointConfig) -> policies.PreservationPolicy:
  kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep)]
  if config.keep_every:
    kept.append(policies.EveryNSteps(config.keep_every))
  if config.best:
    kept.append(
      policies.BestN(
        get_metric_fn=judge(config),
        reverse=config.best_mode == "min",
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
      )
    )
  return policies.AnyPreservationPolicy(kept)


def judge(config: CheckpointConfig) -> Callable[[dict[str, float]], float] | None:
  """What a checkpoint is worth by the metrics kept with it; None where nobody asks."""
  return (lambda metrics: metrics[config.best]) if config.best else None


class Checkpoints:
  """The checkpoints of one work directory; saving is asynchronous and atomic."""

  def __init__(self, workdir: pathlib.Path, config: CheckpointConfig = CheckpointConfig()):
    self.config, self.workdir = config, workdir
    self.directory = (workdir / FOLDER).absolute()
    self.manager = open_manager(
      self.directory,
      preservation_policy=preservation(config),
      best_fn=judge(config),  # without it Orbax keeps no metrics for the next start
      best_mode=config.best_mode,
      enable_async_checkpointing=True,
    )

  def steps(self) -> list[int]:
    """Those that are complete, oldest first."""
    return sorted(self.manager.all_steps())

  def save(self, step: int, state: State, about: About, metrics: dict[str, float] | None = None) -> None:
    """Begins to save a step; arrays are copied before it returns.

    Args:
      step: of the state.
      state: what changes.
      about: what it was trained with.
      metrics: of the step, for `checkpoint.best`.

    Raises:
      UserError: `checkpoint.best` names no metric of a step that is a multiple of `checkpoint.every`.
    """
    items = items_of(state)
    described, sums = json.dumps(dataclasses.asdict(about)), json.dumps(array_sums(items))
    self.manager.save(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardSave(item) for name, item in items.items()},
        about=ocp.args.JsonSave(dict(step=step, about=described, sums=sums, sha256=sha256(described + sums))),
      ),
      metrics=self.judged_by(step, metrics or {}),
      force=True,
    )

  def judged_by(self, step: int, metrics: dict[str, float]) -> dict[str, float] | None:
    """What is kept with a step to judge it by; None: nothing, and it is not among the best.

    A run that is asked to stop saves where it is, evaluated or not. What is not finite would upset the order.
    """
    best = self.config.best
    if best and best not in metrics and step % self.config.every == 0:
      raise UserError(f"checkpoint.best is {best!r}, which step {step} does not have. It has: {', '.join(metrics)}.")
    return {best: metrics[best]} if best in metrics and math.isfinite(metrics[best]) else None

  def restore_newest(
    self, like: State, expected: About, allowed: tuple[str, ...], say: Callable[[str], None]
  ) -> tuple[int, State]:
    """The newest state that can be read, laid out as `like` is; (0, `like`) where there is no checkpoint.

    A checkpoint that cannot be read is moved to `checkpoints-unreadable`, where there is one before it that can.

    Args:
      like: a fresh state.
      expected: what the run trains with.
      allowed: names of what may differ from that: "frozen", "data", or one part, such as "data.pages".
      say: told of what was moved.

    Raises:
      UserError: it was trained with something else; or there are checkpoints, and none can be read.
    """
    failures: dict[int, str] = {}
    for step in reversed(self.steps()):
      # Read first, and by every host, so that all go on with the same one.
      about, failure = attempt(lambda step=step: self.about(step))
      if not failure:
        check_same(self.directory / str(step), about, expected, allowed)
        found, failure = attempt(lambda step=step: self.read(step, like))
      if not failure:
        state, sums = found
        failure = differing_sums(items_of(state), sums)
      if not failure:
        for damaged, why in failures.items():
          self.set_aside(damaged, UNREADABLE)
          say(f"{why}\nIt is moved to {self.workdir / UNREADABLE}, and the run goes on from step {step}.")
        return step, state
      failures[step] = f"{self.directory / str(step)} cannot be read: {failure}"
    if failures:
      raise UserError(
        "\n".join(failures.values()) + f"\nNo checkpoint of {self.workdir} can be read. Bring one back from a copy, or "
        "start anew in another --workdir."
      )
    return 0, like

  def about(self, step: int) -> About:
    """What a checkpoint was trained with. Raises ValueError when it is damaged, or whatever Orbax does."""
    with open_reader(self.directory) as reader:
      return read_about(reader.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)

  def read(self, step: int, like: State) -> tuple[State, dict[str, int]]:
    """The state of a step, laid out as `like` is, and the sums that its arrays should have."""
    args = {name: ocp.args.StandardRestore(shapes_of(item)) for name, item in items_of(like).items()}
    with open_reader(self.directory) as reader:
      restored = reader.restore(step, args=ocp.args.Composite(**args, about=ocp.args.JsonRestore()))
    count = place(np.asarray(step, np.int32), like.step.sharding)
    return State(count, restored.trainable, restored.optimizer, restored.guard), read_sums(restored.about)

  def set_aside(self, step: int, folder: str) -> None:
    """Moves a checkpoint out of the way of those to come, into a folder of the work directory."""
    if jax.process_index() == 0:
      move_into(self.directory / str(step), self.workdir / folder)
    multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
    self.manager.reload()

  def set_rewound_aside(self, rewinds: tuple[Rewind, ...], say: Callable[[str], None]) -> None:
    """Moves the checkpoints that rewinds went back behind to `rewound`; a damaged one is left to `restore_newest`."""
    for step in self.steps() if rewinds else []:
      about, failure = attempt(lambda step=step: self.about(step))
      last = None if failure else in_force(about.rewinds, rewinds)
      if last is not None and step > last:
        self.set_aside(step, REWOUND)
        say(f"The checkpoint of step {step} is moved to {self.workdir / REWOUND}.")

  def wait(self) -> None:
    """Until what is being saved is saved. Raises what went wrong with it."""
    self.manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save."""
    self.wait()
    self.manager.close()


def attempt(read: Callable):
  """(what was read, "") or, when it failed on any host, (None, why)."""
  found, failure = None, ""
  try:
    found = read()
  except Exception as error:  # damage shows as any of a dozen errors; it is told to the user, and nothing is lost
    failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
  if jax.process_count() > 1:
    readable = multihost_utils.process_allgather(np.asarray(not failure))
    if not readable.all():
      unreadable = np.flatnonzero(~np.ravel(readable)).tolist()
      failure = failure or f"process {', '.join(map(str, unreadable))} of the job could not read it"
  return (None, failure) if failure else (found, "")


def move_into(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Moves something into a folder under a name that is free there; returns where it is."""
  folder.mkdir(parents=True, exist_ok=True)
  taken = sum(entry.name.split("-")[0] == path.name for entry in folder.iterdir())
  target = folder / (f"{path.name}-{taken}" if taken else path.name)
  os.rename(path, target)
  return target


def items_of(state: State) -> dict[str, Any]:
  """What is saved of a state, by the names of ARRAYS."""
  return dict(zip(ARRAYS, (state.trainable, state.optimizer_state, state.guard), strict=True))


def differing_sums(items: dict[str, Any], expected: dict[str, int]) -> str:
  """Which arrays are not what was saved; empty: none. All hosts call it together, and find the same."""
  if not expected:
    return ""  # saved before there were any
  wrong = [name for name, found in array_sums(items).items() if found != expected.get(name)]
  return f"{len(wrong)} arrays do not have the sum that they should, such as {wrong[0]}" if wrong else ""


def shapes_of(tree):
  return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree)


def sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def read_about(kept: dict) -> About:
  """What a checkpoint was trained with, from its JSON.

  Raises:
    ValueError: it is damaged.
  """
  check_sum(kept)
  fields = json.loads(kept["about"])
  return About(**fields | dict(rewinds=tuple(Rewind(**each) for each in fields["rewinds"])))


def read_sums(kept: dict) -> dict[str, int]:
  """The sums of a checkpoint's arrays, from its JSON; none of one from before there were any.

  Raises:
    ValueError: it is damaged.
  """
  check_sum(kept)
  return json.loads(kept["sums"]) if "sums" in kept else {}


def check_sum(kept: dict) -> None:
  whole = kept.keys() - {"sums"} == {"step", "about", "sha256"}
  if not whole or sha256(kept["about"] + kept.get("sums", "")) != kept["sha256"]:
    raise ValueError("what it says of itself does not have the checksum it should")


def check_same(checkpoint: pathlib.Path, saved: About, given: About, allowed: tuple[str, ...]) -> None:
  """Compares what a checkpoint was trained with and what is at hand.

  Raises:
    UserError: frozen parts or records that differ, or rewinds that it does not know.
  """
  faults = []
  for kind in ("frozen", "data"):
    if kind not in allowed:
      ours = dict(getattr(given, kind))
      permitted = {name for name in ours | getattr(saved, kind) if f"{kind}.{name}" in allowed}
      faults += [
        f"  {kind}.{name}: trained with {was[:12]}, found {now[:12]}"
        for name, was, now in changed(getattr(saved, kind), ours)
        if name not in permitted
      ]
  if faults:
    names = ",".join(fault.split(":")[0].strip() for fault in faults)
    raise UserError(
      f"{checkpoint}: what is at hand is not what it was trained with.\n"
      + "\n".join(faults)
      + f"\nBring that back, choose another --workdir, or go on with this by --allow-changed={names}."
    )
  if in_force(saved.rewinds, given.rewinds) is None:
    raise UserError(f"{checkpoint}: was saved after rewinds that rewinds.json does not name. Bring that file back.")


def changed(saved: dict[str, str], given: dict[str, str]) -> list[tuple[str, str, str]]:
  """(part, hash there, hash here) of all that differ."""
  names = sorted(saved.keys() | given.keys())
  pairs = [(name, saved.get(name, "none"), given.get(name, "none")) for name in names]
  return [(name, was, now) for name, was, now in pairs if was != now]


def check_frozen(checkpoint: pathlib.Path, saved: dict[str, str], given: dict[str, str]) -> None:
  """Raises UserError when a checkpoint's frozen parts are not the ones at hand."""
  faults = [f"  {part}: trained with {was[:12]}, found {now[:12]}" for part, was, now in changed(saved, given)]
  if faults:
    raise UserError(f"{checkpoint}: the frozen weights are not those it was trained with.\n" + "\n".join(faults))


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
  """The steps with a complete checkpoint in a work directory, oldest first."""
  directory = (pathlib.Path(workdir) / FOLDER).absolute()
  return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def load_trainable(workdir: str | pathlib.Path, step: int | None = None) -> tuple[dict, int, dict[str, str]]:
  """Trained parameters of a work directory as host arrays by path, their step, and the frozen hashes.

  Args:
    workdir: of the run.
    step: of the checkpoint; None: the newest.

  Raises:
    UserError: there is no complete checkpoint, or it cannot be read.
  """
  # Whatever mesh it was saved on, one device is enough to read it.
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def read(manager: ocp.CheckpointManager, step: int):
    saved = manager.item_metadata(step)["trainable"]
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for path, leaf in saved.items()}
    args = ocp.args.Composite(trainable=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    if failure := differing_sums(dict(trainable=restored.trainable), read_sums(restored.about)):
      raise ValueError(failure)
    return jax.device_get(restored.trainable), step, read_about(restored.about).frozen

  return read_checkpoint(workdir, read, step)


def load_about(workdir: str | pathlib.Path) -> About:
  """What the newest checkpoint of a work directory was trained with; raises as `load_trainable` does."""

  def read(manager: ocp.CheckpointManager, step: int) -> About:
    return read_about(manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)

  return read_checkpoint(workdir, read)


def read_checkpoint(
  workdir: str | pathlib.Path, read: Callable[[ocp.CheckpointManager, int], Any], step: int | None = None
) -> Any:
  """What `read` finds in the checkpoint of a step, or in the newest; raises as `load_trainable` does."""
  directory = (pathlib.Path(workdir) / FOLDER).absolute()
  if not directory.is_dir():
    raise UserError(f"{workdir}: no checkpoints there. Give the work directory of a finished `flamingo train`.")
  with open_reader(directory) as manager:
    step = manager.latest_step() if step is None else step
    if step is None:
      raise UserError(f"{directory}: no complete checkpoint yet. Let the run reach its first one.")
    found, failure = attempt(lambda: read(manager, step))
  if failure:
    raise UserError(
      f"{directory / str(step)} cannot be read: {failure}. `flamingo train` with the run's own --config and --workdir "
      "goes back to the checkpoint before it, where there is one."
    )
  return found
