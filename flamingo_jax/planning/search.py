"""Settings beside those of a config, nearest first, that a slice could run."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from flamingo_jax.ops.remat import POLICIES
from flamingo_jax.parallel.fit import Length, Sizes, complete, nearest

SCALES = (Fraction(1), Fraction(1, 2), Fraction(2), Fraction(1, 4), Fraction(4))  # of batch sizes


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One choice of settings.

  Attributes:
    mesh: devices along each axis.
    remat: a name of POLICIES; empty for a model that has none.
    rows: of the streams' global batches.
  """

  mesh: Sizes
  remat: str
  rows: dict[str, int]


def candidates(
  asked: Sizes, devices: int, remat: str, rows: dict[str, int], lengths: list[Length]
) -> Iterator[Candidate]:
  """All that fit devices, batches and parameters, by how many changes they are away: a factor of 2 in a size of the
  mesh, one policy, one step of SCALES.

  Args:
    asked: the mesh of the config; one size may be -1.
    devices: of the slice.
    remat: of the config.
    rows: of its streams' global batches.
    lengths: of what is cut along the mesh.
  """
  near = complete(asked, devices) or asked
  names = list(POLICIES) if remat else [remat]
  found = []
  for (step, scale), (name, policy) in itertools.product(enumerate(SCALES), enumerate(names)):
    scaled = scaled_rows(rows, scale)
    for mesh in nearest(near, devices, scaled, lengths, count=None) if scaled else ():
      changes = step + abs(name - names.index(remat)) + mesh_distance(near, mesh)
      found.append((changes, Candidate(mesh, policy, scaled)))
  return (candidate for _, candidate in sorted(found, key=lambda pair: pair[0]))


def scaled_rows(rows: dict[str, int], scale: Fraction) -> dict[str, int]:
  """Batch sizes times a number; empty where one would not be whole."""
  scaled = {name: count * scale for name, count in rows.items()}
  return (
    {name: int(count) for name, count in scaled.items()} if all(c.denominator == 1 for c in scaled.values()) else {}
  )


def mesh_distance(near: Sizes, mesh: Sizes) -> float:
  """Half the doublings and halvings between two meshes: what one axis gains another loses."""
  return sum(abs(math.log2(mesh[axis] / size)) for axis, size in near.items() if size > 0) / 2
