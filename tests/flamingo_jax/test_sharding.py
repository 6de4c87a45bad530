"""The same losses however a job is cut: over devices, mesh shapes, sharding settings, and real processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = """
import json, sys
import jax
if sys.argv[2:]:
  address, count, index = sys.argv[2:]
  jax.distributed.initialize(address, int(count), int(index))
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, "tests/flamingo_jax")
from sharded_runs import run
print("LOSSES", json.dumps([run(**settings) for settings in json.loads(sys.argv[1])]))
"""
ONE = dict(mesh=[1, 1, 1])


def command(settings: list[dict], *where: object) -> list[str]:
  return [sys.executable, "-c", SCRIPT, json.dumps(settings), *map(str, where)]


def environment(devices: int) -> dict[str, str]:
  return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


def losses(output: str) -> np.ndarray:
  (line,) = [line for line in output.splitlines() if line.startswith("LOSSES ")]
  return np.asarray(json.loads(line.removeprefix("LOSSES ")))


def on_devices(count: int, settings: list[dict]) -> np.ndarray:
  """The losses [run, step] of runs on virtual devices."""
  done = subprocess.run(
    command(settings), cwd=ROOT, env=environment(count), capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return losses(done.stdout)


def over_processes(count: int, devices: int, settings: list[dict]) -> np.ndarray:
  """The same from real processes of `devices` virtual devices each, which must agree among themselves."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      command(settings, address, count, index),
      cwd=ROOT,
      env=environment(devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  outputs = [process.communicate(timeout=600) for process in processes]
  assert [process.returncode for process in processes] == [0] * count, outputs[0][1][-3000:]
  found = [losses(output) for output, _ in outputs]
  assert all(np.array_equal(found[0], other) for other in found)
  return found[0]


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
  """The losses on one device, which fall."""
  (found,) = on_devices(1, [ONE])
  assert found[-1] < found[0]
  return found


SHAPES_OF_EIGHT = [[r, f, 8 // r // f] for r in (1, 2, 4, 8) for f in (1, 2, 4, 8) if r * f <= 8]


def test_every_mesh_shape_of_eight_devices_draws_the_same_losses(alone):
  assert len(SHAPES_OF_EIGHT) == 10
  for shape, found in zip(SHAPES_OF_EIGHT, on_devices(8, [dict(mesh=s) for s in SHAPES_OF_EIGHT]), strict=True):
    np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=str(shape))


@pytest.mark.parametrize(("devices", "shapes"), [(2, [[2, 1, 1]]), (4, [[1, 2, 2]])])
def test_two_and_four_devices_draw_them_too(alone, devices, shapes):
  for found in on_devices(devices, [dict(mesh=shape) for shape in shapes]):
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_no_setting_of_sharding_or_remat_changes_them(alone):
  """ZeRO-1, fully sharded, tensor-parallel alone, frozen parts whole; and activations computed again."""
  settings = [
    dict(mesh=[2, 2, 2], sharding=dict(trainable="model", optimizer="fsdp", frozen="model")),
    dict(mesh=[1, 4, 2], sharding=dict(trainable="fsdp", optimizer="fsdp", frozen="model")),
    dict(mesh=[1, 4, 2], remat="full"),
    dict(mesh=[2, 4, 1], remat="dots"),
  ]
  for setting, found in zip(settings, on_devices(8, settings), strict=True):
    np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=str(setting))


@pytest.mark.parametrize(
  ("processes", "devices", "shapes"), [(2, 2, [[4, 1, 1], [1, 1, 4]]), (4, 1, [[1, 4, 1], [2, 1, 2]])]
)
def test_real_processes_draw_the_same_losses(alone, processes, devices, shapes):
  """Rows over the processes, parameters over them, and one model over all or some, which then read the same rows."""
  settings = [dict(mesh=shape) for shape in shapes]
  for setting, found in zip(settings, over_processes(processes, devices, settings), strict=True):
    np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=str(setting))
