"""The device mesh and the one table that says how arrays lie on it."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError

AXES = ("replica", "fsdp", "model")

RULES = (  # logical axis -> mesh axes
  ("batch", ("replica", "fsdp")),
  ("embed", "fsdp"),
  ("heads", "model"),
  ("key_value_heads", "model"),
  ("mlp", "model"),
  ("vocab", "model"),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices lie along each axis; at most one axis is -1: all the rest."""

  replica: int = -1
  fsdp: int = 1
  model: int = 1


def make_mesh(config: MeshConfig) -> Mesh:
  """All devices of the job as one mesh.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  sizes = dataclasses.asdict(config)
  devices = jax.device_count()
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  if len(free) > 1 or fixed < 1 or devices % fixed or (not free and fixed != devices):
    shape = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    raise UserError(f"mesh: {shape} does not make {devices} devices. Let one axis be -1 and the others divide it.")
  for axis in free:
    sizes[axis] = devices // fixed
  shape = tuple(sizes[axis] for axis in AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the replica and fsdp axes."""
  return NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(boxed: dict, mesh: Mesh) -> dict[str, NamedSharding]:
  """Where each parameter lies, by path, from the logical names it was boxed with.

  Raises:
    UserError: axes that do not divide by the mesh, all at once.
  """
  specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
  shardings = traverse_util.flatten_dict(specs, sep="/")
  shapes = traverse_util.flatten_dict(nn.unbox(boxed), sep="/")
  faults = []
  for path, sharding in shardings.items():
    try:
      sharding.shard_shape(shapes[path].shape)
    except ValueError:
      faults.append(f"  {path} {shapes[path].shape} over {sharding.spec}")
  if faults:
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    raise UserError(f"mesh: {sizes} does not divide these parameters:\n" + "\n".join(faults))
  return shardings


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows to arrays of the global batch."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
