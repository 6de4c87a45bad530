"""What each host counts and waits for on its own, told to the whole job; and which host holds the others up."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from flamingo_jax.parallel.mesh import AXES, data_parts, replicated

HostSeconds = Callable[[float], jax.Array]
Tally = Callable[[dict[str, int], float, int], tuple[jax.Array, jax.Array, jax.Array]]


def make_tally(mesh: Mesh) -> Tally:
  """A small program of its own on the devices: nothing on the host waits for it until its numbers are read.

  Returns:
    A function (counts of this host, seconds it waited, what it wants) -> (counts of the whole batch int32 [names], by
    sorted name; the seconds of the host that waited longest; the most that one wants). All hosts call it together, with
    the same names. Where a model lies over several hosts, these read the same rows; what they count is counted once.
  """
  own, parts = data_parts(mesh)
  telling = mesh.size * len(own) // parts  # devices whose hosts read the same

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def over_devices(counts: jax.Array, others: jax.Array):
    waited, wanted = others.max(axis=0)
    return counts.sum(axis=0) // telling, waited, wanted

  def tally(counts: dict[str, int], waited: float, wanted: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    own = np.asarray([counts[name] for name in sorted(counts)], np.int32)
    return over_devices(on_each_device(own, mesh), on_each_device(np.asarray([waited, wanted], np.float32), mesh))

  return tally


def make_host_seconds(mesh: Mesh) -> HostSeconds:
  """As `make_tally`, for what each host needs for itself: it can be told apart from the others.

  Returns:
    A function (seconds of this host) -> those of every host, float32 [hosts], by process. All hosts call it together.
  """
  places = [device.process_index for device in mesh.devices.flat]
  one_of_each = np.asarray([places.index(host) for host in sorted(set(places))])

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def over_devices(seconds: jax.Array):
    return seconds[one_of_each]

  return lambda own: over_devices(on_each_device(np.asarray(own, np.float32), mesh))


def on_each_device(own: np.ndarray, mesh: Mesh) -> jax.Array:
  """[devices, ...]: what each device's host says."""
  spread = NamedSharding(mesh, PartitionSpec(AXES))
  return jax.make_array_from_callback((mesh.size, *own.shape), spread, lambda _: own[None])


@dataclasses.dataclass(frozen=True)
class HostTime:
  """Seconds that a host took for itself, between the devices' steps.

  Attributes:
    host: its process.
    mean: seconds a step.
    worst: of all steps.
    slowest: the share of steps in which it took longest; a tie counts for the first.
  """

  host: int
  mean: float
  worst: float
  slowest: float


def by_host(seconds: Float[np.ndarray, "steps hosts"]) -> list[HostTime]:
  """A line for each host, the one that was slowest most often first; none where no step was recorded."""
  if not len(seconds):
    return []
  slowest = np.bincount(seconds.argmax(axis=1), minlength=seconds.shape[1]) / len(seconds)
  lines = zip(range(seconds.shape[1]), seconds.mean(axis=0), seconds.max(axis=0), slowest, strict=True)
  times = [HostTime(host, *map(float, numbers)) for host, *numbers in lines]
  return sorted(times, key=lambda time: (-time.slowest, -time.mean, time.host))
