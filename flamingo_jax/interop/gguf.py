"""Reads Llama-architecture GGUF files: weights dequantized to float32, configuration, byte-level BPE tokenizer."""

import pathlib

import gguf
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.models.language.decoder import DecoderConfig

# Parameter path within a decoder layer -> name within a GGUF block.
LAYER_TENSORS = {
  "attention_norm/scale": "attn_norm",
  "attention/query/kernel": "attn_q",
  "attention/key/kernel": "attn_k",
  "attention/value/kernel": "attn_v",
  "attention/output/kernel": "attn_output",
  "feed_forward_norm/scale": "ffn_norm",
  "feed_forward/gate/kernel": "ffn_gate",
  "feed_forward/up/kernel": "ffn_up",
  "feed_forward/down/kernel": "ffn_down",
}


class GgufModel:
  """One opened file.

  Raises:
    UserError: the file cannot be read, or is not of the Llama architecture.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    try:
      self.reader = gguf.GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
      raise UserError(f"{path}: not a readable GGUF file ({error}).") from error
    architecture = self.field("general.architecture")
    if architecture != "llama":
      raise UserError(f"{path}: architecture is {architecture!r}; only 'llama' is read from GGUF.")
    self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

  def field(self, name: str):
    """The value of a metadata field."""
    if name not in self.reader.fields:
      raise UserError(f"{self.path}: the metadata field {name!r} is missing.")
    return self.reader.fields[name].contents()

  def tensor(self, name: str) -> np.ndarray:
    """A weight as float32, outputs first."""
    if name not in self.tensors:
      raise UserError(f"{self.path}: the tensor {name!r} is missing.")
    found = self.tensors[name]
    return gguf.dequantize(found.data, found.tensor_type).astype(np.float32)

  def config(self) -> DecoderConfig:
    """The architecture that the metadata describes."""
    return DecoderConfig(
      vocabulary=len(self.field("tokenizer.ggml.tokens")),
      width=self.field("llama.embedding_length"),
      layers=self.field("llama.block_count"),
      heads=self.field("llama.attention.head_count"),
      key_value_heads=self.field("llama.attention.head_count_kv"),
      feed_forward_width=self.field("llama.feed_forward_length"),
      rope_base=shortest(self.field("llama.rope.freq_base")),
      norm_epsilon=shortest(self.field("llama.attention.layer_norm_rms_epsilon")),
      tied_embeddings="output.weight" not in self.tensors,
      extra_tokens=0,
    )

  def parameters(self) -> dict[str, np.ndarray]:
    """Float32 parameters by path; those of the layers are stacked [layers, ...] under `layers/`."""
    config = self.config()
    parameters = {"embeddings": self.tensor("token_embd.weight"), "norm/scale": self.tensor("output_norm.weight")}
    if not config.tied_embeddings:
      parameters["unembeddings"] = self.tensor("output.weight")
    for path, name in LAYER_TENSORS.items():
      layers = [self.tensor(f"blk.{layer}.{name}.weight") for layer in range(config.layers)]
      parameters[f"layers/{path}"] = np.stack([to_kernel(path, weight, config) for weight in layers])
    return parameters

  def tokenizer(self) -> dict:
    """The byte-level BPE: vocabulary, merges, the pre-tokenizer's name and the ids of the special tokens."""
    return dict(
      vocabulary=self.field("tokenizer.ggml.tokens"),
      merges=self.field("tokenizer.ggml.merges"),
      pre_tokenizer=self.field("tokenizer.ggml.pre"),
    )


def to_kernel(path: str, weight: np.ndarray, config: DecoderConfig) -> np.ndarray:
  """A GGUF weight [out, in] to the layout of our kernel at `path` (inputs first, heads apart)."""
  width = config.head_width
  match path:
    case "attention/query/kernel":
      return unpair(weight, config.heads, width)
    case "attention/key/kernel":
      return unpair(weight, config.key_value_heads, width)
    case "attention/value/kernel":
      return weight.T.reshape(-1, config.key_value_heads, width)
    case "attention/output/kernel":
      return weight.T.reshape(config.heads, width, -1)
    case _:
      return weight.T


def unpair(weight: np.ndarray, heads: int, width: int) -> np.ndarray:
  """Undoes GGUF's rotary layout, which sets rotated pairs side by side; ours pairs first half with second half."""
  paired = weight.reshape(heads, width // 2, 2, -1)
  return paired.swapaxes(1, 2).reshape(heads * width, -1).T.reshape(-1, heads, width)


def shortest(stored: float) -> float:
  """The decimal number that a float32 field was written from: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(stored)))
