"""How many parameters a model has, by part, without allocating one."""

import collections

import jax
import numpy as np

from flamingo_jax.models.parameters import flat
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.step import is_trainable


def parameter_counts(objective: Objective, trainable: tuple[str, ...]) -> dict[str, tuple[int, int]]:
  """Part -> (trained, frozen) numbers of parameters."""
  counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for path, shape in flat(jax.eval_shape(objective.initialize, jax.random.key(0))).items():
    counts[part(path)][0 if is_trainable(path, trainable) else 1] += int(np.prod(shape.shape))
  return {name: (trained, frozen) for name, (trained, frozen) in counts.items()}


def part(path: str) -> str:
  """The part of the model that a parameter belongs to, as the paper counts them (table 5)."""
  if "gated_cross_attention" in path:
    return "gated cross-attention"
  if "/extra_" in path:
    return "added token embeddings"
  names = {"vision": "vision encoder", "resampler": "resampler", "language": "language model", "text": "text encoder"}
  return names.get(path.split("/")[0], "projections and temperature")
