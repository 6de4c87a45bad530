"""Our decoder against the language models it is read from, on small random instances: logits, gradients, names."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.interop.language_rules import IGNORED, language_rules, read_config
from flamingo_jax.interop.rules import InMemory, assemble, check_tensors, foreign_from
from flamingo_jax.models.language.decoder import Decoder, group_layers, ungroup_layers
from flamingo_jax.models.parameters import flat, nested

torch = pytest.importorskip("torch")

TOKENS = np.asarray([[3, 0, 12, 12, 5, 1, 9], [7, 10, 2, 4, 0, 8, 11]], np.int32)
SEGMENTS = np.ones_like(TOKENS)

LLAMA = dict(
  model_type="llama",
  vocab_size=13,
  hidden_size=24,
  num_hidden_layers=2,
  intermediate_size=40,
  num_attention_heads=6,
  rms_norm_eps=1e-3,
)
GPT_NEOX = dict(
  model_type="gpt_neox",
  vocab_size=13,
  hidden_size=24,
  num_hidden_layers=2,
  intermediate_size=40,
  num_attention_heads=3,
  layer_norm_eps=1e-3,
)
OPT = dict(
  model_type="opt",
  vocab_size=13,
  hidden_size=24,
  num_hidden_layers=2,
  ffn_dim=40,
  num_attention_heads=3,
  max_position_embeddings=9,
  word_embed_proj_dim=24,
  pad_token_id=6,  # whose row torch gives no gradient; it is not among our tokens
)
MPT = dict(model_type="mpt", vocab_size=13, d_model=24, n_layers=2, n_heads=6, layer_norm_epsilon=1e-3)
GPT2 = dict(model_type="gpt2", vocab_size=13, n_embd=24, n_layer=2, n_head=3, n_positions=9, layer_norm_epsilon=1e-3)
MOSAIC_GPT = dict(
  model_type="mosaic_gpt",
  vocab_size=13,
  d_model=24,
  n_layers=2,
  n_heads=6,
  mlp_ratio=2,
  no_bias=True,
  alibi=True,
  alibi_bias_max=8,
  attn_qk_ln=True,
  attn_clip_qkv=None,
  softmax_scale=None,
)

MODELS = {
  "llama": LLAMA | dict(num_key_value_heads=6, tie_word_embeddings=False),
  "llama, grouped queries, tied": LLAMA | dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=500.0),
  "llama, wide heads, tanh": LLAMA | dict(num_key_value_heads=3, head_dim=10, hidden_act="gelu_pytorch_tanh"),
  "gpt_neox, parallel": GPT_NEOX | dict(rotary_pct=0.25, rotary_emb_base=500),
  "gpt_neox, one after the other, tied": GPT_NEOX
  | dict(use_parallel_residual=False, rotary_pct=0.85, hidden_act="gelu_new", tie_word_embeddings=True),
  "opt": OPT,
  "opt, tanh, untied": OPT | dict(activation_function="gelu_fast", tie_word_embeddings=False),
  "mpt": MPT,
  "gpt2": GPT2,
  "gpt2, exact gelu, narrow, untied": GPT2 | dict(activation_function="gelu", n_inner=20, tie_word_embeddings=False),
}


def randomize(module):
  """Random parameters; no norm or bias is left at its start."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim > 1:
        parameter.copy_(noise * 0.2)
      else:
        is_scale = name.endswith("weight")
        parameter.copy_(0.3 * noise + is_scale)
  return module.requires_grad_(True).eval()


def transformers_model(described: dict):
  """A random model of transformers, and what its `config.json` says."""
  transformers = pytest.importorskip("transformers")
  sizes = {name: value for name, value in described.items() if name != "model_type"}
  config = transformers.AutoConfig.for_model(described["model_type"], **sizes)
  return randomize(transformers.AutoModelForCausalLM.from_config(config)), json.loads(config.to_json_string())


def arrays_of(module) -> dict[str, np.ndarray]:
  return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def read(module, described: dict):
  """The decoder's config, the rules and our parameters by path, layers stacked."""
  config, theirs = read_config(described, "config.json"), InMemory(arrays_of(module))
  rules = language_rules(described["model_type"], config)
  check_tensors(theirs, rules, IGNORED)
  return config, rules, assemble(theirs, rules)


