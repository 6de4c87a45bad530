"""The real training step, compiled for devices that need not be there."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import batch_sharding
from flamingo_jax.training.config import TrainingConfig
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.step import abstract_state, jitted, laid, make_train_step, slot_shardings, split_shapes

BatchShapes = dict[str, jax.ShapeDtypeStruct]

OVERFLOW = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")


@dataclasses.dataclass(frozen=True)
class Streams:
  """What a step reads.

  Attributes:
    shapes: of each stream's global batch (docs/batch.md).
    weights: of their losses.
  """

  shapes: dict[str, BatchShapes]
  weights: dict[str, float]


class TooLarge(UserError):
  """The compiler found no way to run the step in the memory of a chip.

  Attributes:
    needed: bytes that it would take; None where the compiler does not say.
  """

  def __init__(self, message: str, needed: int | None):
    super().__init__(message)
    self.needed = needed


def lower_step(objective: Objective, config: TrainingConfig, streams: Streams, mesh: Mesh) -> jax.stages.Lowered:
  """The step that `train` runs, traced and partitioned for a mesh; nothing is allocated.

  Raises:
    UserError: a pattern of `config.trainable` names no parameter, or the mesh does not divide the parameters.
  """
  rate = learning_rate(config.optimizer, config.total_steps)
  optimizer = make_optimizer(config.optimizer, rate)
  state, held, batches = abstract_arguments(objective, config, streams, mesh)
  placement = slot_shardings(objective, mesh, config.trainable, config.sharding)
  step = jitted(make_train_step(objective, optimizer, rate, streams.weights, placement, config.guard), state)
  with jax.set_mesh(mesh):
    return step.lower(state, held, batches)


def abstract_arguments(objective: Objective, config: TrainingConfig, streams: Streams, mesh: Mesh):
  """(state, frozen parameters, batches) of a step: shapes, dtypes and where they lie."""
  optimizer = make_optimizer(config.optimizer, learning_rate(config.optimizer, config.total_steps))
  state = abstract_state(objective, optimizer, mesh, config.trainable, config.sharding)
  batches = {
    name: {part: laid(shape, batch_sharding(mesh)) for part, shape in shapes.items()}
    for name, shapes in streams.shapes.items()
  }
  return state, frozen_shapes(objective, config, mesh), batches


def frozen_shapes(objective: Objective, config: TrainingConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Of the frozen parameters, as they lie on the devices."""
  _, frozen, shardings = split_shapes(objective, mesh, config.trainable, config.sharding)
  dtype = jnp.dtype(config.frozen_dtype)
  return {path: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shardings[path]) for path, shape in frozen.items()}


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles it.

  Raises:
    TooLarge: it does not fit a chip.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found = OVERFLOW.search(str(error))
    if not found:
      raise TooLarge(f"the step does not fit a chip: {str(error).splitlines()[0]}", None) from error
    needed, limit = in_bytes(*found.groups()[:2]), in_bytes(*found.groups()[2:])
    text = f"the step takes {needed / 2**30:.1f} GiB of a chip, which has {limit / 2**30:.1f}"
    raise TooLarge(text, needed) from error


def in_bytes(number: str, unit: str) -> int:
  return round(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))
