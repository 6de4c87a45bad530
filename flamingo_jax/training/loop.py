"""The train loop: one for every objective, read top to bottom. Files, logs and devices are touched here only."""

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parallel.fit import Length, cut_lengths, fit_faults
from flamingo_jax.parallel.mesh import MeshConfig, ShardingConfig, make_mesh, parameter_specs, place
from flamingo_jax.training.checkpoints import Checkpoints
from flamingo_jax.training.metrics import MetricsLog
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from flamingo_jax.training.prefetch import HostBatches, placed
from flamingo_jax.training.progress import TrainingProgress
from flamingo_jax.training.step import (
  State,
  boxed_shapes,
  initial_state,
  jitted,
  make_train_step,
  slot_shardings,
  split_shapes,
)
from flamingo_jax.training.tally import make_tally


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and how much to keep."""

  every: int = 1000  # steps; the last step is always saved
  keep: int = 1


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """How a run goes, whatever it trains."""

  total_steps: int = 500_000
  seed: int = 0
  trainable: tuple[str, ...] = ("^resampler/", "/gated_cross_attention/", "extra_")  # patterns of parameter paths
  frozen_dtype: str = "bfloat16"  # of frozen parameters, stored on the devices and applied
  evaluate_every: int = 1000  # steps; also before the first and after the last
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  sharding: ShardingConfig = ShardingConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()


@dataclasses.dataclass(frozen=True)
class Feed:
  """What the loop needs to know of the data.

  Attributes:
    batches_from: from a step to this host's batches of it and of the steps after it; with them, what is only counted,
      under the same names on every host. The record has the sum over all hosts, where it is not 0.
    weights: of the streams' losses.
    rows: of the streams' global batches.
  """

  batches_from: Callable[[int], Iterator[tuple[HostBatches, dict[str, int]]]]
  weights: dict[str, float]
  rows: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The parameters that are not drawn at random.

  Attributes:
    parameters: those that stay as they are, host arrays by path.
    hashes: a content hash for each part they came from.
    start: trained ones that begin from these values, by path; the others are drawn.
  """

  parameters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  hashes: dict[str, str] = dataclasses.field(default_factory=dict)
  start: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


Evaluate = Callable[[Parameters, Mesh, bool], dict[str, float]]  # (all parameters, mesh, is baseline) -> metrics


