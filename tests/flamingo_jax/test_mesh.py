import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import initialize
from flamingo_jax.models.parameters import flat
from flamingo_jax.parallel.mesh import AXES, MeshConfig, data_parts, make_mesh, parameter_shardings
from flamingo_jax.planning.topologies import open_topology
from launch.config import load_config

HERE = pathlib.Path(__file__).parent
EIGHT = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
MESHES = """
from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
for sizes in [(-1, 1, 1), (2, -1, 2), (1, 8, 1), (2, 2, 2), (1, 1, -1), (-1, 3, 1), (2, 2, 1)]:
  try:
    print(*make_mesh(MeshConfig(*sizes)).shape.values())
  except UserError as error:
    print(str(error).splitlines()[0])
"""


def on_eight_devices(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, *arguments]
  return subprocess.run(command, cwd=HERE.parent.parent, env=EIGHT, capture_output=True, text=True, timeout=300)


def test_one_free_axis_takes_the_devices_that_are_left():
  done = on_eight_devices("-c", MESHES)
  assert done.returncode == 0, done.stderr
  *made, indivisible, too_few = done.stdout.splitlines()
  assert made == ["8 1 1", "2 2 2", "1 8 1", "2 2 2", "1 1 8"]
  assert "replica=-1, fsdp=3, model=1 makes a multiple of 3 devices; there are 8." in indivisible
  assert "replica=2, fsdp=2, model=1 makes 4 devices; there are 8." in too_few


def test_the_step_on_eight_devices_matches_numpy_too():
  """Means have global denominators, and sharded parameters get the same updates."""
  done = on_eight_devices("-m", "pytest", "-k", "numpy", str(HERE / "test_step.py"))
  assert done.returncode == 0, done.stdout
  assert "5 passed" in done.stdout


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (2, 1, 1), (-1, 2, 1)])
def test_axes_that_do_not_make_the_devices_are_refused(sizes):
  with pytest.raises(UserError, match=r"(?s)mesh: replica=.*devices that fit: replica=1, fsdp=1, model=1\.$"):
    make_mesh(MeshConfig(*sizes))


SLICES = """
import os
from jax.experimental import topologies
from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.planning.topologies import QUIET
os.environ.update(QUIET)
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
for sizes in [(2, 8, 1), (4, 2, 2), (-1, 4, 2), (1, 16, 1)]:
  try:
    mesh = make_mesh(MeshConfig(*sizes), devices)
    print([sorted({device.slice_index for device in row.flat}) for row in mesh.devices])
  except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
  ("path", "topology"),
  [
    ("configs/flamingo_80b.py", "v4:8x12x16"),
    ("configs/flamingo_9b.py", "v4:4x4x8"),
    ("configs/flamingo_3b.py", "v5e:8x8"),
    ("configs/flamingo_3b.py", "v4:4x4x8"),
  ],
)
def test_every_host_of_a_slice_reads_the_rows_of_its_own_chips(path, topology, monkeypatch):
  """On real slices, where the chips of a host are a square of the torus, and their rows lie apart."""
  mesh = make_mesh(MeshConfig(**load_config(path, {})["mesh"]), open_topology(topology).devices)
  read = {}
  for host in {device.process_index for device in mesh.devices.flat}:
    monkeypatch.setattr(jax, "process_index", lambda host=host: host)
    read[host], count = data_parts(mesh)
  replica, fsdp, _ = mesh.devices.shape
  assert count == replica * fsdp
  for (row, column, _), device in np.ndenumerate(mesh.devices):
    assert row * fsdp + column in read[device.process_index]
  assert {part for parts in read.values() for part in parts} == set(range(count))
  assert any(np.diff(parts).max(initial=1) > 1 for parts in read.values())


def test_hosts_that_share_only_some_rows_are_refused(monkeypatch):
  """Chips of four in rows of six: some rows have chips of two hosts, which have rows of their own as well."""
  devices = open_topology("v5e:4x4").devices[:12]
  mesh = Mesh(np.array(sorted(devices, key=lambda device: device.process_index)).reshape(1, 2, 6), AXES)
  monkeypatch.setattr(jax, "process_index", lambda: mesh.devices.flat[0].process_index)
  with pytest.raises(UserError, match=r"(?s)not all.*mesh\.model, 6, be a multiple or a divisor"):
    data_parts(mesh)


def test_a_mesh_that_jax_cannot_lay_over_a_torus_is_named():
  with pytest.raises(UserError, match="no way to lay replica=10 x fsdp=4 x model=8 over the torus of a slice of 320"):
    make_mesh(MeshConfig(10, 4, 8), open_topology("v4:4x4x20").devices)
  assert make_mesh(MeshConfig(20, 4, 4), open_topology("v4:4x4x20").devices).size == 320


def test_only_the_replica_axis_leads_from_slice_to_slice():
  done = subprocess.run([sys.executable, "-c", SLICES], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  *made, refused = done.stdout.splitlines()
  assert made == ["[[0], [1]]", "[[0], [0], [1], [1]]", "[[0], [1]]"]
  assert "replica=1; there are 2 slices" in refused


def boxed(tiny) -> dict:
  return jax.eval_shape(lambda key: initialize(tiny, key), jax.random.key(0))


def test_parameters_are_cut_along_the_axes_their_kinds_name(tiny):
  shardings = parameter_shardings(boxed(tiny), AbstractMesh((1, 2, 2), AXES))
  shapes = flat(boxed(tiny))
  parts = {path: np.divide(shapes[path].shape, s.shard_shape(shapes[path].shape)) for path, s in shardings.items()}
  assert parts.keys() == shapes.keys()
  expected = {  # how many parts each axis is cut into; 2 along fsdp (width) or model (heads, hidden, vocabulary)
    "language/embeddings": [2, 2],
    "language/extra_embeddings": [1, 2],
    "language/norm/scale": [1],
    "language/prefix/attention/query/kernel": [1, 2, 2, 1],
    "language/prefix/attention/key/kernel": [1, 2, 2, 1],
    "language/prefix/attention/output/kernel": [1, 2, 1, 2],
    "language/groups/layers/feed_forward/up/kernel": [1, 1, 2, 2],
    "language/groups/gated_cross_attention/feed_forward/down/kernel": [1, 2, 2],
    "language/groups/gated_cross_attention/attention_gate": [1],
    "language/tail/gated_cross_attention/attention_gate": [],
    "resampler/layers/attention/value/kernel": [1, 2, 2, 1],
    "resampler/latents": [1, 2],
  }
  assert {path: parts[path].tolist() for path in expected} == expected


def test_lengths_that_do_not_divide_are_all_named(tiny):
  """Three devices divide no number of heads (2 or 4) and no vocabulary (32), but the decoder's hidden width (24)."""
  with pytest.raises(UserError) as error:
    parameter_shardings(boxed(tiny), AbstractMesh((1, 1, 3), AXES))
  *faults, advice = str(error.value).splitlines()
  assert advice == "mesh.model divides all that is cut along it if it is 1 or 2."
  assert {(words[0], words[-6]) for fault in faults if (words := fault.replace(",", "").split())[0] != "mlp"} == {
    ("model.language.heads", "4"),
    ("model.language.key_value_heads", "2"),
    ("model.cross_attention.heads", "2"),
    ("model.resampler.heads", "2"),
    ("model.vision.heads", "2"),
    ("vocab", "32"),
  }
  assert any(fault.startswith("mlp of language/") and "gated_cross_attention" in fault for fault in faults)
  assert not any("24" in fault for fault in faults)
