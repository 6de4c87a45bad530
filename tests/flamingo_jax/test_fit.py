"""What is said when a mesh does not fit, and that following the advice helps."""

import itertools
import math
import re

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.fit import Length, fit_faults, multiples_beside
from flamingo_jax.parallel.mesh import FULLY_SHARDED, MeshConfig, ShardingConfig
from flamingo_jax.training.config import TrainingConfig
from flamingo_jax.training.objectives import flamingo_objective
from flamingo_jax.training.optimizer import OptimizerConfig
from flamingo_jax.training.placing import check_fit

HEADS = [Length("model.language.heads", 12, "model"), Length("model.cross_attention.heads", 8, "model")]
WIDTH = Length("embed of language/embeddings and 3 more", 96, "fsdp")


def sizes(replica: int, fsdp: int, model: int) -> dict[str, int]:
  return dict(replica=replica, fsdp=fsdp, model=model)


def test_devices_that_a_mesh_does_not_make_are_counted():
  assert fit_faults(sizes(3, 1, 1), 8, {}, []) == [
    "mesh: replica=3, fsdp=1, model=1 makes 3 devices; there are 8.",
    "Nearest meshes of 8 devices that fit: replica=8, fsdp=1, model=1; replica=4, fsdp=2, model=1; "
    "replica=4, fsdp=1, model=2.",
  ]
  first, advice = fit_faults(sizes(-1, 1, 3), 8, {}, HEADS[:1])
  assert first == "mesh: replica=-1, fsdp=1, model=3 makes a multiple of 3 devices; there are 8."
  assert "replica=2, fsdp=1, model=4" in advice


@pytest.mark.parametrize("asked", [sizes(-1, -1, 1), sizes(0, 1, 1), sizes(-2, 2, 2), sizes(-1, 0, 1)])
def test_sizes_that_are_none_are_refused(asked):
  first, advice = fit_faults(asked, 4, {}, [])
  assert "sizes are 1 or more, and one of them at most is -1" in first
  assert advice.startswith("Nearest meshes of 4 devices that fit: replica=")


def test_a_batch_is_told_the_sizes_beside_it():
  faults = fit_faults(sizes(8, 1, 1), 8, {"pages": 6, "captions": 16, "videos": 20}, [])
  assert faults == [
    "streams.pages.batch_size is 6, which 8 devices (mesh.replica x mesh.fsdp) cannot share evenly; 8 would do.",
    "streams.videos.batch_size is 20, which 8 devices (mesh.replica x mesh.fsdp) cannot share evenly; "
    "16 or 24 would do.",
    "Nearest meshes of 8 devices that fit: replica=2, fsdp=1, model=4; replica=1, fsdp=2, model=4; "
    "replica=1, fsdp=1, model=8.",
  ]


def test_heads_are_told_the_sizes_that_divide_them_all():
  faults = fit_faults(sizes(1, 1, 8), 8, {}, [*HEADS, WIDTH])
  assert faults == [
    "model.language.heads is 12, which mesh.model=8 does not divide.",
    "mesh.model divides all that is cut along it if it is 1, 2 or 4.",
    "Nearest meshes of 8 devices that fit: replica=2, fsdp=1, model=4; replica=1, fsdp=2, model=4; "
    "replica=4, fsdp=1, model=2.",
  ]


def test_all_that_does_not_fit_is_said_at_once():
  faults = fit_faults(sizes(-1, 5, 8), 16, {"pages": 7}, [*HEADS, WIDTH])
  assert [fault.split(" ")[0] for fault in faults] == [
    "mesh:",
    "streams.pages.batch_size",
    "model.language.heads",
    "embed",
    "mesh.model",
    "mesh.fsdp",
    "Nearest",
  ]
  assert "which 2 devices" in faults[1]  # 16 devices, of which 8 hold one model
  assert "with batches of a multiple of replica x fsdp" in faults[-1]  # 7 rows take 1 part, that is model=16


def test_multiples_beside_a_number_are_the_nearest():
  for count, parts in itertools.product(range(1, 20), range(1, 7)):
    below = [number for number in range(1, count + 1) if number % parts == 0]
    above = [number for number in range(count + 1, count + parts + 1) if number % parts == 0]
    assert multiples_beside(count, parts) == below[-1:] + above[:1]


def meshes_in(advice: str) -> list[dict[str, int]]:
  return [sizes(*map(int, found)) for found in re.findall(r"replica=(\d+), fsdp=(\d+), model=(\d+)", advice)]


