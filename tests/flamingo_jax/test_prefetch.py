import threading
import time

import jax
import numpy as np
import pytest

from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.prefetch import placed


def batches(read: list[int], stop: int, fail_at: int | None = None):
  """Steps 0, 1, ...; notes which were read."""
  for step in range(stop):
    if step == fail_at:
      raise OSError("the disk is gone")
    read.append(step)
    yield {"pages": {"tokens": np.full((2, 3), step)}}, {"skipped": step}


def wait_until(condition) -> None:
  deadline = time.monotonic() + 30
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.005)
  assert condition()


@pytest.fixture
def mesh():
  return make_mesh(MeshConfig())


def test_batches_come_in_order_on_the_devices_with_their_counts(mesh):
  found = list(placed(batches([], 7), mesh))
  assert [counts["skipped"] for _, counts in found] == list(range(7))
  for step, (on_devices, _) in enumerate(found):
    tokens = on_devices["pages"]["tokens"]
    assert isinstance(tokens, jax.Array)
    np.testing.assert_array_equal(tokens, np.full((2, 3), step))


def test_the_next_step_is_read_while_this_one_is_in_use_and_no_other(mesh):
  read = []
  coming = placed(batches(read, 100), mesh)
  assert read == []
  for step in range(5):
    next(coming)
    wait_until(lambda last=step + 2: len(read) == last)
    time.sleep(0.02)
    assert read == list(range(step + 2))
  coming.close()
  assert not [thread for thread in threading.enumerate() if thread.name.startswith("placed")]


def test_an_error_is_raised_at_its_own_step(mesh):
  coming = placed(batches([], 100, fail_at=3), mesh)
  assert [next(coming)[1]["skipped"] for _ in range(3)] == [0, 1, 2]
  with pytest.raises(OSError, match="the disk is gone"):
    next(coming)
