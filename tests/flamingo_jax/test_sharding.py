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
import gc, json, sys
gc.disable()  # nothing here lives long, and tracing makes much of it
import jax
if sys.argv[2:]:
  address, count, index = sys.argv[2:]
  jax.distributed.initialize(address, int(count), int(index))
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, "tests/flamingo_jax")
from sharded_runs import run, tallied
settings = json.loads(sys.argv[1])
losses = [run(**setting) for setting in settings]
tallies = [tallied(setting["mesh"], setting.get("apart", False)) for setting in settings]
print(json.dumps(dict(losses=losses, tallies=tallies)))
"""
ONE, BOTH = dict(streams=["pages"]), dict(streams=["pages", "captions"])


def start(devices: int, settings: list[dict], *where: object) -> subprocess.Popen:
  """A process that runs all settings on virtual devices; compiled without fusion, in a third of the time."""
  flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, json.dumps(settings), *map(str, where)],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def results(processes: list[subprocess.Popen]) -> list[dict[str, list]]:
  """What each process prints of its runs: the losses of every step, and what was counted and waited for."""
  outputs = [process.communicate(timeout=600) for process in processes]
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors[-3000:]
  return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def losses(processes: list[subprocess.Popen]) -> list[list[list[float]]]:
  return [found["losses"] for found in results(processes)]


@pytest.fixture(scope="module")
def few() -> dict[int, list[list[float]]]:
  """The losses on one, two and four devices: of one stream, and on one device of both streams, too."""
  settings = {
    1: [ONE | dict(mesh=[1, 1, 1]), BOTH | dict(mesh=[1, 1, 1])],
    2: [ONE | dict(mesh=[2, 1, 1])],
    4: [ONE | dict(mesh=[1, 2, 2])],
  }
  found = losses([start(devices, runs) for devices, runs in settings.items()])
  return dict(zip(settings, found, strict=True))


@pytest.fixture(scope="module")
def alone(few) -> dict[int, list[float]]:
  """The losses on one device by the number of streams; they fall."""
  one, both = few[1]
  assert one[-1] < one[0]
  assert both[-1] < both[0]
  return {1: one, 2: both}


def agree(alone, settings: list[dict], found: list[list[float]]) -> None:
  for setting, run in zip(settings, found, strict=True):
    np.testing.assert_allclose(run, alone[len(setting["streams"])], rtol=1e-5, err_msg=str(setting))


SHAPES_OF_EIGHT = [[r, f, 8 // r // f] for r in (1, 2, 4, 8) for f in (1, 2, 4, 8) if r * f <= 8]


def test_two_and_four_devices_draw_the_losses_of_one(alone, few):
  np.testing.assert_allclose([few[2][0], few[4][0]], [alone[1]] * 2, rtol=1e-5)


def test_every_mesh_shape_of_eight_devices_draws_them_too(alone):
  assert len(SHAPES_OF_EIGHT) == 10
  settings = [ONE | dict(mesh=shape) for shape in SHAPES_OF_EIGHT]
  halves = settings[::2], settings[1::2]
  for half, found in zip(halves, losses([start(8, half) for half in halves]), strict=True):
    agree(alone, half, found)


def test_no_setting_of_sharding_or_remat_changes_them(alone):
  """ZeRO-1 and frozen parts whole beside fully sharded trained ones; and activations computed again."""
  zero = BOTH | dict(mesh=[2, 2, 2], sharding=dict(trainable="model", optimizer="fsdp", frozen="model"), remat="dots")
  whole = BOTH | dict(mesh=[1, 4, 2], sharding=dict(trainable="fsdp", optimizer="fsdp", frozen="model"), remat="full")
  for setting, found in zip((zero, whole), losses([start(8, [zero]), start(8, [whole])]), strict=True):
    agree(alone, [setting], found)


def over_processes(count: int, devices: int, settings: list[dict]) -> dict[str, list]:
  """The results of real processes of `devices` virtual devices each, which must agree among themselves."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  first, *others = results([start(devices, settings, address, count, index) for index in range(count)])
  assert all(other == first for other in others)
  return first


def test_two_processes_draw_the_same_losses_and_put_their_counts_together(alone):
  """Rows over both, in turns as well; and one model over both, which then read the same rows and count them once (see
  `tallied`)."""
  settings = [BOTH | dict(mesh=[4, 1, 1]), ONE | dict(mesh=[2, 2, 1], apart=True), ONE | dict(mesh=[1, 1, 4])]
  found = over_processes(2, 2, settings)
  agree(alone, settings, found["losses"])
  assert found["tallies"] == [[[1 + 2, 0 + 5], 1.0, [3.0, 4.0]]] * 2 + [[[1, 0], 1.0, [3.0, 4.0]]]


def test_four_processes_draw_them_too(alone):
  """Rows and one model over pairs of them, parameters over all."""
  settings = [ONE | dict(mesh=[1, 2, 2])]
  found = over_processes(4, 1, settings)
  agree(alone, settings, found["losses"])
  assert found["tallies"] == [[[1 + 2, 0 + 5], 2.0, [3.0, 4.0, 5.0, 6.0]]]


def test_a_run_goes_on_on_other_devices_mesh_shapes_and_processes(alone, tmp_path):
  """A step on eight devices, one on four, one over two processes, one on one device: the losses of one device."""
  saved = dict(streams=["pages"], workdir=str(tmp_path / "run"), steps=1)
  found = losses([start(8, [saved | dict(mesh=[2, 2, 2])])])[0][0]
  found += losses([start(4, [saved | dict(mesh=[1, 4, 1], sharding=dict(trainable="model"))])])[0][0]
  found += over_processes(2, 1, [saved | dict(mesh=[2, 1, 1])])["losses"][0]
  found += losses([start(1, [saved | dict(mesh=[1, 1, 1])])])[0][0]
  np.testing.assert_allclose(found, alone[1], rtol=1e-5)
