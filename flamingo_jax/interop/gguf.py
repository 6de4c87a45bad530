"""Llama-architecture GGUF files: weights dequantized to float32, configuration, byte-level BPE tokenizer."""

import dataclasses
import pathlib

import gguf
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.descriptions import reading
from flamingo_jax.interop.language_rules import document_ids, language_rules, refuse
from flamingo_jax.interop.rules import Rule
from flamingo_jax.models.language.decoder import DecoderConfig

MOST_VALUES = 2**22  # numbers and texts in the metadata; a vocabulary of 262,144 tokens takes half of them


class BoundedReader(gguf.GGUFReader):
  """The package's reader, which goes on for ever behind the end of a file that promises more values than it has.

  Raises ValueError where it would.
  """

  read_so_far = 0

  def _get(self, offset, dtype, count=1, override_order=None):
    self.read_so_far += 1
    if self.read_so_far > MOST_VALUES:
      raise ValueError(f"more than {MOST_VALUES} values of metadata")
    size = int(count) * np.dtype(dtype).itemsize
    if not 0 <= int(offset) <= len(self.data) - size:
      raise ValueError(f"{size} bytes at byte {offset} of {len(self.data)}")
    return super()._get(int(offset), dtype, count, override_order)


class GgufModel:
  """One opened file.

  Raises:
    UserError: the file cannot be read, or is not of the Llama architecture.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    try:
      self.reader = BoundedReader(path)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
      raise UserError(f"{path}: not a readable GGUF file ({error}).") from error
    architecture = self.field("general.architecture")
    if architecture != "llama":
      raise UserError(f"{path}: architecture is {architecture!r}; only 'llama' is read from GGUF.")
    self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
    self.names = sorted(self.tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """Of a weight, outputs first."""
    return tuple(int(length) for length in reversed(self.tensors[name].shape))

  def dtype(self, name: str) -> np.dtype:
    """What a weight is once it has been dequantized."""
    return np.dtype(np.float32)

  def read(self, name: str) -> np.ndarray:
    """A weight as float32, outputs first."""
    found = self.tensors[name]
    try:
      return gguf.dequantize(found.data, found.tensor_type).astype(np.float32)
    except (NotImplementedError, ValueError) as error:
      raise UserError(f"{self.path}: {name!r} is not of a type that is read ({error}).") from error

  def field(self, name: str):
    """The value of a metadata field."""
    if name not in self.reader.fields:
      raise UserError(f"{self.path}: the metadata field {name!r} is missing.")
    with reading(f"{self.path}: the metadata field {name!r}"):
      return self.reader.fields[name].contents()

  def config(self) -> DecoderConfig:
    """The architecture that the metadata describes. Raises UserError where its positions are not ours."""
    head_width = self.field("llama.embedding_length") // self.field("llama.attention.head_count")
    positions = {
      "llama.rope.scaling.type": "none",
      "llama.rope.scaling.factor": 1,
      "llama.rope.scale_linear": 1,
      "llama.rope.dimension_count": head_width,
    }
    refuse({name: self.field(name) for name in positions if name in self.reader.fields}, self.path, **positions)
    return DecoderConfig(
      vocabulary=len(self.texts("tokenizer.ggml.tokens")),
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

  def tokenizer(self) -> dict:
    """The byte-level BPE: vocabulary, merges and the pre-tokenizer's name."""
    return dict(
      vocabulary=self.texts("tokenizer.ggml.tokens"),
      merges=self.texts("tokenizer.ggml.merges"),
      pre_tokenizer=self.field("tokenizer.ggml.pre"),
    )

  def ids(self) -> dict[str, int]:
    """The ids of the tokens that begin and end a document, if the file names them."""
    names = [f"{name}_token_id" for name in ("bos", "eos")]
    found = {name: f"tokenizer.ggml.{name}" for name in names if f"tokenizer.ggml.{name}" in self.reader.fields}
    return document_ids({name: self.field(field) for name, field in found.items()})

  def texts(self, name: str) -> list[str]:
    """The value of a metadata field that is a list of texts."""
    found = self.field(name)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
      raise UserError(f"{self.path}: the metadata field {name!r} is no list of texts.")
    return found


# How the names of transformers' Llama, which our rules are written for, are changed.
LLAMA_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "model.layers": "blk",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def gguf_rules(config: DecoderConfig) -> list[Rule]:
  """Llama's rules under GGUF's names; queries and keys lie otherwise."""
  return [gguf_rule(rule, config) for rule in language_rules("llama", config)]


def gguf_rule(rule: Rule, config: DecoderConfig) -> Rule:
  rule = dataclasses.replace(rule, names=tuple(gguf_name(name) for name in rule.names))
  heads = {"layers/attention/query/kernel": config.heads, "layers/attention/key/kernel": config.key_value_heads}
  count = heads.get(rule.parts[0].path)
  if count is None:
    return rule
  return dataclasses.replace(
    rule, split=lambda x: rule.split(unpair(x, count)), join=lambda kernel: pair(rule.join(kernel), count)
  )


def gguf_name(name: str) -> str:
  for theirs, ours in LLAMA_NAMES.items():
    name = name.replace(theirs, ours)
  return name


def unpair(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes GGUF's rotary layout, which sets rotated pairs side by side; ours pairs first half with second half."""
  return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def pair(weight: np.ndarray, heads: int) -> np.ndarray:
  """The inverse of `unpair`."""
  return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def shortest(stored: float) -> float:
  """The decimal number that a float32 field was written from: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(stored)))
