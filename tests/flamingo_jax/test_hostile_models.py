"""Model files that claim what they do not hold: refused in words, before anything of that size is made."""

import json
import struct

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from flamingo_jax.errors import UserError
from flamingo_jax.interop import json_files
from flamingo_jax.interop.gguf import GgufModel
from flamingo_jax.interop.importing import FORMATS
from flamingo_jax.interop.model_folder import load_model
from flamingo_jax.interop.safetensors_files import SafetensorsFile
from flamingo_jax.interop.tensor_files import open_tensors

LLAMA = dict(
  model_type="llama", vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
  hidden_act="silu", rms_norm_eps=1e-5,
)  # fmt: skip


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(num_hidden_layers=10**12), "layers is 1000000000000"),
    (dict(vocab_size=2**40), "vocabulary is 1099511627776"),
    (dict(hidden_size="4"), "width is '4'"),
    (dict(rms_norm_eps=float("nan")), "norm_epsilon is nan"),
    (dict(rms_norm_eps=0.0), "norm_epsilon is 0.0; it is a number above 0"),
    (dict(rope_theta=-1.0), "rope_base is -1.0; it is a number above 0"),
    (dict(num_attention_heads=0), "heads is 0; it is a whole number from 1"),
    (dict(num_attention_heads=3), "heads is 3, which does not divide width, 4"),
    (dict(rope_theta=[1]), "describes no model that can be read"),
  ],
)
def test_a_config_of_absurd_sizes_is_refused_before_anything_is_made_of_them(tmp_path, change, message):
  save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
  with pytest.raises(UserError, match=message):
    FORMATS["hf-lm"](tmp_path)


@pytest.mark.parametrize(
  ("pixels", "message"),
  [
    (dict(mean=[0.5]), r"pixel_mean is \(0\.5,\)"),
    (dict(mean=["0.5", 0.5, 0.5]), "pixel_mean is"),
    (dict(std=[0.5, 0.5, 0.0]), r"pixel_deviation is \(0\.5, 0\.5, 0\.0\)"),
    (dict(std=[0.5, 0.5, float("nan")]), "pixel_deviation is"),
  ],
)
def test_pixels_that_are_not_of_three_colours_are_refused(tmp_path, pixels, message):
  tower = dict(vision_cfg=dict(width=64, layers=1, image_size=8, patch_size=4), preprocess_cfg=pixels)
  (tmp_path / "open_clip_config.json").write_text(json.dumps(tower))
  (tmp_path / "config.json").write_text(json.dumps(dict(architecture="dm_nfnet_f0", pretrained_cfg=pixels)))
  for form in ("open-clip", "timm-nfnet"):
    with pytest.raises(UserError, match=message):
      FORMATS[form](tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[]", '"\\ud800"', "{"])
def test_json_that_is_no_object_or_nests_without_end_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match="JSON"):
    FORMATS["hf-lm"](tmp_path)
  with pytest.raises(UserError, match="damaged"):
    load_model(tmp_path)


def test_a_json_file_of_absurd_size_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(json_files, "LARGEST_FILE", 20)
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  with pytest.raises(UserError, match="more than 20 bytes"):
    FORMATS["hf-lm"](tmp_path)


def test_a_tensor_without_elements_is_read_however_long_its_other_axes_are_said_to_be(tmp_path):
  header = json.dumps({"a": dict(dtype="I64", shape=[0, 2**59], data_offsets=[0, 0])}).encode()
  (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
  assert SafetensorsFile(tmp_path / "a.safetensors").read("a").shape == (0, 2**59)
  (tmp_path / "a.safetensors").write_bytes((struct.pack("<Q", len(header)) + header).replace(b"576460", b"976460"))
  with pytest.raises(UserError, match="has the shape"):
    SafetensorsFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY])
def test_a_gguf_list_longer_than_its_file_is_refused_where_the_file_ends(tmp_path, kind):
  """The package's own reader goes on for ever, or until memory is used up."""
  key = b"general.architecture"
  field = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, 2**60)
  (tmp_path / "a.gguf").write_bytes(struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, 0, 1) + field + bytes(100))
  with pytest.raises(UserError, match="not a readable GGUF file"):
    GgufModel(tmp_path / "a.gguf")


def test_more_gguf_metadata_than_any_model_has_is_refused(tmp_path, write_gguf, monkeypatch):
  write_gguf(tmp_path / "a.gguf")
  GgufModel(tmp_path / "a.gguf")
  monkeypatch.setattr("flamingo_jax.interop.gguf.MOST_VALUES", 50)
  with pytest.raises(UserError, match="more than 50 values"):
    GgufModel(tmp_path / "a.gguf")


def test_a_torch_tensor_of_a_terabyte_in_a_file_of_a_kilobyte_is_not_read(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"a": torch.ones(1).expand(10**6, 10**6), "b": torch.ones(3)}, tmp_path / "a.pt")
  tensors = open_tensors(tmp_path / "a.pt")
  assert tensors.read("b").tolist() == [1, 1, 1]
  with pytest.raises(UserError, match="has 4000000000000 bytes, but the file holds 4"):
    tensors.read("a")
