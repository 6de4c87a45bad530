"""One update: the gradients of all streams accumulate, are clipped once, and move the trainable parameters."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import Parameters, flat
from flamingo_jax.parallel.mesh import FULLY_SHARDED, ShardingConfig, parameter_shardings, place, replicated
from flamingo_jax.training.guards import GUARDED, Guard, GuardConfig, fresh_guard, judge
from flamingo_jax.training.objectives import Objective, mean, means


@flax.struct.dataclass
class State:
  """What a checkpoint holds: steps done, trainable parameters, optimizer state, guard; all float32 but the counts."""

  step: jax.Array
  trainable: Parameters
  optimizer_state: optax.OptState
  guard: Guard = dataclasses.field(default_factory=fresh_guard)


@functools.lru_cache(maxsize=4)  # tracing a model takes seconds, and it would be done anew under every mesh
def boxed_shapes(objective: Objective) -> dict:
  """The shapes of all parameters, boxed with their logical axes; nothing is allocated."""
  return jax.eval_shape(objective.initialize, jax.random.key(0))


def is_trainable(path: str, patterns: tuple[str, ...]) -> bool:
  return any(re.search(pattern, path) for pattern in patterns)


def split_shapes(objective: Objective, mesh: Mesh, patterns: tuple[str, ...], sharding: ShardingConfig = FULLY_SHARDED):
  """Shapes and shardings of the two parameter trees, nothing allocated.

  Returns:
    (trainable shapes, frozen shapes, shardings of both), each by path.

  Raises:
    UserError: a pattern that names no parameter.
  """
  boxed = boxed_shapes(objective)
  shapes = flat(boxed)
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in shapes):
      raise UserError(f"trainable: the pattern {pattern!r} names no parameter. They start with: {first_names(shapes)}.")
  trainable = {path: shape for path, shape in shapes.items() if is_trainable(path, patterns)}
  frozen = {path: shape for path, shape in shapes.items() if path not in trainable}
  of_trained = parameter_shardings(boxed, mesh, sharding.trainable)
  of_frozen = parameter_shardings(boxed, mesh, sharding.frozen)
  return trainable, frozen, {path: (of_trained if path in trainable else of_frozen)[path] for path in shapes}


def first_names(paths: Iterable[str]) -> str:
  return ", ".join(sorted({path.split("/")[0] for path in paths}))


def slot_shardings(
  objective: Objective, mesh: Mesh, patterns: tuple[str, ...], sharding: ShardingConfig = FULLY_SHARDED
) -> dict[str, NamedSharding]:
  """Where the gradient and the optimizer's slots of each trained parameter lie."""
  boxed = boxed_shapes(objective)
  found = parameter_shardings(boxed, mesh, sharding.optimizer)
  return {path: where for path, where in found.items() if is_trainable(path, patterns)}


def abstract_state(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  patterns: tuple[str, ...],
  sharding: ShardingConfig = FULLY_SHARDED,
) -> State:
  """Shapes, dtypes and shardings of a state; nothing is allocated."""
  shapes, _, shardings = split_shapes(objective, mesh, patterns, sharding)
  placement = slot_shardings(objective, mesh, patterns, sharding)
  slots = optimizer_shardings(optimizer, shapes, placement, mesh)
  return State(
    jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)),
    {path: laid(shape, shardings[path]) for path, shape in shapes.items()},
    jax.tree.map(laid, jax.eval_shape(optimizer.init, shapes), slots),
    jax.tree.map(lambda value: laid(value, replicated(mesh)), fresh_guard()),
  )


