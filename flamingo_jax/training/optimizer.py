"""AdamW as in the paper: global-norm clipping, linear warm-up, decay on what the patterns leave."""

import dataclasses
import functools
import math
import re

import jax
import optax

# Parts of a path, each an axis of layers that are looped over: of an NFNet's stage, of a transformer, and of a language
# model between its gated layers.
STACKS = {"rest", "layers", "groups"}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The paper's values (section 2.4 and appendix B.1.2); betas are not stated there."""

  learning_rate: float = 1e-4
  warmup_steps: int = 5000
  # After warm-up: "constant" (the paper), "linear" to zero at the last step, or to a tenth by then: "exponential" (its
  # fine-tuning, appendix B.2.2) or "cosine" (Chinchilla).
  schedule: str = "constant"
  weight_decay: float = 0.1
  # Patterns of parameter paths.
  no_decay: tuple[str, ...] = ("^resampler/", "norm/", "bias$", "gain$", "gate$", "extra_")
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float = 1.0
  adaptive_clip: float = 0.0  # largest norm of a unit's gradient, times that of its weights; 0: no such clipping
  adaptive_clip_on: tuple[str, ...] = ()  # patterns of the paths that are clipped so, and not by `clip_norm`


def check_optimizer(config: OptimizerConfig, total_steps: int) -> list[str]:
  """What is wrong with the settings, one line a fault."""
  faults = []
  if config.schedule not in ("constant", "linear", "exponential", "cosine"):
    faults.append(f"optimizer.schedule is {config.schedule!r}; it is 'constant', 'linear', 'exponential' or 'cosine'.")
  if config.schedule != "constant" and config.warmup_steps >= total_steps:
    faults.append(f"optimizer.warmup_steps is {config.warmup_steps}, but the run has {total_steps} steps.")
  if config.warmup_steps < 0:
    faults.append(f"optimizer.warmup_steps is {config.warmup_steps}; it is not negative.")
  if not 0 < config.learning_rate < math.inf:
    faults.append(f"optimizer.learning_rate is {config.learning_rate}; it is above 0, and finite.")
  if config.clip_norm <= 0:
    faults.append(f"optimizer.clip_norm is {config.clip_norm}; it is above 0.")
  if not 0 <= config.weight_decay < math.inf:
    faults.append(f"optimizer.weight_decay is {config.weight_decay}; it is not negative, and finite.")
  if not 0 < config.epsilon < math.inf:  # behind closed gates the first gradients are 0, and would be divided by 0
    faults.append(f"optimizer.epsilon is {config.epsilon}; it is above 0, and finite.")
  for field in ("beta1", "beta2"):
    if not 0 <= getattr(config, field) < 1:
      faults.append(f"optimizer.{field} is {getattr(config, field)}; it is a share below 1.")
  if config.adaptive_clip < 0:
    faults.append(f"optimizer.adaptive_clip is {config.adaptive_clip}; it is above 0, or 0 for none.")
  if (config.adaptive_clip > 0) != bool(config.adaptive_clip_on):
    faults.append(
      f"optimizer.adaptive_clip is {config.adaptive_clip} and optimizer.adaptive_clip_on {config.adaptive_clip_on}; "
      "set both, or neither."
    )
  return faults


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """The rate of each update, counted from 0; the first update has the first step of the warm-up, not zero."""
  peak, warmup = config.learning_rate, config.warmup_steps
  rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
  rest = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, total_steps - warmup),
    "exponential": lambda: optax.exponential_decay(peak, total_steps - warmup, 0.1),
    "cosine": lambda: optax.cosine_decay_schedule(peak, total_steps - warmup, alpha=0.1),
  }[config.schedule]()
  return optax.join_schedules([rise, rest], [warmup])


def decayed(config: OptimizerConfig, paths: list[str]) -> dict[str, bool]:
  """Which parameters weight decay touches."""
  return {path: not matches(config.no_decay, path) for path in paths}


def matches(patterns: tuple[str, ...], path: str) -> bool:
  return any(re.search(pattern, path) for pattern in patterns)


def adaptive_clip(limit: float, patterns: tuple[str, ...]) -> optax.GradientTransformation:
  """Adaptive gradient clipping (Brock et al., 2021, section 4) of the parameters whose paths match.

  The weights of each output of each layer are a unit, and each bias and gain.
  """
  clip = optax.adaptive_grad_clip(limit)

  def of_layer(path: str, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    units = by_output(path, parameter)
    return clip.update(by_output(path, gradient), clip.init(units), units)[0].reshape(gradient.shape)

  def update(gradients, state, parameters):
    clipped = {}
    for path in (path for path in gradients if matches(patterns, path)):
      of_stack = functools.partial(of_layer, path)
      for _ in STACKS.intersection(path.split("/")):
        of_stack = jax.vmap(of_stack)
      clipped[path] = of_stack(gradients[path], parameters[path])
    return gradients | clipped, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def by_output(path: str, weights: jax.Array) -> jax.Array:
  """The weights of a layer with one axis of inputs, where attention has one of heads and one of their width."""
  if path.endswith("/output/kernel") and weights.ndim == 3:
    return weights.reshape(-1, weights.shape[-1])
  return weights.reshape(-1) if path.endswith("bias") else weights


def clipping(config: OptimizerConfig) -> optax.GradientTransformation:
  """Of the global norm; where some parameters are clipped adaptively, of that of the others."""
  of_norm = optax.clip_by_global_norm(config.clip_norm)
  if not config.adaptive_clip:
    return of_norm
  patterns = config.adaptive_clip_on
  others = optax.masked(of_norm, lambda gradients: {path: not matches(patterns, path) for path in gradients})
  return optax.chain(adaptive_clip(config.adaptive_clip, patterns), others)


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  """Clips once, on the sum of all streams' gradients, then AdamW with `rate`, such as from `learning_rate`."""
  return optax.chain(
    clipping(config),
    optax.adamw(
      rate,
      b1=config.beta1,
      b2=config.beta2,
      eps=config.epsilon,
      weight_decay=config.weight_decay,
      mask=lambda parameters: decayed(config, list(parameters)),
    ),
  )
