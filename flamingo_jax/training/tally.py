"""What each host counts and waits for on its own, made one number of the whole job."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.parallel.mesh import AXES, data_hosts, replicated

Tally = Callable[[dict[str, int], float], tuple[jax.Array, jax.Array]]


def make_tally(mesh: Mesh) -> Tally:
  """A small program of its own on the devices: nothing on the host waits for it until its numbers are read.

  Returns:
    A function (counts of this host, seconds it waited) -> (counts of the whole batch int32 [names], by sorted name; the
    seconds of the host that waited longest). All hosts call it together, with the same names. Where a model lies over
    several hosts, these read the same rows; what they count is counted once.
  """
  spread = NamedSharding(mesh, PartitionSpec(AXES))
  _, parts = data_hosts(mesh)

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def over_devices(counts: jax.Array, waited: jax.Array):
    return counts.sum(axis=0) // (mesh.size // parts), waited.max()  # so many devices say the same

  def on_each_device(own: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback((mesh.size, *own.shape), spread, lambda _: own[None])

  def tally(counts: dict[str, int], waited: float) -> tuple[jax.Array, jax.Array]:
    own = np.asarray([counts[name] for name in sorted(counts)], np.int32)
    return over_devices(on_each_device(own), on_each_device(np.asarray(waited, np.float32)))

  return tally
