"""Which updates are not made: those of numbers that are not finite, and of losses far above what went before."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """When an update is left out, and when a run stops by itself."""

  skips_in_a_row: int = 10  # updates left out one after another at which the run stops, with a crash bundle
  spike: float = 0.0  # standard deviations above the running mean from which a loss is skipped; 0: none is
  spike_window: int = 100  # updates, over which mean and deviation run; no loss is skipped before so many
  hang_seconds: float = (
    1800.0  # without the end of a step, after which stacks are written and the process ends; 0: never
  )


GUARDED = GuardConfig()


def check_guards(config: GuardConfig) -> list[str]:
  """What is wrong with the settings, one line a fault."""
  limits = dict(skips_in_a_row=1, spike=0.0, spike_window=2, hang_seconds=0.0)
  return [
    f"guard.{field} is {getattr(config, field)}; it is at least {least}."
    for field, least in limits.items()
    if getattr(config, field) < least
  ]


@flax.struct.dataclass
class Guard:
  """What the guards remember from step to step; part of a checkpoint, so that a run goes on as it would have.

  Attributes:
    in_a_row: int32, updates left out since the last one that was made.
    skipped: int32, updates left out since the run began.
    mean, variance: float32, of the losses of the updates made, over the spike window; whether or not spikes are left
      out, so that a run may begin to at any start.
  """

  in_a_row: jax.Array
  skipped: jax.Array
  mean: jax.Array
  variance: jax.Array


def fresh_guard() -> Guard:
  return Guard(np.zeros((), np.int32), np.zeros((), np.int32), np.zeros((), np.float32), np.zeros((), np.float32))


def judge(
  guard: Guard, config: GuardConfig, made: jax.Array, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[jax.Array, Guard, dict[str, jax.Array]]:
  """Whether an update is made.

  Args:
    guard: before the step.
    config: the limits.
    made: int32, updates made so far.
    loss: of the step, float32.
    gradient_norm: of the step, float32.

  Returns:
    (bool, the guard after the step, why it was left out: int32 by cause).
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
  spike = jnp.zeros((), bool)
  if config.spike:
    limit = guard.mean + config.spike * jnp.sqrt(guard.variance)
    spike = finite & (made >= config.spike_window) & (loss > limit)
  accepted = finite & ~spike
  mean, variance = running(guard, config, made, loss)
  after = Guard(
    in_a_row=jnp.where(accepted, 0, guard.in_a_row + 1),
    skipped=guard.skipped + ~accepted,
    mean=jnp.where(accepted, mean, guard.mean),
    variance=jnp.where(accepted, variance, guard.variance),
  )
  causes = {"nonfinite": ~finite, "spike": spike}
  return accepted, after, {cause: found.astype(jnp.int32) for cause, found in causes.items()}


def running(guard: Guard, config: GuardConfig, made: jax.Array, loss: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance with one more loss: of all so far, and exponentially forgetting once a window is full."""
  share = 1.0 / jnp.minimum(made + 1, config.spike_window)
  change = loss - guard.mean
  return guard.mean + share * change, (1 - share) * (guard.variance + share * change**2)
