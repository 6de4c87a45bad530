import contextlib
import dataclasses
import json
import os

import gguf
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop.gguf import GgufModel
from flamingo_jax.interop.importing import open_gguf
from flamingo_jax.interop.model_folder import (
  check_replaceable,
  content_hash,
  load_model,
  publish,
  save_model,
  save_tensors,
)
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig
from flamingo_jax.ops.positions import rotate

WEIGHTS = {
  "embeddings": np.arange(12, dtype=np.float32).reshape(4, 3),
  "norm/scale": np.ones(3, np.float32),
  "layers/gate": np.full((2, 3), 0.5, np.float32),
}


def save(directory, weights=WEIGHTS):
  directory.mkdir(parents=True)
  save_model(directory, weights, DecoderConfig(width=3), origin="a test")
  return directory


def test_what_was_saved_is_loaded(tmp_path):
  parameters, described = load_model(save(tmp_path / "model"))
  assert parameters.keys() == WEIGHTS.keys()
  for path, array in parameters.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, WEIGHTS[path])
  assert DecoderConfig(**described["config"]) == DecoderConfig(width=3)
  assert described["origin"] == "a test"
  assert described["hash"] == content_hash(WEIGHTS)


def test_the_hash_does_not_depend_on_order_or_memory_layout():
  turned = {path: np.asarray(array, order="F") for path, array in reversed(WEIGHTS.items())}
  assert content_hash(turned) == content_hash(WEIGHTS)


@pytest.mark.parametrize(
  "change",
  [
    {"embeddings": WEIGHTS["embeddings"].T},
    {"embeddings": WEIGHTS["embeddings"].reshape(3, 4)},
    {"embeddings": WEIGHTS["embeddings"].view(np.int32)},
    {"embeddings": np.nextafter(WEIGHTS["embeddings"], np.float32(9))},
    {"norm/bias": np.ones(3, np.float32)},
  ],
)
def test_the_hash_tells_names_shapes_dtypes_and_values_apart(change):
  assert content_hash(WEIGHTS | change) != content_hash(WEIGHTS)


def test_no_flipped_byte_passes(tmp_path):
  """Every byte of the file in turn: the header's too, unless it still says the same."""
  model = save(tmp_path / "model")
  path = model / "model.safetensors"
  whole = path.read_bytes()
  passed = []
  for at in range(len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    try:
      load_model(model)
      passed.append(at)
    except UserError as error:
      assert str(model) in str(error)
  assert passed == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_file_is_damaged(tmp_path, name, share):
  path = save(tmp_path / "model") / name
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(UserError, match="Delete it and import the model again"):
    load_model(tmp_path / "model")


def test_a_description_without_a_hash_is_damaged(tmp_path):
  path = save(tmp_path / "model") / "config.json"
  path.write_text(json.dumps({"config": {}}))
  with pytest.raises(UserError, match="Delete it and import the model again"):
    load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(tmp_path, name):
  (save(tmp_path / "model") / name).unlink()
  with pytest.raises(UserError) as error:
    load_model(tmp_path / "model")
  assert f"{tmp_path / 'model' / name}: missing" in str(error.value)


def test_publishing_replaces_a_model_whole(tmp_path):
  old, new = save(tmp_path / "model"), save(tmp_path / "unfinished" / "model", {"norm/scale": np.zeros(2, np.float32)})
  (old / "tokenizer.json").write_text("")
  publish(new, old, check_replaceable)
  parameters, _ = load_model(old)
  assert list(parameters) == ["norm/scale"]
  assert sorted(path.name for path in old.iterdir()) == ["config.json", "model.safetensors"]
  assert not new.exists()


@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_publishing_that_is_killed_midway_leaves_no_half_model(tmp_path, monkeypatch, fatal):
  """Killed at any of its changes to the disk: the old model is there, or the new one, or none."""
  old, new = save(tmp_path / "model"), save(tmp_path / "unfinished" / "model", {"norm/scale": np.zeros(2, np.float32)})
  calls = []

  def mortal(function):
    def call(*arguments, **options):
      calls.append(function)
      if len(calls) == fatal:
        raise KeyboardInterrupt
      return function(*arguments, **options)

    return call

  for name in ("replace", "unlink"):
    monkeypatch.setattr(os, name, mortal(getattr(os, name)))
  with contextlib.suppress(KeyboardInterrupt):
    publish(new, old, check_replaceable)
  assert calls
  assert not old.exists() or load_model(old)[0].keys() in (WEIGHTS.keys(), {"norm/scale"})


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
  target = tmp_path / "documents"
  target.mkdir()
  (target / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match=r"documents: holds thesis\.tex, which no import wrote"):
    publish(save(tmp_path / "unfinished" / "model"), target, check_replaceable)
  assert (target / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda folder: (folder / "notes.md").write_text("mine"), r"model: holds notes\.md, which no import wrote"),
    (lambda folder: (folder / "config.json").unlink(), r"config\.json is not one that `flamingo import` wrote"),
    (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not one that `flamingo import` wrote"),
    (
      lambda folder: (folder / "config.json").write_text(json.dumps(dict(model_type="llama", hash="0"))),
      r"config\.json is not one that `flamingo import` wrote",
    ),
  ],
)
def test_weights_alone_do_not_make_a_folder_ours(tmp_path, change, message):
  target = save(tmp_path / "model")
  change(target)
  before = {path.name: path.read_bytes() for path in target.iterdir()}
  with pytest.raises(UserError, match=message):
    publish(save(tmp_path / "unfinished" / "model"), target, check_replaceable)
  assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def imported(path) -> dict[str, np.ndarray]:
  """The parameters of a GGUF file, by way of a model folder."""
  source = open_gguf(path)
  folder = path.parent / f"{path.name}.imported"
  folder.mkdir()
  save_tensors(folder, source.tensors, source.rules, source.ignored, dict(config=dataclasses.asdict(source.config)))
  return load_model(folder)[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory, write_gguf):
  """The opened file, its tensors as they were written, and our parameters."""
  path = tmp_path_factory.mktemp("llama") / "model.gguf"
  tensors = write_gguf(path)
  return GgufModel(path), tensors, imported(path)


