import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop.rules import (
  InMemory,
  Merged,
  Part,
  Renamed,
  assemble,
  check_tensors,
  foreign_from,
  fused_linear,
  layouts,
  linear,
  same,
)

RULES = [
  same(("embed.weight", "head.weight"), Part("embeddings"), (5, 4)),
  *(same(f"blocks.{i}.norm.weight", Part("layers/norm/scale", i), (4,)) for i in range(2)),
  *(linear(f"blocks.{i}.out.weight", Part("layers/output/kernel", i), (2, 3), 4) for i in range(2)),
  *(
    fused_linear(
      f"blocks.{i}.qkv.weight", [Part(f"layers/{name}/kernel", i) for name in ("query", "key")], 4, [(2, 3), (1, 3)]
    )
    for i in range(2)
  ),
]


def foreign_arrays() -> dict[str, np.ndarray]:
  random = np.random.default_rng(0)
  return {rule.names[0]: random.normal(size=rule.shape).astype(np.float32) for rule in RULES}


def test_every_fault_is_said_at_once_by_their_name_and_ours():
  arrays = foreign_arrays()
  del arrays["blocks.0.norm.weight"], arrays["embed.weight"]
  arrays["blocks.1.out.weight"] = arrays["blocks.1.out.weight"].T
  arrays["blocks.1.qkv.weight"] = arrays["blocks.1.qkv.weight"].astype(np.int8)
  arrays |= {"adapter.weight": np.zeros((2, 3)), "rotary.inv_freq": np.zeros(3)}
  with pytest.raises(UserError) as error:
    check_tensors(InMemory(arrays, "model.safetensors"), RULES, [r"\.inv_freq$"], "another model")
  assert str(error.value).splitlines() == [
    "model.safetensors: its tensors do not fit the model:",
    "  missing: embed.weight [5, 4] (our embeddings)",
    "  missing: blocks.0.norm.weight [4] (our layers/norm/scale[0])",
    "  blocks.1.out.weight: is [6, 4], should be [4, 6] (our layers/output/kernel[1])",
    "  blocks.1.qkv.weight: is of type int8, should be of floats (our layers/query/kernel[1], layers/key/kernel[1])",
    "  not known: adapter.weight [2, 3]",
    "The checkpoint looks made for another model.",
  ]


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_of_a_tensors_names_is_enough(name):
  arrays = foreign_arrays()
  arrays[name] = arrays.pop("embed.weight")
  check_tensors(InMemory(arrays), RULES, [])
  np.testing.assert_array_equal(assemble(InMemory(arrays), RULES)["embeddings"], arrays[name])


def test_two_names_of_one_tensor_hold_the_same_values_or_are_refused():
  arrays = foreign_arrays()
  arrays["head.weight"] = arrays["embed.weight"].copy()
  check_tensors(InMemory(arrays), RULES, [])
  np.testing.assert_array_equal(assemble(InMemory(arrays), RULES)["embeddings"], arrays["embed.weight"])
  arrays["head.weight"][4, 3] = np.nextafter(arrays["head.weight"][4, 3], np.float32(9))
  with pytest.raises(UserError) as error:
    assemble(InMemory(arrays, "model.safetensors"), RULES)
  expected = "model.safetensors: embed.weight and head.weight are one tensor, but their values differ."
  assert str(error.value) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back_is_the_same_to_the_bit(dtype):
  arrays = {name: array.astype(dtype) for name, array in foreign_arrays().items()}
  arrays["embed.weight"][0, :3] = [np.nan, -0.0, np.inf]
  ours = assemble(InMemory(arrays), RULES)
  assert {path: (array.shape, array.dtype) for path, array in ours.items()} == {
    path: (layout.shape, layout.dtype) for path, layout in layouts(InMemory(arrays), RULES).items()
  }
  back = {names[0]: array for names, array in foreign_from(ours, RULES)}
  assert back.keys() == arrays.keys()
  for name, array in back.items():
    assert (array.dtype, array.shape, array.tobytes()) == (
      arrays[name].dtype,
      arrays[name].shape,
      arrays[name].tobytes(),
    )


def test_a_kernel_maps_inputs_to_outputs_as_their_weight_does():
  arrays = foreign_arrays()
  ours = assemble(InMemory(arrays), RULES)
  random = np.random.default_rng(1)
  x, heads = random.normal(size=4), random.normal(size=(2, 3))
  for layer in range(2):
    fused = arrays[f"blocks.{layer}.qkv.weight"] @ x
    np.testing.assert_allclose(np.einsum("d,dhk->hk", x, ours["layers/query/kernel"][layer]).ravel(), fused[:6])
    np.testing.assert_allclose(np.einsum("d,dhk->hk", x, ours["layers/key/kernel"][layer]).ravel(), fused[6:])
    out = arrays[f"blocks.{layer}.out.weight"] @ heads.ravel()
    np.testing.assert_allclose(np.einsum("hk,hkd->d", heads, ours["layers/output/kernel"][layer]), out)


def test_layers_of_one_stack_that_differ_in_dtype_are_refused():
  arrays = foreign_arrays()
  arrays["blocks.1.norm.weight"] = arrays["blocks.1.norm.weight"].astype(np.float16)
  with pytest.raises(UserError, match=r"x: blocks\.1\.norm\.weight is float16, but other layers of it are float32\."):
    layouts(InMemory(arrays, "x"), RULES)


def test_of_two_sources_the_first_is_read():
  first, second = (
    InMemory({"a": np.ones(2), "b": np.ones(1)}, "first"),
    InMemory({"b": np.zeros(3), "c": np.zeros(4)}, "second"),
  )
  merged = Merged(first, second)
  assert (merged.path, merged.names) == ("first + second", ["a", "b", "c"])
  assert [merged.shape(name) for name in merged.names] == [(2,), (1,), (4,)]
  np.testing.assert_array_equal(merged.read("b"), [1])


def test_names_that_become_none_are_left_out():
  source = Renamed(
    InMemory({"visual.a": np.ones(2), "text.a": np.zeros(3)}), lambda name: name[7:] if "visual" in name else None
  )
  assert source.names == ["a"]
  np.testing.assert_array_equal(source.read("a"), [1, 1])
  with pytest.raises(KeyError):
    source.read("text.a")
