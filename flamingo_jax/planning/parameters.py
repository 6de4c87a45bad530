"""How many parameters a model has, by part, without allocating one."""

import collections
import dataclasses

import numpy as np

from flamingo_jax.models.parameters import flat
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.step import boxed_shapes, is_trainable

PARTS = (  # as the paper counts them (table 1), in the order of the data
  "vision encoder",
  "resampler",
  "gated cross-attention",
  "language model",
  "added token embeddings",
  "text encoder",
  "projections and temperature",
)


def parameter_counts(objective: Objective, trainable: tuple[str, ...]) -> dict[str, tuple[int, int]]:
  """Part -> (trained, frozen) numbers of parameters, in the order of PARTS."""
  counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for path, shape in flat(boxed_shapes(objective)).items():
    counts[part(path)][0 if is_trainable(path, trainable) else 1] += int(np.prod(shape.shape))
  return {name: (counts[name][0], counts[name][1]) for name in PARTS if name in counts}


def part(path: str) -> str:
  """The part of the model that a parameter belongs to."""
  if "gated_cross_attention" in path:
    return "gated cross-attention"
  if "/extra_" in path:
    return "added token embeddings"
  names = {"vision": "vision encoder", "resampler": "resampler", "language": "language model", "text": "text encoder"}
  return names.get(path.split("/")[0], "projections and temperature")


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One part's parameters beside what was published; None where nothing was."""

  part: str
  trained: int
  frozen: int
  published: float | None

  @property
  def count(self) -> int:
    return self.trained + self.frozen

  @property
  def difference(self) -> float | None:
    """How much more we count, in percent of what was published."""
    return None if self.published is None else 100 * (self.count / self.published - 1)


def compare(counts: dict[str, tuple[int, int]], published: dict[str, float]) -> list[Comparison]:
  """Every part, and their total, beside the published figures."""
  trained, frozen = (sum(column) for column in zip(*counts.values(), strict=True))
  rows = counts | {"total": (trained, frozen)}
  return [Comparison(part, own, fixed, published.get(part)) for part, (own, fixed) in rows.items()]