def test_the_architecture_is_read_from_the_metadata(llama):
  expected = DecoderConfig(
    vocabulary=40,
    width=16,
    layers=2,
    heads=4,
    key_value_heads=2,
    feed_forward_width=24,
    rope_base=5000.0,
    norm_epsilon=1e-5,
    tied_embeddings=False,
    extra_tokens=0,
  )
  assert llama[0].config() == expected


def test_a_file_without_an_output_table_has_tied_embeddings(tmp_path, write_gguf):
  write_gguf(tmp_path / "model.gguf", leave_out=("output.weight",))
  assert GgufModel(tmp_path / "model.gguf").config().tied_embeddings
  assert "unembeddings" not in imported(tmp_path / "model.gguf")


def test_every_weight_arrives_and_computes_what_it_did(llama):
  """A weight is what its product with an input is. Queries and keys are left to the test of scores."""
  _, tensors, parameters = llama
  x, hidden, heads = (np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in (16, 24, (4, 4)))
  for layer in range(2):
    ours = {path.removeprefix("layers/"): array[layer] for path, array in parameters.items() if "layers/" in path}
    theirs = {name.split(".")[2]: array for name, array in tensors.items() if name.startswith(f"blk.{layer}.")}
    products = {
      "attn_norm": (x * ours["attention_norm/scale"], x * theirs["attn_norm"]),
      "ffn_norm": (x * ours["feed_forward_norm/scale"], x * theirs["ffn_norm"]),
      "attn_v": (np.einsum("d,dhk->hk", x, ours["attention/value/kernel"]).ravel(), theirs["attn_v"] @ x),
      "attn_output": (
        np.einsum("hk,hkd->d", heads, ours["attention/output/kernel"]),
        theirs["attn_output"] @ heads.ravel(),
      ),
      "ffn_gate": (x @ ours["feed_forward/gate/kernel"], theirs["ffn_gate"] @ x),
      "ffn_up": (x @ ours["feed_forward/up/kernel"], theirs["ffn_up"] @ x),
      "ffn_down": (hidden @ ours["feed_forward/down/kernel"], theirs["ffn_down"] @ hidden),
    }
    assert products.keys() | {"attn_q", "attn_k"} == theirs.keys()
    for found, expected in products.values():
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(parameters["embeddings"], tensors["token_embd.weight"])
  np.testing.assert_array_equal(parameters["unembeddings"], tensors["output.weight"])
  np.testing.assert_array_equal(parameters["norm/scale"], tensors["output_norm.weight"])


def turned_pairs(x: np.ndarray, base: float) -> np.ndarray:
  """Rotary positions as GGUF's Llama has them: values 2i and 2i + 1 are one complex number. [L, heads, width]"""
  length, _, width = x.shape
  angles = np.arange(length)[:, None, None] * base ** (-np.arange(0, width, 2) / width)
  return (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)


