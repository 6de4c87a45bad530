"""Where activations lie on the mesh: one table from logical axes to mesh axes, and the hint to the compiler."""

import jax
from jax.sharding import PartitionSpec

ACTIVATIONS = {  # logical axis -> mesh axes; others are whole on every device
  "batch": ("replica", "fsdp"),
  "heads": "model",
  "mlp": "model",
  "vocab": "model",
}


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Tells the compiler how an activation lies on the mesh that is set; without one, nothing.

  Args:
    x: the activation.
    axes: a logical name, or None, for each of its axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = [fitting(ACTIVATIONS.get(axis), length, mesh.shape) for axis, length in zip(axes, x.shape, strict=True)]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def fitting(mesh_axes: str | tuple[str, ...] | None, length: int, sizes: dict[str, int]):
  """The mesh axes of one axis, or None where they do not divide it (3 key heads over 2 devices, one row over 8)."""
  if mesh_axes is None:
    return None
  names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
  parts = 1
  for name in names:
    parts *= sizes[name]
  return mesh_axes if length % parts == 0 else None
