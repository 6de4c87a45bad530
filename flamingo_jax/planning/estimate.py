"""What one step costs on a slice: memory, operations, traffic, and the least time all that can take."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.language_model import LanguageModelConfig
from flamingo_jax.planning import hlo
from flamingo_jax.planning.collectives import bytes_by_kind, collectives, interconnect_seconds
from flamingo_jax.planning.flops import Flops, contrastive_flops, flamingo_flops, language_flops, total
from flamingo_jax.planning.step import Streams
from flamingo_jax.planning.topologies import Generation
from flamingo_jax.planning.work import memory_bytes, product_flops

DAY = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each chip.

  Attributes:
    arguments: parameters, optimizer state and batches.
    temporaries: what the step needs beside them at most.
    peak: of everything together.
  """

  arguments: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A compiled step on a slice.

  Attributes:
    generation: of the chips.
    mesh: devices along each axis.
    memory: on each chip.
    flops: operations that the model needs, all chips together, by part.
    tokens: text positions of a step, all streams and chips together.
    compiled_flops: operations of matrix products that each chip does, what is computed again among them.
    memory_traffic: bytes that each chip moves between its memory and its cores.
    collective_bytes: bytes of each chip's arrays that are exchanged, by kind.
    interconnect_seconds: the least time of a step for that.
  """

  generation: Generation
  mesh: dict[str, int]
  memory: Memory
  flops: dict[str, Flops]
  tokens: int
  compiled_flops: float
  memory_traffic: float
  collective_bytes: dict[str, int]
  interconnect_seconds: float

  @property
  def chips(self) -> int:
    return math.prod(self.mesh.values())

  @property
  def model_flops(self) -> float:
    """Operations of one step that the model needs, all chips together."""
    return total(self.flops.values()).all

  @property
  def seconds(self) -> dict[str, float]:
    """The least time of a step for each of three things that go on side by side at best."""
    return {
      "compute": self.compiled_flops / self.generation.flops,
      "memory": self.memory_traffic / self.generation.hbm_bandwidth,
      "interconnect": self.interconnect_seconds,
    }

  @property
  def step_seconds(self) -> float:
    """The roofline: no step is faster than the slowest of the three."""
    return max(self.seconds.values())

  @property
  def utilization(self) -> float:
    """The most that model FLOPs utilization can be."""
    return self.model_flops / (self.chips * self.generation.flops * self.step_seconds)

  def days(self, steps: int) -> float:
    return steps * self.step_seconds / DAY


def estimate(
  compiled: jax.stages.Compiled,
  model: FlamingoConfig | ContrastiveConfig | LanguageModelConfig,
  trained: tuple[str, ...],
  streams: Streams,
  mesh: Mesh,
  generation: Generation,
) -> Estimate:
  """Reads a compiled step.

  Args:
    compiled: for the devices of `mesh`.
    model: whose step it is.
    trained: the paths of its trained parameters.
    streams: what the step reads.
    mesh: of a slice.
    generation: of its chips.

  Raises:
    UnreadableModule: a loop, a kernel or a collective of the program that is not understood.
  """
  module = hlo.parse(compiled.as_text())
  exchanged = collectives(module)
  places = np.array([device.coords for device in mesh.devices.flat])
  memory = compiled.memory_analysis()
  return Estimate(
    generation=generation,
    mesh=dict(mesh.shape),
    memory=Memory(memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes),
    flops=model_flops(model, trained, streams),
    tokens=sum(math.prod(shapes["tokens"].shape) for shapes in streams.shapes.values()),
    compiled_flops=product_flops(module),
    memory_traffic=memory_bytes(module),
    collective_bytes=bytes_by_kind(exchanged),
    interconnect_seconds=interconnect_seconds(exchanged, places, generation.link_bandwidth),
  )


def model_flops(
  model: FlamingoConfig | ContrastiveConfig | LanguageModelConfig, trained: tuple[str, ...], streams: Streams
) -> dict[str, Flops]:
  """The operations of one step by part of the model, all streams together."""
  counts: dict[type, Callable[..., dict[str, Flops]]] = {
    FlamingoConfig: flamingo_flops,
    ContrastiveConfig: contrastive_flops,
    LanguageModelConfig: language_flops,
  }
  count = counts[type(model)]
  parts: dict[str, Flops] = {}
  for shapes in streams.shapes.values():
    sizes = {name: shape.shape for name, shape in shapes.items()}
    found = count(model, sizes, lambda start: any(path.startswith(start) for path in trained))
    parts = {part: parts.get(part, Flops()) + flops for part, flops in found.items()}
  return parts


def argument_bytes(tree) -> int:
  """Bytes on each device of arrays that are laid out, were none padded."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
