"""What a compiled program sends between chips, with its loops."""

import collections
import dataclasses
import math
import re

import numpy as np

from flamingo_jax.planning.hlo import Computation, Instruction, Module, UnreadableModule, walk

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
STARTS = {kind + ending: kind for kind in KINDS for ending in ("", "-start")} | {"ragged-all-to-all": "all-to-all"}

SENT = {  # bytes that a chip sends of the array's, in a group of so many: by rings, which send the fewest
  "all-reduce": lambda group: 2 * (group - 1) / group,
  "all-gather": lambda group: (group - 1) / group,
  "reduce-scatter": lambda group: (group - 1) / group,
  "all-to-all": lambda group: (group - 1) / group,
  "collective-permute": lambda group: 1,
  "collective-broadcast": lambda group: 1,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction.

  Attributes:
    kind: one of KINDS.
    bytes: of the array on one chip, before or after, whichever is larger.
    group: the devices that one chip exchanges with, itself among them, by their number in the program.
    times: that it runs in one step.
  """

  kind: str
  bytes: float
  group: tuple[int, ...]
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a chip sends in one step."""
    return self.times * self.bytes * SENT[self.kind](len(self.group))


def collectives(module: Module) -> list[Collective]:
  """All of a module; those that start and are done later count once.

  Raises:
    UnreadableModule: a loop, a group or a dtype that is not understood.
  """
  found = []
  for computation, instruction, times in walk(module):
    kind = STARTS.get(instruction.opcode)
    if kind is None:
      continue
    group = group_of(instruction.attributes, module.devices)
    size = sum(array.bytes for name in instruction.operands for array in computation.instructions[name].arrays)
    size *= len(group) if kind == "all-gather" else 1
    kind = "reduce-scatter" if kind == "all-reduce" and is_scattered(computation, instruction) else kind
    found.append(Collective(kind, size, group, times))
  return found


def is_scattered(computation: Computation, reduced: Instruction) -> bool:
  """Whether a chip keeps its own part of a sum only: the TPU's compiler writes a reduce-scatter as such a fusion."""
  return computation.name.startswith("all-reduce-scatter")


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
  """Bytes of the arrays that a chip hands in or is given, whichever is larger, in one step."""
  totals: collections.Counter[str] = collections.Counter()
  for collective in found:
    totals[collective.kind] += round(collective.times * collective.bytes)
  return {kind: totals[kind] for kind in KINDS if kind in totals}


def group_of(attributes: str, devices: int) -> tuple[int, ...]:
  """The first group of devices of a collective; the others are as large.

  Groups are written as lists, as a range that is reshaped and transposed, or by axes of a mesh.

  Raises:
    UnreadableModule: they are written in another way.
  """
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", attributes)
  if pairs:
    ends = [tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs.group(1))]
    return next((pair for pair in ends if len(set(pair)) > 1), ends[0])  # some may stay where they are
  groups = re.search(r"replica_groups=(.*?)(?:, [a-z_]+=|$)", attributes)
  written = groups.group(1) if groups else "{}"
  if written == "{}":
    return tuple(range(devices))
  listed = re.match(r"\{\{([\d,]+)\}", written)
  if listed:
    return tuple(map(int, listed.group(1).split(",")))
  ranged = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", written)
  if ranged:
    shape, source, order = (numbers(part) for part in ranged.groups())
    ids = np.arange(math.prod(source)).reshape(source)
    return tuple(map(int, (ids.transpose(order) if order else ids).reshape(shape)[0]))
  meshed = re.fullmatch(r"mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',?)+)\}", written)
  if meshed:
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
    along = re.findall(r"'(\w+)'", meshed.group(2))
    ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    return tuple(map(int, ids[tuple(slice(None) if axis in along else 0 for axis in sizes)].reshape(-1)))
  raise UnreadableModule(f"which chips are meant by {written!r}")


def numbers(text: str | None) -> tuple[int, ...]:
  return tuple(map(int, text.split(","))) if text else ()


def interconnect_seconds(found: list[Collective], places: np.ndarray, link_bandwidth: float) -> float:
  """The least time for what a chip sends, were all links of a torus axis busy together.

  A group sends along the axes on which its chips differ, both ways on each. Axes work side by side.

  Args:
    found: the collectives.
    places: int [devices, axes], where each device of the program stands in the torus.
    link_bandwidth: bytes a second of one link, one way.
  """
  load = np.zeros(places.shape[1])
  for collective in found:
    chips = places[list(collective.group)]
    axes = np.flatnonzero(chips.max(axis=0) > chips.min(axis=0))
    if len(axes):
      load[axes] += collective.sent / len(axes)
  return float(load.max() / (2 * link_bandwidth))
