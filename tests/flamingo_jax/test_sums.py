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
