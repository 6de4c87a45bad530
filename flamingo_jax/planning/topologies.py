"""TPU slices by name, such as "v4:8x12x16", and what one of their chips can do; no TPU is touched."""

import dataclasses
import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from flamingo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
  """One chip of a generation of TPUs.

  Attributes:
    flops: bfloat16 operations a second at most.
    hbm_bytes: its memory.
    usable_bytes: what the compiler lets a program have of it.
    hbm_bandwidth: bytes a second between memory and core.
    link_bandwidth: bytes a second that one link to a neighbour carries, one way; there are two links a torus axis.
    dimensions: of the torus.
    largest: chips of a whole pod.
    example: a slice.
    options: by which libtpu shows a chip as one device.
  """

  flops: float
  hbm_bytes: int
  usable_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  dimensions: int
  largest: int
  example: str
  options: dict[str, str] = dataclasses.field(default_factory=dict)


GIB = 2**30

# Compute, memory, bandwidths and pods: Google's "System architecture" page of each generation (Cloud TPU docs).
# It gives the interconnect both ways and over all links of a chip; for v4 it does not: six links of 50 GB/s (Jouppi et
# al., 2023, "TPU v4: An Optically Reconfigurable Supercomputer"). Usable memory: what libtpu says where it refuses one.
GENERATIONS = {
  "v4": Generation(
    275e12, 32 * GIB, int(30.75 * GIB), 1200e9, 50e9, 3, 4096, "v4:4x4x8", dict(chip_config_name="megacore")
  ),
  "v5e": Generation(197e12, 16 * GIB, int(15.75 * GIB), 819e9, 400e9 / 2 / 4, 2, 256, "v5e:8x8"),
  "v5p": Generation(459e12, 96 * GIB, int(95.73 * GIB), 2765e9, 1200e9 / 2 / 6, 3, 8960, "v5p:4x4x8"),
  "v6e": Generation(918e12, 32 * GIB, int(31.24 * GIB), 1638e9, 800e9 / 2 / 4, 2, 256, "v6e:8x8"),
}

# libtpu is loaded for its compiler: it need not look for chips, ask the cloud where it is, or lock the machine.
QUIET = dict(
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  TPU_SKIP_MDS_QUERY="1",
  TPU_ACCELERATOR_TYPE="v4-8",
  TPU_WORKER_HOSTNAMES="localhost",
  TPU_LOG_DIR="disabled",
  TPU_MIN_LOG_LEVEL="3",
  TPU_STDERR_LOG_LEVEL="3",
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    name: as it was asked for.
    generation: of its chips.
    shape: chips along each axis of the torus.
    devices: one a chip; programs can be compiled for them, and not run.
  """

  name: str
  generation: Generation
  shape: tuple[int, ...]
  devices: list[jax.Device]


def parse_topology(name: str) -> tuple[Generation, tuple[int, ...]]:
  """The generation and shape of a slice.

  Raises:
    UserError: the name is not of the form GENERATION:AxB or AxBxC, or a pod of that generation has no such slice.
  """
  family, _, sides = name.partition(":")
  if family not in GENERATIONS:
    raise UserError(f"--topology is {name!r}; a slice is named such as {examples()}.")
  generation = GENERATIONS[family]
  parts = sides.split("x")
  form = "x".join("ABC"[: generation.dimensions])
  if len(parts) != generation.dimensions or not all(part.isdecimal() and int(part) for part in parts):
    raise UserError(
      f"--topology is {name!r}; a slice of {family} has {generation.dimensions} sides of 1 chip or more, "
      f"{family}:{form}, such as {generation.example}."
    )
  shape = tuple(int(part) for part in parts)
  if math.prod(shape) > generation.largest:
    raise UserError(f"--topology={name} has {math.prod(shape)} chips; a pod of {family} has {generation.largest}.")
  return generation, shape


def examples() -> str:
  *first, last = (generation.example for generation in GENERATIONS.values())
  return f"{', '.join(first)} or {last}"


def open_topology(name: str) -> Topology:
  """The devices of a slice, by libtpu, which is told first to leave this machine's own devices alone.

  Raises:
    UserError: there is no such slice, or no libtpu.
  """
  generation, shape = parse_topology(name)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "--topology: the compiler for TPUs is missing. Install it (no TPU is needed): pip install 'flamingo_jax[plan]'"
    )
  os.environ.update(QUIET)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **generation.options)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f"--topology={name}: libtpu knows no such slice ({reason}). Others of its kind are named such as "
      f"{generation.example}."
    ) from error
  return Topology(name, generation, shape, list(found.devices))
