"""The device mesh and the one table that says how arrays lie on it."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.fit import complete, cut_lengths, fit_faults, length_faults

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


def tpu_slices(devices: Sequence[jax.Device]) -> int:
  """Of how many slices these are; GPUs of several hosts count as one, since their meshes may lie in any way."""
  return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Devices as one mesh; those of the job unless others are given.

  Raises:
    UserError: the axes do not multiply to the number of devices, TPU slices do not divide the first, or JAX cannot lay
      them over the torus.
  """
  asked, count = dataclasses.asdict(config), jax.device_count() if devices is None else len(devices)
  sizes = complete(asked, count)
  if sizes is None:
    raise UserError("\n".join(fit_faults(asked, count, rows={}, lengths=[])))
  shape = tuple(sizes[axis] for axis in AXES)
  slices = tpu_slices(jax.devices() if devices is None else devices)
  if shape[0] % slices:
    raise UserError(f"mesh: replica={shape[0]}; there are {slices} slices, and replica has to be a multiple of them.")
  # An axis of the mesh may take part of an axis of the torus: 4 x 16 devices of a slice of 8 x 12 x 16, say. Between
  # slices, where links are slow, lies the axis that exchanges least.
  within = (shape[0] // slices, *shape[1:])
  try:
    if slices == 1:
      placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
      placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
  except (ValueError, TypeError, NotImplementedError) as error:  # of sides that 5 or 7 divides, it cannot split some
    written = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, within, strict=True))
    raise UserError(
      f"mesh: JAX finds no way to lay {written} over the torus of a slice of {count // slices} devices ({error}). "
      "Take other sizes; `flamingo plan --search` tries those that it can lay."
    ) from error
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
  specs = parameter_specs(boxed, spread)
  faults = length_faults(cut_lengths(boxed, specs), dict(mesh.shape))
  if faults:
    raise UserError("\n".join(faults))
  return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def parameter_specs(boxed: dict, spread: str) -> dict[str, PartitionSpec]:
  """The mesh axes that each parameter is cut along, by path, whatever the sizes of the mesh."""
  rules = [(axis, mesh_axis) for axis, mesh_axis in RULES.items() if mesh_axis in SPREADS[spread]]
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), rules)
  return traverse_util.flatten_dict(specs, sep="/")


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """An array that every host has, laid out over all of them; a host touches its own part only."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def data_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
  """Which parts of each batch this host reads, rising, of how many: those of its own devices.

  A batch has a part for each place along replica and fsdp. Which are a host's depends on how the mesh lies in the
  torus; hosts that a model is spread over read the same.

  Raises:
    UserError: as `check_hosts` does.
  """
  check_hosts(mesh)
  return parts_by_host(mesh)[jax.process_index()], mesh.size // mesh.shape["model"]


def check_hosts(mesh: Mesh) -> None:
  """Raises UserError where hosts share a part of what they read, but not all of it: it could not be counted once."""
  parts, model = parts_by_host(mesh), mesh.shape["model"]
  kinds = set(parts.values())
  if len({len(kind) for kind in kinds}) > 1 or sum(map(len, kinds)) > mesh.size // model:
    raise UserError(
      "mesh: some hosts would share a part of the rows that they read, and not all. Let mesh.model, "
      f"{model}, be a multiple or a divisor of the {mesh.size // len(parts)} devices of a host."
    )


@functools.lru_cache(maxsize=8)
def parts_by_host(mesh: Mesh) -> dict[int, tuple[int, ...]]:
  """Of each host, by process, the parts of a batch that lie on its devices."""
  found: dict[int, set[int]] = {}
  for part, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["model"])):
    for device in devices:
      found.setdefault(device.process_index, set()).add(part)
  return {host: tuple(sorted(parts)) for host, parts in found.items()}


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows, those of its `data_parts` one after the other, to arrays of the global batch."""
  (own, parts), sharding = data_parts(mesh), batch_sharding(mesh)

  def spread(array: np.ndarray) -> jax.Array:
    count = len(array) // len(own)

    def part(index: tuple[slice, ...]) -> np.ndarray:
      place = own.index((index[0].start or 0) // count)
      return array[place * count : (place + 1) * count]

    return jax.make_array_from_callback((count * parts, *array.shape[1:]), sharding, part)

  return {name: spread(array) for name, array in batch.items()}