def train(
  objective: Objective,
  config: TrainingConfig,
  feed: Feed,
  frozen: Frozen,
  evaluate: Evaluate,
  workdir: pathlib.Path,
  record: dict,
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

  Raises:
    UserError: the mesh does not fit the devices or the batches, frozen parameters do not fit the model or are not
      those of the checkpoint, or `workdir` belongs to another config.
  """
  check_fit(objective, config, feed.rows, jax.device_count())
  mesh = make_mesh(config.mesh)
  rate = learning_rate(config.optimizer, config.total_steps)
  optimizer = make_optimizer(config.optimizer, rate)
  with jax.set_mesh(mesh):
    held = place_frozen(objective, frozen, mesh, config)
    fresh = initial_state(objective, optimizer, mesh, config.trainable, config.seed, config.sharding)
    state = begin_from(frozen.start, fresh)
    placement = slot_shardings(objective, mesh, config.trainable, config.sharding)
    step_function = jitted(make_train_step(objective, optimizer, rate, feed.weights, placement), state)
    leads = jax.process_index() == 0
    if leads:
      claim_workdir(workdir, record)
    multihost_utils.sync_global_devices("the work directory is claimed")
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    start = checkpoints.latest() or 0
    if start:
      state = checkpoints.restore(start, state, frozen.hashes)
    tally, log = make_tally(mesh), MetricsLog(workdir, start, active=leads)
    with TrainingProgress(objective.name, config.total_steps, start, active=leads) as progress:
      progress.say(opening(objective, config, mesh, state, held, start))
      extra = {} if start else prefixed("baseline", evaluate({**state.trainable, **held}, mesh, True))
      batches = placed(itertools.islice(feed.batches_from(start), config.total_steps - start), mesh)
      for step in range(start + 1, config.total_steps + 1):
        began = time.perf_counter()
        step_batches, counts = next(batches)
        tallied = tally(counts, time.perf_counter() - began)
        state, device_metrics = step_function(state, held, step_batches)
        device_metrics, (counted, waited) = jax.device_get((device_metrics, tallied))
        metrics = {name: float(value) for name, value in device_metrics.items()}
        metrics |= {name: int(number) for name, number in zip(sorted(counts), counted, strict=True) if number}
        metrics |= timing(metrics["tokens"], began, float(waited)) | extra
        extra = {}
        if step % config.evaluate_every == 0 or step == config.total_steps:
          metrics |= evaluate({**state.trainable, **held}, mesh, False)
        log.write(step, metrics)
        progress.update(step, metrics)
        if step % config.checkpoint.every == 0 or step == config.total_steps:
          checkpoints.save(step, state, frozen.hashes)
    checkpoints.close()
    log.close()
  return state


def check_fit(objective: Objective, config: TrainingConfig, rows: dict[str, int], devices: int) -> None:
  """Holds the mesh against the devices, the batches and the model, before anything is read or allocated.

  Args:
    objective: what is minimized.
    config: how.
    rows: of the streams' global batches.
    devices: of the job.

  Raises:
    UserError: all that does not fit, and the nearest meshes that do.
  """
  faults = fit_faults(dataclasses.asdict(config.mesh), devices, rows, lengths_to_cut(objective, config.sharding))
  if faults:
    raise UserError("\n".join(faults))


def lengths_to_cut(objective: Objective, sharding: ShardingConfig) -> list[Length]:
  """What of a model has to divide by the mesh."""
  boxed = boxed_shapes(objective)
  spread = "fsdp" if "fsdp" in dataclasses.astuple(sharding) else "model"  # the former cuts all the latter does
  return cut_lengths(boxed, parameter_specs(boxed, spread))


def place_frozen(objective: Objective, frozen: Frozen, mesh: Mesh, config: TrainingConfig) -> Parameters:
  """Puts the frozen parameters on the devices, in `frozen_dtype`.

  Raises:
    UserError: parameters that are missing, left over, or of another shape, all at once.
  """
  _, expected, shardings = split_shapes(objective, mesh, config.trainable, config.sharding)
  check_parameters(expected, frozen.parameters)
  dtype = jax.numpy.dtype(config.frozen_dtype)
  return {path: place(frozen.parameters[path].astype(dtype), shardings[path]) for path in expected}


def begin_from(start: dict[str, np.ndarray], state: State) -> State:
  """Puts the values that trained parameters begin from in the place of those that were drawn.

  Raises:
    UserError: parameters that the model does not train, or of another shape, all at once.
  """
  known = {path: array for path, array in state.trainable.items() if path in start}
  check_parameters(known, start)
  placed = {path: place(start[path].astype(array.dtype), array.sharding) for path, array in known.items()}
  return state.replace(trainable={**state.trainable, **placed})


def check_parameters(expected: dict, found: dict[str, np.ndarray]) -> None:
  """Compares given parameters with the model's, and names everything that does not fit."""
  faults = [f"  {path} {shape.shape}: missing" for path, shape in expected.items() if path not in found]
  faults += [f"  {path} {array.shape}: not in the model" for path, array in found.items() if path not in expected]
  faults += [
    f"  {path}: the model has {shape.shape}, the weights {found[path].shape}"
    for path, shape in expected.items()
    if path in found and found[path].shape != shape.shape
  ]
  if faults:
    raise UserError("The weights do not fit the model:\n" + "\n".join(faults))


def timing(tokens: float, began: float, waited: float) -> dict[str, float]:
  """Seconds of a step, and the share of them that went by waiting for input; tokens without padding.

  Another host may have begun the step a moment before this one, and waited a moment longer than it took here.
  """
  seconds = time.perf_counter() - began
  share = min(waited / seconds, 1.0)
  return dict(tokens=int(tokens), seconds=seconds, tokens_per_second=tokens / seconds, input_wait=share)


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


def claim_workdir(workdir: pathlib.Path, config: dict) -> None:
  """Writes the config into a new work directory, or checks that the directory belongs to it.

  Raises:
    UserError: the directory holds a run of another config; every difference is named.
  """
  path = workdir / "config.json"
  if path.exists():
    differences = differing(json.loads(path.read_text()), json.loads(json.dumps(config)))
    if differences:
      raise UserError(
        f"{workdir} belongs to another config:\n" + "\n".join(differences) + "\nChoose another --workdir."
      )
    return
  unfinished = workdir / "config.json.new"
  if workdir.exists() and any(entry != unfinished for entry in workdir.iterdir()):
    raise UserError(f"{workdir}: not empty, and not the work directory of a run (no config.json). Choose another.")
  workdir.mkdir(parents=True, exist_ok=True)
  unfinished.write_text(json.dumps(config, indent=2))
  unfinished.replace(path)


def differing(there: dict, here: dict, prefix: str = "") -> list[str]:
  """Field by field, what two configs disagree on."""
  lines = []
  for name in sorted(there.keys() | here.keys()):
    left, right = there.get(name, "(absent)"), here.get(name, "(absent)")
    if isinstance(left, dict) and isinstance(right, dict):
      lines += differing(left, right, f"{prefix}{name}.")
    elif left != right:
      lines.append(f"  {prefix}{name}: {left!r} there, {right!r} here")
  return lines
