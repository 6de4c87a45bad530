"""The batches of the next step on their way to the devices while these compute this one."""

import concurrent.futures
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.parallel.mesh import global_batch

HostBatches = dict[str, dict[str, np.ndarray]]
DeviceBatches = dict[str, dict[str, jax.Array]]


def placed(
  batches: Iterator[tuple[HostBatches, dict[str, int]]], mesh: Mesh
) -> Iterator[tuple[DeviceBatches, dict[str, int]]]:
  """The same batches on the devices, one step ahead of whoever takes them, and the counts that come with them.

  Whatever reading a step raises is raised when that step is asked for.
  """

  def read():
    for host_batches, counts in batches:
      return {name: global_batch(batch, mesh) for name, batch in host_batches.items()}, counts
    return None

  with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="placed") as reader:
    coming = reader.submit(read)
    while (now := coming.result()) is not None:
      coming = reader.submit(read)
      yield now
