import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.training.sums import array_sum, array_sums

RANDOM = np.random.default_rng(0)
ARRAYS = [
  RANDOM.normal(size=(3, 5, 7)).astype(np.float32),
  RANDOM.normal(size=(6,)).astype(jnp.bfloat16),
  RANDOM.integers(-(2**31), 2**31, (4, 9), np.int32),
  RANDOM.integers(0, 256, (11,), np.uint8),
  RANDOM.random((8,)) < 0.5,
  np.float32(0.25),
]


def plain_sum(array: np.ndarray) -> int:
  """The same in whole numbers of any length, one after the other."""
  whole = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
  numbers = np.frombuffer(array.tobytes(), whole).tolist()
  return sum(number * (place * 2654435769 % 2**32 | 1) for place, number in enumerate(numbers)) % 2**32


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_a_sum_is_that_of_whole_numbers(array):
  assert int(array_sum(jnp.asarray(array))) == plain_sum(np.asarray(array))


def test_every_changed_bit_and_every_exchange_of_two_numbers_changes_the_sum():
  array = ARRAYS[0]
  whole, found = int(array_sum(jnp.asarray(array))), set()
  for bit in range(array.nbytes * 8):
    changed = np.frombuffer(array.tobytes(), np.uint8).copy()
    changed[bit // 8] ^= 1 << bit % 8
    found.add(int(array_sum(jnp.asarray(changed.view(np.float32).reshape(array.shape)))))
  for place in range(1, array.size):
    changed = array.ravel().copy()
    changed[[0, place]] = changed[[place, 0]]
    found.add(int(array_sum(jnp.asarray(changed.reshape(array.shape)))))
  assert whole not in found


def test_arrays_have_the_names_of_their_trees_and_paths():
  found = array_sums({"trainable": {"a/b": jnp.float32(1)}, "guard": (jnp.int32(2),)})
  assert found == {"trainable['a/b']": plain_sum(np.float32(1)), "guard[0]": plain_sum(np.int32(2))}


MANY = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.sums import array_sums

mesh, random = make_mesh(MeshConfig(2, 2, 2)), np.random.default_rng(0)
cuts = [("fsdp", "model"), ("fsdp",), (None, "model"), ("model", "fsdp"), ()]
arrays = {
  f"array {n}": jax.device_put(
    random.normal(size=(8 + 8 * (n % 7), 8 + 8 * (n % 3))).astype(np.float32),
    NamedSharding(mesh, PartitionSpec(*cuts[n % 5])),
  )
  for n in range(60)
}
step = jax.jit(lambda arrays: {name: array * 1.0001 + array.sum() for name, array in arrays.items()})
for _ in range(150):
  arrays = step(arrays)
  array_sums({"trainable": arrays})
"""


def test_sums_of_many_arrays_over_virtual_devices_do_not_wait_for_each_other():
  """Once they ran side by side, and within seconds XLA ended the process, since none of them could go on."""
  environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", MANY], env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