def laid(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def placements(tree):
  """Where the arrays of a tree lie."""
  return jax.tree.map(lambda array: array.sharding, tree)


def initial_state(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  patterns: tuple[str, ...],
  seed: int,
  sharding: ShardingConfig = FULLY_SHARDED,
) -> State:
  """A fresh state, made where it will live. Parameters that are not trainable are never computed."""

  def trainable_only(key: jax.Array) -> Parameters:
    everything = flat(objective.initialize(key))
    return {path: array for path, array in everything.items() if is_trainable(path, patterns)}

  where = placements(abstract_state(objective, optimizer, mesh, patterns, sharding))
  trainable = jax.jit(trainable_only, out_shardings=where.trainable)(jax.random.key(seed))
  slots = jax.jit(optimizer.init, out_shardings=where.optimizer_state)(trainable)
  guard = jax.tree.map(place, fresh_guard(), where.guard)
  return State(place(np.zeros((), np.int32), where.step), trainable, slots, guard)


def optimizer_shardings(
  optimizer: optax.GradientTransformation, shapes: Parameters, placement: dict[str, NamedSharding], mesh: Mesh
):
  """Optimizer slots lie where `placement` says for their parameters; counters are everywhere."""
  slots = jax.eval_shape(optimizer.init, shapes)
  return optax.tree_map_params(
    optimizer, lambda _, sharding: sharding, slots, placement, transform_non_params=lambda _: replicated(mesh)
  )


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  weights: dict[str, float],
  placement: dict[str, NamedSharding] | None = None,
  guard: GuardConfig = GUARDED,
) -> Callable[[State, Parameters, dict[str, dict[str, jax.Array]]], tuple[State, dict[str, jax.Array]]]:
  """The update of one step from one batch of every stream (paper, section 2.4 and equation 2).

  Args:
    objective: what is minimized.
    optimizer: from `make_optimizer`.
    rate: the schedule it was made with, for the log.
    weights: of the streams' mean losses in the sum.
    placement: where gradients lie, from `slot_shardings`; None: the compiler decides.
    guard: which updates are left out. Optimizer and schedule count those that are made.

  Returns:
    A function (state, frozen, batches) -> (state, metrics), for `jitted`. Gradients are of `state.trainable` only.
  """

  def stream_loss(trainable: Parameters, frozen: Parameters, batch: dict, weight: float):
    loss = objective.loss({**trainable, **frozen}, batch)
    value = mean(loss.total, loss.weight)
    return weight * value, {"loss": value, "loss_weight": loss.weight, **means(loss.parts)}

  def placed(gradients: Parameters) -> Parameters:
    return gradients if placement is None else jax.lax.with_sharding_constraint(gradients, placement)

  def train_step(state: State, frozen: Parameters, batches: dict[str, dict[str, jax.Array]]):
    total, gradients = jnp.zeros(()), None
    metrics = {"tokens": sum((batch["segments"] > 0).sum() for batch in batches.values())}
    for name, batch in batches.items():
      # The barrier puts streams one after another: side by side they would hold all their activations at once.
      trainable, gradients = jax.lax.optimization_barrier((state.trainable, gradients))
      (value, parts), gradient = jax.value_and_grad(stream_loss, has_aux=True)(trainable, frozen, batch, weights[name])
      gradients = placed(gradient if gradients is None else jax.tree.map(jnp.add, gradients, gradient))
      total += value
      metrics |= {f"{part}/{name}": number for part, number in parts.items()}
    updates, slots = optimizer.update(gradients, state.optimizer_state, state.trainable)
    norm, made = optax.tree.norm(gradients), state.step - state.guard.skipped
    accepted, after, causes = judge(state.guard, guard, made, total, norm)
    before = (state.trainable, state.optimizer_state)
    moved = (optax.apply_updates(state.trainable, updates), slots)
    trainable, slots = jax.tree.map(functools.partial(jnp.where, accepted), moved, before)
    metrics |= {"loss": total, "gradient_norm": norm, "learning_rate": rate(made)}
    metrics |= {f"skipped_update/{cause}": found for cause, found in causes.items()}
    metrics |= {"skipped_in_a_row": after.in_a_row}
    return State(state.step + 1, trainable, slots, after), metrics

  return train_step


def jitted(train_step: Callable, state: State) -> jax.stages.Wrapped:
  """The update as it is run: in the place of the state it is given, and laid out like it."""
  return jax.jit(train_step, donate_argnums=0, out_shardings=(placements(state), None))