def test_attention_scores_are_those_of_the_interleaved_rotation(llama):
  _, tensors, parameters = llama
  base = 5000.0
  x = np.random.default_rng(2).normal(size=(6, 16)).astype(np.float32)
  positions = np.arange(6)[None]
  for layer in range(2):
    query, key = (np.float64(x) @ tensors[f"blk.{layer}.attn_{name}.weight"].T for name in "qk")
    query, key = turned_pairs(query.reshape(6, 4, 4), base), turned_pairs(key.reshape(6, 2, 4), base)
    expected = np.einsum("lhk,shk->hls", query, np.repeat(key, 2, axis=1).conj()).real
    ours = [
      rotate(np.einsum("ld,dhk->lhk", x, parameters[f"layers/attention/{name}/kernel"][layer])[None], positions, base)
      for name in ("query", "key")
    ]
    found = np.einsum("lhk,shk->hls", ours[0][0], np.repeat(ours[1][0], 2, axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_parameters_are_those_of_the_decoder(llama, random_parameters):
  model, _, found = llama
  config = model.config()
  tokens = np.zeros((1, 2), np.int32)
  wanted = random_parameters(lambda key: Decoder(config, np.float32).init(key, tokens, tokens + 1)["params"])
  assert sum(array.size for array in found.values()) == sum(array.size for array in wanted.values())
  for path in ("embeddings", "unembeddings", "norm/scale"):
    assert found[path].shape == wanted[path].shape
  assert {path.removeprefix("layers/"): array.shape for path, array in found.items() if "layers/" in path} == {
    path.removeprefix("prefix/"): array.shape for path, array in wanted.items() if "prefix/" in path
  }


def test_the_tokenizers_parts_are_read(llama):
  parts = llama[0].tokenizer()
  assert parts["vocabulary"][0] == "<|endoftext|>"
  assert len(parts["vocabulary"]) == 40
  assert (parts["merges"], parts["pre_tokenizer"]) == (["A B"], "smollm")


@pytest.mark.parametrize(
  ("metadata", "expected"),
  [
    ({}, {}),
    ({"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}, dict(bos=1, eos=2)),
    ({"tokenizer.ggml.eos_token_id": 2}, dict(bos=2, eos=2)),
  ],
)
def test_the_ids_that_begin_and_end_a_document_are_read(tmp_path, write_gguf, metadata, expected):
  write_gguf(tmp_path / "model.gguf", metadata=metadata)
  assert open_gguf(tmp_path / "model.gguf").ids == expected


def test_quantized_weights_are_read_as_float32(tmp_path):
  """Q8_0 stores 32 values as bytes and a scale, so that none is off by more than half a step of its block."""
  weights = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
  writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
  quantized = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
  writer.add_tensor("token_embd.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = GgufModel(tmp_path / "model.gguf").read("token_embd.weight")
  assert (found.dtype, found.shape) == (np.float32, (4, 64))
  step = np.abs(weights).max() / 127
  assert 0 < np.abs(found - weights).max() <= 0.51 * step


def test_another_architecture_is_refused(tmp_path, write_gguf):
  write_gguf(tmp_path / "model.gguf", architecture="gpt2")
  with pytest.raises(UserError, match=r"architecture is 'gpt2'; only 'llama'"):
    GgufModel(tmp_path / "model.gguf")


@pytest.mark.parametrize(
  ("left_out", "message"),
  [
    ("blk.1.attn_k.weight", "missing: blk.1.attn_k.weight [8, 16]"),
    ("head_count_kv", "the metadata field 'llama.attention.head_count_kv' is missing."),
  ],
)
def test_what_is_missing_is_named(tmp_path, write_gguf, left_out, message):
  path = tmp_path / "model.gguf"
  write_gguf(path, leave_out=(left_out,))
  with pytest.raises(UserError) as error:
    imported(path)
  assert str(error.value).startswith(f"{path}: ")
  assert message in str(error.value)


def test_weights_that_would_go_unread_are_refused(tmp_path, write_gguf):
  """Such as the scaled frequencies of a Llama 3.1, without which its positions would be others."""
  write_gguf(tmp_path / "model.gguf", more={"rope_freqs.weight": np.ones(2, np.float32)})
  with pytest.raises(UserError, match=r"not known: rope_freqs\.weight \[2\]"):
    imported(tmp_path / "model.gguf")


ORDINARY_POSITIONS = {
  "llama.rope.scaling.type": "none",
  "llama.rope.scaling.factor": 1.0,
  "llama.rope.scale_linear": 1.0,
  "llama.rope.dimension_count": 4,
}


def test_positions_that_are_described_as_ordinary_are_read(tmp_path, write_gguf, llama):
  write_gguf(tmp_path / "model.gguf", metadata=ORDINARY_POSITIONS)
  assert GgufModel(tmp_path / "model.gguf").config() == llama[0].config()


@pytest.mark.parametrize(
  ("name", "value", "read"),
  [
    ("llama.rope.scaling.type", "linear", "'none'"),
    ("llama.rope.scaling.factor", 4.0, "1"),
    ("llama.rope.scale_linear", 2.0, "1"),
    ("llama.rope.dimension_count", 2, "4"),
  ],
)
def test_positions_that_the_decoder_does_not_have_are_refused(tmp_path, write_gguf, name, value, read):
  path = tmp_path / "model.gguf"
  write_gguf(path, metadata={name: value})
  with pytest.raises(UserError) as error:
    imported(path)
  assert str(error.value) == f"{path}: {name} is {value!r}; only {read} is read."


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<html>not found</html>" * 50, bytes(1000), b"GGUF" + bytes(1000)])
def test_garbage_is_refused(tmp_path, content):
  path = tmp_path / "model.gguf"
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    GgufModel(path)
  assert str(error.value).startswith(f"{path}: ")


def test_a_download_that_broke_off_is_refused(tmp_path, write_gguf):
  write_gguf(tmp_path / "model.gguf")
  whole = (tmp_path / "model.gguf").read_bytes()
  path = tmp_path / "part.gguf"
  for length in range(0, len(whole) - 64, 97):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError, match=r"part\.gguf: "):
      imported(path)
