"""Whether a mesh fits the devices, the batches and the parameters of a job; where it does not, what would."""

import dataclasses
import math
from fractions import Fraction

import flax.linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec

Sizes = dict[str, int]  # mesh axis -> devices along it

HEADS = {  # where a parameter stands -> the group of the config that says how many heads it has; the first that fits
  "gated_cross_attention/": "model.cross_attention",
  "language/": "model.language",
  "resampler/": "model.resampler",
  "vision/": "model.vision",
  "text/": "model.text",
}


@dataclasses.dataclass(frozen=True)
class Length:
  """The length of an axis of a parameter that is cut into equal parts.

  Attributes:
    name: the setting that it comes from, or which axis of which parameter it is.
    length: into how many parts it can be cut, at most.
    axis: of the mesh, along which it is cut.
  """

  name: str
  length: int
  axis: str


def cut_lengths(boxed: dict, specs: dict[str, PartitionSpec]) -> list[Length]:
  """What of a model is cut along a mesh; axes of one kind and length are told once.

  Args:
    boxed: parameters or their shapes, as `init` gives them.
    specs: how each lies, by path.
  """
  logical = traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep="/")
  shapes = traverse_util.flatten_dict(nn.unbox(boxed), sep="/")
  found: dict[tuple, list[str]] = {}
  for path, spec in specs.items():
    for kind, length, axis in zip(logical[path], shapes[path].shape, spec, strict=False):
      if axis is not None:
        found.setdefault((setting(path, kind), kind, length, axis), []).append(path)
  return [Length(field or place(kind, paths), length, axis) for (field, kind, length, axis), paths in found.items()]


def setting(path: str, kind: str) -> str | None:
  """The field of a config that says how long an axis is, where that is a number of heads."""
  group = next((group for part, group in HEADS.items() if part in path), None)
  return f"{group}.{kind}" if group and kind in ("heads", "key_value_heads") else None


def place(kind: str, paths: list[str]) -> str:
  more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
  return f"{kind} of {paths[0]}{more}"


def complete(asked: Sizes, devices: int) -> Sizes | None:
  """The sizes with a number in the place of -1; None where they do not make the devices."""
  fixed = [size for size in asked.values() if size != -1]
  product, free = math.prod(fixed), len(asked) - len(fixed)
  if free > 1 or product < 1 or devices % product or (not free and product != devices):
    return None
  return {axis: devices // product if size == -1 else size for axis, size in asked.items()}


def described(sizes: Sizes) -> str:
  return ", ".join(f"{axis}={size}" for axis, size in sizes.items())


def mesh_faults(asked: Sizes, devices: int) -> list[str]:
  """Why the sizes do not make the devices, one line a reason; empty if they do."""
  if complete(asked, devices):
    return []
  fixed = [size for size in asked.values() if size != -1]
  if min(fixed, default=1) < 1 or len(fixed) < len(asked) - 1:
    return [f"mesh: {described(asked)}; sizes are 1 or more, and one of them at most is -1: all devices that are left."]
  made = f"makes {math.prod(fixed)}" if len(fixed) == len(asked) else f"makes a multiple of {math.prod(fixed)}"
  return [f"mesh: {described(asked)} {made} devices; there are {devices}."]


def row_faults(rows: dict[str, int], parts: int) -> list[str]:
  """Batches, by stream, that cannot be cut into equal parts, one line each."""
  return [
    f"streams.{name}.batch_size is {count}, which {parts} devices (mesh.replica x mesh.fsdp) cannot share evenly; "
    f"{either(multiples_beside(count, parts))} would do."
    for name, count in rows.items()
    if count % parts
  ]


def multiples_beside(count: int, parts: int) -> list[int]:
  """The multiples of `parts` below and above a number."""
  below = count // parts * parts
  return [multiple for multiple in (below, below + parts) if multiple]


def length_faults(lengths: list[Length], sizes: Sizes) -> list[str]:
  """Lengths that the sizes do not divide, one line each; axes without a size are passed over.

  The last lines name, for each mesh axis at fault, the sizes that divide all that is cut along it.
  """
  wrong = [length for length in lengths if sizes[length.axis] > 0 and length.length % sizes[length.axis]]
  faults = [
    f"{length.name} is {length.length}, which mesh.{length.axis}={sizes[length.axis]} does not divide."
    for length in wrong
  ]
  for axis in dict.fromkeys(length.axis for length in wrong):
    common = math.gcd(*(length.length for length in lengths if length.axis == axis))
    working = [size for size in range(1, common + 1) if common % size == 0]
    faults.append(f"mesh.{axis} divides all that is cut along it if it is {either(working)}.")
  return faults


def fit_faults(asked: Sizes, devices: int, rows: dict[str, int], lengths: list[Length]) -> list[str]:
  """Every reason why a mesh does not fit, one a line, and after them the nearest meshes that do; empty if it fits.

  Args:
    asked: of the mesh; one of them may be -1.
    devices: of the job.
    rows: of each stream's global batch.
    lengths: of what is cut along the mesh.
  """
  sizes = complete(asked, devices)
  faults = mesh_faults(asked, devices)
  parts = data_parts(sizes or asked, devices)
  faults += row_faults(rows, parts) if parts else []
  faults += length_faults(lengths, sizes or asked)
  return [*faults, advice(asked, devices, rows, lengths)] if faults else []


def data_parts(sizes: Sizes, devices: int) -> int | None:
  """Into how many parts a batch is cut, which devices and model alone decide; None where these two do not fit."""
  return devices // sizes["model"] if sizes["model"] > 0 and devices % sizes["model"] == 0 else None


def advice(asked: Sizes, devices: int, rows: dict[str, int], lengths: list[Length]) -> str:
  """The nearest meshes that fit everything, or else everything but the batches."""
  condition = ""
  found = nearest(asked, devices, rows, lengths)
  if not found:
    condition, found = ", with batches of a multiple of replica x fsdp", nearest(asked, devices, {}, lengths)
  return f"Nearest meshes of {devices} devices that fit{condition}: {'; '.join(map(described, found))}."


def nearest(
  asked: Sizes, devices: int, rows: dict[str, int], lengths: list[Length], count: int | None = 3
) -> list[Sizes]:
  """The meshes of the devices that are least far from the one asked for; far is the product of all changes of size.

  None for `count`: all that fit.
  """

  def distance(mesh: Sizes) -> Fraction:
    changes = (Fraction(max(mesh[axis], size), min(mesh[axis], size)) for axis, size in asked.items() if size > 0)
    return math.prod(changes, start=Fraction(1))

  divisors = [size for size in range(devices, 0, -1) if devices % size == 0]
  shapes = [(replica, fsdp) for replica in divisors for fsdp in divisors if devices % (replica * fsdp) == 0]
  meshes = [dict(replica=r, fsdp=f, model=devices // (r * f)) for r, f in shapes]
  fitting = [
    mesh for mesh in meshes if not row_faults(rows, mesh["replica"] * mesh["fsdp"]) and not length_faults(lengths, mesh)
  ]
  return sorted(fitting, key=distance)[:count]


def either(numbers: list[int]) -> str:
  *first, last = map(str, numbers)
  return f"{', '.join(first)} or {last}" if first else last