def assert_same_model(jit, module, logits_of, described: dict):
  """Holds our decoder to a foreign module: names and shapes, logits, gradients of a loss, and the way back.

  Args:
    jit: how ours is compiled.
    module: the foreign one.
    logits_of: (module, tokens [B, L]) to logits [B, L, vocabulary].
    described: its config.
  """
  theirs = arrays_of(module)
  config, rules, stored = read(module, described)
  for names, array in foreign_from(stored, rules):
    np.testing.assert_array_equal(array, theirs[names[0]], strict=True)

  tokens = torch.from_numpy(TOKENS).long()
  expected = logits_of(module, tokens)
  torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
  wanted = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}

  decoder = Decoder(config, jnp.float32)
  fresh = flat(jax.eval_shape(lambda key: decoder.init(key, TOKENS, SEGMENTS)["params"], jax.random.key(0)))
  parameters = group_layers(stored, config.layers, None)
  assert {path: array.shape for path, array in parameters.items()} == {p: s.shape for p, s in fresh.items()}

  def loss(parameters):
    logits = decoder.apply(nested(parameters), TOKENS, SEGMENTS)
    likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], axis=-1)
    return -likelihoods.mean(), logits

  gradients, logits = jit(jax.grad(loss, has_aux=True))(parameters)
  expected = expected.detach().numpy()
  np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)

  # The gradient of a key's bias is zero but for rounding, which the others' size decides.
  floor = 1e-2 * max(np.abs(gradient).max() for gradient in wanted.values())
  found = {names[0]: gradient for names, gradient in foreign_from(ungroup_layers(gradients), rules)}
  assert found.keys() == wanted.keys()
  for name, gradient in found.items():
    tolerance = 1e-4 * max(np.abs(wanted[name]).max(), floor)
    np.testing.assert_allclose(gradient, wanted[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers(jit, name):
  module, described = transformers_model(MODELS[name])
  assert_same_model(jit, module, lambda module, tokens: module(tokens).logits, described)


def test_added_tokens_may_stand_in_another_order(jit):
  """Ours are the last three rows of theirs, in the order 2, 0, 1."""
  added, known = (2, 0, 1), 10
  module, described = transformers_model(LLAMA | dict(tie_word_embeddings=False))
  config = read_config(described, "config.json", extra_tokens=3)
  assert (config.vocabulary, config.extra_tokens) == (known, 3)
  rules, theirs = language_rules("llama", config, added), InMemory(arrays_of(module))
  check_tensors(theirs, rules, IGNORED)
  stored = assemble(theirs, rules)
  order = np.asarray([*range(known), *(known + row for row in added)])  # of our id: their id
  with torch.no_grad():
    expected = module(torch.from_numpy(order[TOKENS])).logits.numpy()[..., order]
  logits = jit(Decoder(config, jnp.float32).apply)(nested(group_layers(stored, config.layers, None)), TOKENS, SEGMENTS)
  np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
  for names, array in foreign_from(stored, rules):
    np.testing.assert_array_equal(array, theirs.read(names[0]), strict=True)


class MosaicGpt(torch.nn.Module):
  """MPT-1B as its authors describe it, under their names: one document, one head and one query at a time."""

  def __init__(self, described: dict):
    super().__init__()
    width, hidden = described["d_model"], described["d_model"] * described["mlp_ratio"]
    self.heads, self.vocabulary = described["n_heads"], described["vocab_size"]
    blocks = []
    for _ in range(described["n_layers"]):
      attention = dict(Wqkv=self.linear(width, 3 * width), out_proj=self.linear(width, width))
      attention |= dict(q_ln=self.norm(width), k_ln=self.norm(width))
      block = dict(ln_1=self.norm(width), attn=torch.nn.ModuleDict(attention), ln_2=self.norm(width))
      block["mlp"] = torch.nn.ModuleDict(dict(mlp_up=self.linear(width, hidden), mlp_down=self.linear(hidden, width)))
      blocks.append(torch.nn.ModuleDict(block))
    parts = dict(wte=torch.nn.Embedding(self.vocabulary, width), blocks=torch.nn.ModuleList(blocks))
    self.transformer = torch.nn.ModuleDict(parts | dict(ln_f=self.norm(width)))

  def linear(self, inputs: int, outputs: int):
    return torch.nn.Linear(inputs, outputs, bias=False)

  def norm(self, width: int):
    return torch.nn.LayerNorm(width, bias=False)

  def forward(self, tokens):
    return torch.stack([self.logits(row) for row in tokens])

  def logits(self, tokens):
    x = self.transformer["wte"](tokens)
    for block in self.transformer["blocks"]:
      x = x + self.attend(block["attn"], block["ln_1"](x))
      hidden = block["mlp"]["mlp_up"](block["ln_2"](x))
      x = x + block["mlp"]["mlp_down"](hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
    return self.transformer["ln_f"](x) @ self.transformer["wte"].weight.T

  def attend(self, attention, x):
    width = x.shape[-1] // self.heads
    query, key, value = attention["Wqkv"](x).chunk(3, dim=-1)
    query, key = attention["q_ln"](query), attention["k_ln"](key)
    outputs = []
    for head, slope in enumerate(published_slopes(self.heads)):
      own = slice(head * width, (head + 1) * width)
      rows = []
      for place in range(len(x)):
        distance = place - torch.arange(place + 1)
        scores = key[: place + 1, own] @ query[place, own] / math.sqrt(width) - slope * distance
        rows.append(torch.softmax(scores, dim=0) @ value[: place + 1, own])
      outputs.append(torch.stack(rows))
    return attention["out_proj"](torch.cat(outputs, dim=-1))


def published_slopes(heads: int) -> list[float]:
  """ALiBi's slopes as its authors' code has them: those of the power of two below, then every other of the next."""
  power = 2 ** math.floor(math.log2(heads))
  slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
  between = [2 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
  return slopes + between[: heads - power]


@pytest.mark.parametrize("heads", [4, 6])
def test_mosaic_gpt(jit, heads):
  described = MOSAIC_GPT | dict(n_heads=heads)
  module = randomize(MosaicGpt(described))
  assert read_config(described, "config.json").query_key_norm
  assert_same_model(jit, module, lambda module, tokens: module(tokens), described)


def test_mosaic_gpt_without_a_norm_of_queries_and_keys_has_no_such_rules():
  config = read_config(MOSAIC_GPT | dict(attn_qk_ln=False), "config.json")
  assert not config.query_key_norm
  normed = dataclasses.replace(config, query_key_norm=True)
  names = {rule.names[0] for rule in language_rules("mosaic_gpt", normed)}
  without = {rule.names[0] for rule in language_rules("mosaic_gpt", config)}
  assert names - without == {f"transformer.blocks.{i}.attn.{part}_ln.weight" for i in range(2) for part in "qk"}
