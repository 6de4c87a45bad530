"""Holds a model against the mesh, and given parameters against the model, and puts them on the devices."""

import dataclasses
import re

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import Parameters, flat
from flamingo_jax.parallel.fit import Length, cut_lengths, fit_faults
from flamingo_jax.parallel.mesh import ShardingConfig, parameter_specs, place
from flamingo_jax.training.config import Frozen, TrainingConfig
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.step import State, boxed_shapes, first_names, is_trainable, split_shapes


def check_fit(objective: Objective, config: TrainingConfig, rows: dict[str, int], devices: int) -> None:
  """Holds the mesh against the devices, the batches and the model, and what is clipped against what is trained, before
  anything is read or allocated.

  Args:
    objective: what is minimized.
    config: how.
    rows: of the streams' global batches.
    devices: of the job.

  Raises:
    UserError: all that does not fit, and the nearest meshes that do.
  """
  lengths = lengths_to_cut(objective, config.sharding)
  faults = clip_faults(objective, config) + fit_faults(dataclasses.asdict(config.mesh), devices, rows, lengths)
  if faults:
    raise UserError("\n".join(faults))


def clip_faults(objective: Objective, config: TrainingConfig) -> list[str]:
  """Patterns of `adaptive_clip_on` that name nothing of what is trained, one line each."""
  trained = [path for path in flat(boxed_shapes(objective)) if is_trainable(path, config.trainable)]
  return [
    f"optimizer.adaptive_clip_on: the pattern {pattern!r} names no trained parameter. They start with: "
    f"{first_names(trained)}."
    for pattern in config.optimizer.adaptive_clip_on
    if not any(re.search(pattern, path) for path in trained)
  ]


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
  return dataclasses.replace(state, trainable={**state.trainable, **placed})


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
