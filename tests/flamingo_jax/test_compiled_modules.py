"""What is read from compiled programs, against closed forms: loops, products, bytes, what chips exchange."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError
from flamingo_jax.planning import hlo
from flamingo_jax.planning.collectives import bytes_by_kind, collectives, group_of, interconnect_seconds
from flamingo_jax.planning.hlo import UnreadableModule
from flamingo_jax.planning.topologies import GENERATIONS, open_topology, parse_topology
from flamingo_jax.planning.work import memory_bytes, product_flops

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def compiled(function, *shapes) -> hlo.Module:
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_within_loops_count_as_often_as_they_run():
  def function(x, weights):
    def inner(x, _):
      return x @ weights, None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=5)[0] @ weights, None

    return jax.lax.scan(outer, x, None, length=7)[0]

  assert product_flops(compiled(function, (32, 64), (64, 64))) == 7 * (5 + 1) * 2 * 32 * 64 * 64


def test_convolutions_count_what_lies_within_the_image():
  def function(image, kernel):
    return jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  pairs = sum(0 <= 2 * out + tap < 9 for out in range(5) for tap in (-1, 0, 1))  # along one axis
  assert product_flops(compiled(function, (2, 9, 9, 4), (3, 3, 4, 8))) == 2 * pairs**2 * 2 * 4 * 8


def test_a_loop_whose_length_depends_on_the_data_is_refused():
  def function(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ x, x)

  with pytest.raises(UnreadableModule, match="how often the loop"):
    product_flops(compiled(function, (8, 8)))


def test_every_way_of_writing_groups():
  assert group_of("replica_groups={{0,2},{1,3}}, to_apply=%add", 4) == (0, 2)
  assert group_of("replica_groups={}", 4) == (0, 1, 2, 3)
  assert group_of("channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true", 8) == (0, 2, 4, 6)
  assert group_of("replica_groups=mesh['a'=2,'b'=3] {'b'}, x=1", 6) == (0, 1, 2)
  assert group_of("source_target_pairs={{0,1},{1,0}}", 2) == (0, 1)
  assert group_of("source_target_pairs={{0,0},{1,2},{2,1},{3,3}}", 4) == (1, 2)
  assert group_of("source_target_pairs={{0,0},{1,1}}", 2) == (0, 0)
  with pytest.raises(UnreadableModule, match="a new way"):
    group_of("replica_groups=a new way", 4)


@needs_libtpu
def test_what_a_slice_exchanges_in_a_loop():
  """Four rounds, each of an all-reduce over 2 chips and an all-gather over 4, compiled for TPUs."""
  chips = sorted(open_topology("v5e:2x4").devices, key=lambda chip: tuple(chip.coords))
  mesh = Mesh(np.array(chips).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

  def local(x):
    def body(x, _):
      gathered = jax.lax.all_gather(x, "b", tiled=True)  # [1024, 256]
      return jax.lax.psum(jnp.sin(gathered[:256]), "a"), None

    return jax.lax.scan(body, x, None, length=4)[0]

  spec = PartitionSpec(("a", "b"))
  function = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  argument = jax.ShapeDtypeStruct((8 * 256, 256), jnp.float32, sharding=NamedSharding(mesh, spec))
  module = hlo.parse(jax.jit(function).lower(argument).compile().as_text())
  found = collectives(module)
  one = 256 * 256 * 4
  assert bytes_by_kind(found) == {"all-reduce": 4 * one, "all-gather": 4 * 4 * one}
  assert {collective.kind: collective.group for collective in found} == {
    "all-reduce": (0, 4),
    "all-gather": (0, 1, 2, 3),
  }
  places = np.array([chip.coords for chip in mesh.devices.flat])
  gathered, reduced = 4 * 4 * one * 3 / 4, 4 * one * 2 * 1 / 2  # bytes that a chip sends along its ring
  along = 2 * 1e9
  assert interconnect_seconds(found, places, 1e9) == pytest.approx(max(gathered, reduced) / along)


@needs_libtpu
def test_memory_traffic_of_a_product_is_its_operands_and_its_result():
  [chip, *_] = open_topology("v5e:2x2").devices
  where = NamedSharding(Mesh(np.array([chip]), ("a",)), PartitionSpec())
  left, right = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in ((8192, 4096), (4096, 8192)))
  text = jax.jit(jnp.matmul, out_shardings=where).lower(left, right).compile().as_text()
  assert memory_bytes(hlo.parse(text)) == 2 * (2 * 8192 * 4096 + 8192 * 8192)
  assert product_flops(hlo.parse(text)) == 2 * 8192 * 8192 * 4096


@needs_libtpu
def test_a_loop_over_stacked_weights_reads_each_of_them_once():
  [chip, *_] = open_topology("v5e:2x2").devices
  where = NamedSharding(Mesh(np.array([chip]), ("a",)), PartitionSpec())

  def function(x, weights):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

  x, weights = (jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where) for s in ((8, 2048), (9, 2048, 2048)))
  text = jax.jit(function, out_shardings=where).lower(x, weights).compile().as_text()
  assert memory_bytes(hlo.parse(text)) == pytest.approx(2 * 9 * 2048**2, rel=0.05)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v3:4x4", "a slice is named such as v4:4x4x8"),
    ("v4", "a slice of v4 has 3 sides"),
    ("v5e:4x4x4", "a slice of v5e has 2 sides"),
    ("v4:4x0x4", "1 chip or more"),
    ("v5e:32x32", "has 1024 chips; a pod of v5e has 256"),
  ],
)
def test_a_slice_that_is_none_is_refused(name, message):
  with pytest.raises(UserError, match=message):
    parse_topology(name)


@needs_libtpu
@pytest.mark.parametrize("family", GENERATIONS)
def test_the_example_of_each_generation_is_there_with_one_device_a_chip(family):
  slice_ = open_topology(GENERATIONS[family].example)
  assert len(slice_.devices) == np.prod(slice_.shape)
  assert len({tuple(device.coords) for device in slice_.devices}) == len(slice_.devices)
