"""AdamW as in the paper: global-norm clipping, linear warm-up, decay on what the patterns leave."""

import dataclasses
import re

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The paper's values (section 2.4 and appendix B.1.2); betas are not stated there."""

  learning_rate: float = 1e-4
  warmup_steps: int = 5000
  # After warm-up: "constant" (the paper), "linear" to zero at the last step, or "exponential" to a tenth by then (its
  # fine-tuning, appendix B.2.2).
  schedule: str = "constant"
  weight_decay: float = 0.1
  no_decay: tuple[str, ...] = ("^resampler/", "norm/", "bias$", "gate$", "extra_")  # patterns of parameter paths
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float = 1.0


def check_optimizer(config: OptimizerConfig, total_steps: int) -> list[str]:
  """What is wrong with the settings, one line a fault."""
  faults = []
  if config.schedule not in ("constant", "linear", "exponential"):
    faults.append(f"optimizer.schedule is {config.schedule!r}; it is 'constant', 'linear' or 'exponential'.")
  if config.schedule != "constant" and config.warmup_steps >= total_steps:
    faults.append(f"optimizer.warmup_steps is {config.warmup_steps}, but the run has {total_steps} steps.")
  if config.warmup_steps < 0:
    faults.append(f"optimizer.warmup_steps is {config.warmup_steps}; it is not negative.")
  for field in ("learning_rate", "clip_norm"):
    if getattr(config, field) <= 0:
      faults.append(f"optimizer.{field} is {getattr(config, field)}; it is above 0.")
  return faults


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """The rate of each update, counted from 0; the first update has the first step of the warm-up, not zero."""
  peak, warmup = config.learning_rate, config.warmup_steps
  rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
  rest = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, total_steps - warmup),
    "exponential": lambda: optax.exponential_decay(peak, total_steps - warmup, 0.1),
  }[config.schedule]()
  return optax.join_schedules([rise, rest], [warmup])


def decayed(config: OptimizerConfig, paths: list[str]) -> dict[str, bool]:
  """Which parameters weight decay touches."""
  return {path: not any(re.search(pattern, path) for pattern in config.no_decay) for path in paths}


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  """Clips once, on the sum of all streams' gradients, then AdamW with `rate`, such as from `learning_rate`."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      rate,
      b1=config.beta1,
      b2=config.beta2,
      eps=config.epsilon,
      weight_decay=config.weight_decay,
      mask=lambda parameters: decayed(config, list(parameters)),
    ),
  )