def test_every_mesh_that_is_advised_fits_and_none_is_nearer():
  """Against all meshes there are, on random jobs."""
  random = np.random.default_rng(0)
  advised = 0
  for _ in range(150):
    devices = int(random.integers(1, 19))
    asked = dict(zip(("replica", "fsdp", "model"), map(int, random.choice([-1, 1, 2, 3, 4, 6, 8], 3)), strict=True))
    rows = {"pages": int(random.integers(1, 25))}
    lengths = [
      Length("heads", int(random.integers(1, 13)), "model"),
      Length("width", int(random.integers(1, 49)), "fsdp"),
    ]
    heads, width = (length.length for length in lengths)

    def fits(mesh, devices=devices, rows=rows, heads=heads, width=width):
      parts = mesh["replica"] * mesh["fsdp"]
      right = parts * mesh["model"] == devices and heads % mesh["model"] == 0 and width % mesh["fsdp"] == 0
      return right, right and rows["pages"] % parts == 0

    def far(mesh, asked=asked):
      return sum(abs(math.log2(mesh[axis]) - math.log2(size)) for axis, size in asked.items() if size > 0)

    everything = [sizes(*mesh) for mesh in itertools.product(range(1, devices + 1), repeat=3)]
    filled = [mesh for mesh in everything if far(mesh) == 0 and all(fits(mesh))]
    faults = fit_faults(asked, devices, rows, lengths)
    if list(asked.values()).count(-1) < 2:
      assert bool(faults) == (not filled), (asked, devices, rows, lengths)
    if not faults:
      continue
    unchanged = "with batches" not in faults[-1]
    right = [mesh for mesh in everything if fits(mesh)[unchanged]]
    assert unchanged == any(fits(mesh)[1] for mesh in everything)
    found = meshes_in(faults[-1])
    assert all(mesh in right for mesh in found)
    assert np.allclose([far(mesh) for mesh in found], sorted(map(far, right))[: len(found)])
    assert len(found) == min(3, len(right))
    advised += 1
  assert advised > 50


def faults_of(tiny, rows=None, devices: int = 8, sharding=FULLY_SHARDED, **mesh: int) -> list[str]:
  config = TrainingConfig(mesh=MeshConfig(**mesh), sharding=sharding)
  with pytest.raises(UserError) as error:
    check_fit(flamingo_objective(tiny), config, rows or {"pages": 8}, devices)
  return str(error.value).splitlines()


def test_a_model_names_the_heads_of_all_its_parts(tiny):
  """Its decoder has four heads and two for keys, all else two; a gated layer's hidden width is 32, the decoder's 24."""
  faults = faults_of(tiny, model=4)
  named = {fault.split(" is ")[0]: fault for fault in faults[:-2]}
  assert named == {
    f"model.{part}": f"model.{part} is 2, which mesh.model=4 does not divide."
    for part in ("language.key_value_heads", "cross_attention.heads", "resampler.heads", "vision.heads")
  }
  assert faults[-2] == "mesh.model divides all that is cut along it if it is 1 or 2."
  assert all(mesh["model"] in (1, 2) for mesh in meshes_in(faults[-1]))
  thirds = faults_of(tiny, model=3, devices=3, rows={"pages": 3})
  assert "model.language.heads is 4, which mesh.model=3 does not divide." in thirds
  assert any(fault.startswith("vocab of language/embeddings is 32") for fault in thirds)
  assert not any(" is 24" in fault for fault in thirds)


def test_an_axis_is_checked_where_some_kind_of_array_is_cut_along_it(tiny):
  """Widths are 16; with everything cut by Megatron alone, fsdp devices hold whole ones."""
  assert any("mesh.fsdp=3" in fault for fault in faults_of(tiny, {"pages": 6}, 3, fsdp=3))
  assert any("mesh.fsdp=3" in fault for fault in faults_of(tiny, {"pages": 6}, 3, ShardingConfig("model"), fsdp=3))
  megatron = TrainingConfig(mesh=MeshConfig(fsdp=3), sharding=ShardingConfig("model", "model", "model"))
  check_fit(flamingo_objective(tiny), megatron, {"pages": 6}, 3)


def test_a_job_that_fits_is_let_in(tiny):
  check_fit(flamingo_objective(tiny), TrainingConfig(mesh=MeshConfig(-1, 2, 2)), {"pages": 8, "captions": 4}, 8)


def test_what_is_clipped_for_itself_is_trained(tiny):
  """The tiny Flamingo's vision encoder is frozen."""
  clipped = OptimizerConfig(adaptive_clip=0.01, adaptive_clip_on=("^resampler/", "^vision/"))
  with pytest.raises(UserError) as error:
    check_fit(flamingo_objective(tiny), TrainingConfig(optimizer=clipped), {"pages": 8}, 8)
  assert str(error.value) == (
    "optimizer.adaptive_clip_on: the pattern '^vision/' names no trained parameter. "
    "They start with: language, resampler."
  )
