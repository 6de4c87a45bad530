"""The device mesh and the one table that says how arrays lie on it."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError

AXES = ("replica", "fsdp", "model")

RULES = {  # logical axis of a parameter -> mesh axis, where the setting for its kind says so
  "embed": "fsdp",
  "heads": "model",
  "key_value_heads": "model",
  "mlp": "model",
  "vocab": "model",
}
SPREADS = {"model": ("model",), "fsdp": ("fsdp", "model")}  # the mesh axes that a kind of array is cut along


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices lie along each axis; at most one axis is -1: all the rest."""

  replica: int = -1
  fsdp: int = 1
  model: int = 1


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """How far each kind of array is cut: along "model" alone (Megatron), or along "fsdp" as well.

  All "fsdp": fully sharded. Trainable "model" and optimizer "fsdp": ZeRO-1, as in the paper (section 3.2 and B.1.2).
  """

  trainable: str = "fsdp"
  optimizer: str = "fsdp"  # and the accumulated gradients
  frozen: str = "fsdp"  # "model": whole on every fsdp device; "fsdp": gathered layer by layer


FULLY_SHARDED = ShardingConfig()


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


def parameter_shardings(boxed: dict, mesh: Mesh, spread: str = "fsdp") -> dict[str, NamedSharding]:
  """Where each parameter lies, by path, from the logical names it was boxed with.

  Args:
    boxed: parameters or their shapes, as `init` gives them.
    mesh: of the job.
    spread: a name of SPREADS.

  Raises:
    UserError: axes that do not divide by the mesh, all at once.
  """
  rules = [(axis, mesh_axis) for axis, mesh_axis in RULES.items() if mesh_axis in SPREADS[spread]]
  specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
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
    raise UserError(
      f"mesh: {sizes} does not divide these parameters:\n"
      + "\n".join(faults)
      + f"\nSet mesh.model and mesh.fsdp to divisors of them, such as {common_divisors(shapes, shardings, mesh)}."
    )
  return shardings


def common_divisors(shapes: dict, shardings: dict[str, NamedSharding], mesh: Mesh) -> str:
  """The largest size of each mesh axis, up to the one asked for, that divides all that is cut along it."""
  lengths: dict[str, list[int]] = {axis: [] for axis in ("fsdp", "model")}
  for path, sharding in shardings.items():
    for length, axes in zip(shapes[path].shape, sharding.spec, strict=False):
      for axis in (axes,) if isinstance(axes, str) else axes or ():
        lengths[axis].append(length)
  largest = {axis: max(n for n in range(1, mesh.shape[axis] + 1) if not any(length % n for length in found))
             for axis, found in lengths.items()}  # fmt: skip
  return ", ".join(f"{axis}={size}" for axis, size in largest.items())


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """An array that every host has, laid out over all of them; a host touches its own part only."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def data_hosts(mesh: Mesh) -> tuple[int, int]:
  """Which part of each batch this host reads, of how many: hosts that a model is spread over read the same rows.

  Raises:
    UserError: the rows of this host's devices are not one block of the batch.
  """
  rows = mesh.devices.reshape(-1, mesh.shape["model"])
  here = jax.process_index()
  own = [row for row in range(len(rows)) if any(device.process_index == here for device in rows[row])]
  first, count = own[0], len(own)
  if own != list(range(first, first + count)) or len(rows) % count or first % count:
    raise UserError(
      f"mesh: the {count} parts of a batch on host {here} are not one block of its {len(rows)}. Let mesh.model be a "
      "multiple or a divisor of the devices of a host."
    )
  return first // count, len(rows) // count


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows to arrays of the global batch."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
