"""The same tokens and scores on one device and on meshes of eight."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, "tests/flamingo_jax")
from sharded_inference import run
print(json.dumps([run(mesh) for mesh in json.loads(sys.argv[1])]))
"""
MESHES = [None, [8, 1, 1], [1, 2, 4]]


@pytest.fixture(scope="module")
def found() -> list[dict]:
  """What each mesh gives, the first without one."""
  flags = "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
  process = subprocess.run(
    [sys.executable, "-c", SCRIPT, json.dumps(MESHES)],
    cwd=pathlib.Path(__file__).parent.parent.parent,
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", range(1, len(MESHES)))
def test_a_mesh_writes_and_scores_as_one_device(found, mesh):
  alone, spread = found[0], found[mesh]
  for name in ("greedy", "drawn", "beams"):
    assert spread[name] == alone[name]
  np.testing.assert_allclose(spread["scores"], alone["scores"], atol=1e-4)
  assert len({tuple(row) for row in alone["greedy"]}) > 1


def test_weights_and_keys_stay_cut(found):
  """By the fsdp and model axes the kernels; by rows and heads what is kept of the text."""
  assert [each["share"] for each in found] == [1.0, 1.0, 1 / 8]
  assert found[1]["keys"] == 1 / 8
  assert found[2]["keys"] == 1 / 8
