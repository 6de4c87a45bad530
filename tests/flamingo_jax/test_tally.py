import jax
import numpy as np
import pytest

from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.tally import HostTime, by_host, make_host_seconds, make_tally


def test_one_host_is_told_what_it_said():
  mesh = make_mesh(MeshConfig())
  numbers = make_tally(mesh)({"b": 2**24 + 1, "a": 3}, 0.25, 5)  # more than a float32 holds
  counted, waited, wanted = jax.device_get(numbers)
  assert counted.tolist() == [3, 2**24 + 1]
  assert (waited.item(), wanted.item()) == (0.25, 5)
  assert make_host_seconds(mesh)(0.75).tolist() == [0.75]


def test_the_slowest_host_comes_first():
  steps = np.asarray([[1.0, 4.0, 2.0], [1.0, 5.0, 2.0], [9.0, 3.0, 2.0], [1.0, 1.0, 1.0]])
  assert by_host(steps) == [
    HostTime(host=1, mean=3.25, worst=5.0, slowest=0.5),
    HostTime(host=0, mean=3.0, worst=9.0, slowest=0.5),  # the last step was a tie
    HostTime(host=2, mean=1.75, worst=2.0, slowest=0.0),
  ]


@pytest.mark.parametrize("hosts", [1, 7])
def test_shares_add_up(hosts):
  steps = np.random.default_rng(0).random((50, hosts), np.float32)
  lines = by_host(steps)
  assert sorted(line.host for line in lines) == list(range(hosts))
  assert sum(line.slowest for line in lines) == pytest.approx(1)
  assert max(line.worst for line in lines) == steps.max()


def test_no_steps_make_no_table():
  assert by_host(np.zeros((0, 3))) == []
