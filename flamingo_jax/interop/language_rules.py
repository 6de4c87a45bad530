"""Hugging Face language models by family: their `config.json` to ours, and which tensor is which parameter."""

from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.rules import Part, Parts, Rule, fused_linear, fused_vector, linear, same
from flamingo_jax.models.language.decoder import DecoderConfig

# Buffers that some versions of transformers save beside the weights; they hold nothing learnt.
IGNORED = (r"\.rotary_emb\.inv_freq$", r"\.attention\.(bias|masked_bias)$", r"\.attn\.(bias|masked_bias)$")
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
}


def read_config(described: dict, where: object, *, extra_tokens: int = 0) -> DecoderConfig:
  """The architecture that a `config.json` of transformers describes.

  Args:
    described: its content.
    where: the file, for messages.
    extra_tokens: how many of its last rows are tokens that were added to the language model.

  Raises:
    UserError: a family or a setting that our decoder does not have.
  """
  family = described.get("model_type", "(absent)")
  if family not in CONFIGS:
    raise UserError(f"{where}: model_type is {family!r}; read are {', '.join(CONFIGS)}.")
  try:
    fields = CONFIGS[family](described, where)
  except KeyError as error:
    raise UserError(f"{where}: the field {error} is missing.") from error
  fields["vocabulary"] -= extra_tokens
  return DecoderConfig(extra_tokens=extra_tokens, **fields)


def document_ids(described: dict) -> dict[str, int]:
  """`bos` and `eos`, the ids that begin and end a document, of a `config.json` of transformers.

  Of several that may end one the first is taken. Where only one of both is named, it stands for both, as GPT-2's does.
  Empty where none is.
  """
  given = {name: described.get(f"{name}_token_id") for name in ("bos", "eos")}
  firsts = {name: ids[0] if isinstance(ids, list) and ids else ids for name, ids in given.items()}
  known = {name: number for name, number in firsts.items() if type(number) is int and number >= 0}
  either = next(iter(known.values()), None)
  return {name: known.get(name, either) for name in given if either is not None}


def activation(described: dict, field: str, where: object) -> str:
  name = described[field]
  if name not in ACTIVATIONS:
    raise UserError(f"{where}: {field} is {name!r}; known are {', '.join(ACTIVATIONS)}.")
  return ACTIVATIONS[name]


def refuse(described: dict, where: object, **needed: object) -> None:
  """Raises UserError for settings that our decoder knows in one way only; a tuple has the ways to write that one."""
  ways = {field: value if isinstance(value, tuple) else (value,) for field, value in needed.items()}
  faults = [
    f"{where}: {field} is {described[field]!r}; only {' or '.join(map(repr, values))} is read."
    for field, values in ways.items()
    if field in described and described[field] not in values
  ]
  if faults:
    raise UserError("\n".join(faults))


def with_rotary(described: dict, where: object) -> dict:
  """A config with its rotary settings among the others: since transformers 5 they are in `rope_parameters`."""
  settings = described | (described.get("rope_parameters") or {})
  scaling = settings.get("rope_scaling") or {}
  if scaling.get("rope_type", scaling.get("type")) == "default":  # which is none
    settings["rope_scaling"] = None
  refuse(settings, where, rope_scaling=None, rope_type="default")
  return settings


def llama_config(described: dict, where: object) -> dict:
  described = with_rotary(described, where)
  refuse(described, where, attention_bias=False, mlp_bias=False)
  heads = described["num_attention_heads"]
  return dict(
    vocabulary=described["vocab_size"],
    width=described["hidden_size"],
    layers=described["num_hidden_layers"],
    heads=heads,
    key_value_heads=described.get("num_key_value_heads") or heads,
    head_width=head_width(described),
    feed_forward_width=described["intermediate_size"],
    activation=activation(described, "hidden_act", where),
    norm_epsilon=described["rms_norm_eps"],
    rope_base=float(described.get("rope_theta") or 10_000.0),
    tied_embeddings=described.get("tie_word_embeddings", False),
  )


def head_width(described: dict) -> int:
  """Ours, which is 0 where it is the width divided by the heads."""
  given = described.get("head_dim") or 0
  return 0 if given * described["num_attention_heads"] == described["hidden_size"] else given


def gpt_neox_config(described: dict, where: object) -> dict:
  described = with_rotary(described, where)
  refuse(described, where, attention_bias=True)
  return dict(
    vocabulary=described["vocab_size"],
    width=described["hidden_size"],
    layers=described["num_hidden_layers"],
    heads=described["num_attention_heads"],
    key_value_heads=described["num_attention_heads"],
    feed_forward_width=described["intermediate_size"],
    activation=activation(described, "hidden_act", where),
    gated_feed_forward=False,
    bias=True,
    norm="layer",
    norm_epsilon=described["layer_norm_eps"],
    residual="parallel" if described["use_parallel_residual"] else "sequential",
    rope_base=float(described.get("rotary_emb_base") or described.get("rope_theta") or 10_000.0),
    rotary_share=described["rotary_pct" if "rotary_pct" in described else "partial_rotary_factor"],
    tied_embeddings=described.get("tie_word_embeddings", False),
  )


def opt_config(described: dict, where: object) -> dict:
  refuse(
    described,
    where,
    do_layer_norm_before=True,
    word_embed_proj_dim=described["hidden_size"],
    enable_bias=True,
    layer_norm_elementwise_affine=True,
    _remove_final_layer_norm=False,
  )
  offset = 2
  return dict(
    vocabulary=described["vocab_size"],
    width=described["hidden_size"],
    layers=described["num_hidden_layers"],
    heads=described["num_attention_heads"],
    key_value_heads=described["num_attention_heads"],
    feed_forward_width=described["ffn_dim"],
    activation=activation(described, "activation_function", where),
    gated_feed_forward=False,
    bias=True,
    norm="layer",
    positions="learned",
    position_rows=described["max_position_embeddings"] + offset,
    position_offset=offset,
    tied_embeddings=described.get("tie_word_embeddings", True),
  )


def mpt_config(described: dict, where: object) -> dict:
  attention = dict(softmax_scale=None, prefix_lm=False, alibi=True, alibi_bias_max=8)
  everywhere = dict(clip_qkv=None, rope=False, sliding_window_size=(-1, None))
  refuse(described.get("attn_config") or {}, f"{where}: attn_config", **everywhere, **attention)
  refuse(described, where, no_bias=True, logit_scale=None, attn_clip_qkv=None, **attention)  # mosaic_gpt's are here
  refuse(described, where, norm_type=("layernorm", "low_precision_layernorm"))
  gelu = {"name": "gelu"}
  functions = (None, gelu, gelu | {"approximate": "none"})
  refuse(described.get("ffn_config") or {}, f"{where}: ffn_config", ffn_type="mptmlp", ffn_act_fn=functions)
  heads = described["n_heads"]
  return dict(
    vocabulary=described["vocab_size"],
    width=described["d_model"],
    layers=described["n_layers"],
    heads=heads,
    key_value_heads=heads,
    feed_forward_width=described["expansion_ratio" if "expansion_ratio" in described else "mlp_ratio"]
    * described["d_model"],
    activation="gelu",
    gated_feed_forward=False,
    norm="layer_without_bias",
    norm_epsilon=described.get("layer_norm_epsilon", 1e-5),
    query_key_norm=bool(described.get("attn_qk_ln")),
    positions="alibi",
    tied_embeddings=described.get("tie_word_embeddings", True),
  )


def gpt2_config(described: dict, where: object) -> dict:
  refuse(described, where, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True, add_cross_attention=False)
  return dict(
    vocabulary=described["vocab_size"],
    width=described["n_embd"],
    layers=described["n_layer"],
    heads=described["n_head"],
    key_value_heads=described["n_head"],
    feed_forward_width=described.get("n_inner") or 4 * described["n_embd"],
    activation=activation(described, "activation_function", where),
    gated_feed_forward=False,
    bias=True,
    norm="layer",
    norm_epsilon=described["layer_norm_epsilon"],
    positions="learned",
    position_rows=described["n_positions"],
    tied_embeddings=described.get("tie_word_embeddings", True),
  )


CONFIGS: dict[str, Callable[[dict, object], dict]] = {
  "llama": llama_config,
  "gpt_neox": gpt_neox_config,
  "opt": opt_config,
  "mpt": mpt_config,
  "mosaic_gpt": mpt_config,  # MPT-1B: MPT before it was in transformers, with a norm of queries and keys
  "gpt2": gpt2_config,
}


def language_rules(family: str, config: DecoderConfig, added: Sequence[int] = ()) -> list[Rule]:
  """The rules of a family, with paths relative to the decoder and layers stacked.

  Args:
    family: `model_type` of transformers.
    config: of the decoder.
    added: where a checkpoint holds its added tokens behind its vocabulary: our extra token i is its row
      `vocabulary + added[i]`. Ours start with <image> and <EOC>.
  """
  return RULES[family](config, tuple(added))


def llama_rules(config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  d, f, heads, grouped = config.width, config.feed_forward_width, *head_shapes(config)
  rules = [
    *tables("model.embed_tokens.weight", "lm_head.weight", config, added),
    same("model.norm.weight", Part("norm/scale"), (d,)),
  ]
  for i in range(config.layers):
    theirs = f"model.layers.{i}."
    rules += [
      same(f"{theirs}input_layernorm.weight", Part("layers/attention_norm/scale", i), (d,)),
      linear(f"{theirs}self_attn.q_proj.weight", Part("layers/attention/query/kernel", i), d, heads),
      linear(f"{theirs}self_attn.k_proj.weight", Part("layers/attention/key/kernel", i), d, grouped),
      linear(f"{theirs}self_attn.v_proj.weight", Part("layers/attention/value/kernel", i), d, grouped),
      linear(f"{theirs}self_attn.o_proj.weight", Part("layers/attention/output/kernel", i), heads, d),
      same(f"{theirs}post_attention_layernorm.weight", Part("layers/feed_forward_norm/scale", i), (d,)),
      linear(f"{theirs}mlp.gate_proj.weight", Part("layers/feed_forward/gate/kernel", i), d, f),
      linear(f"{theirs}mlp.up_proj.weight", Part("layers/feed_forward/up/kernel", i), d, f),
      linear(f"{theirs}mlp.down_proj.weight", Part("layers/feed_forward/down/kernel", i), f, d),
    ]
  return rules


def gpt_neox_rules(config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  d, f, heads, _ = config.width, config.feed_forward_width, *head_shapes(config)
  rules = [
    *tables("gpt_neox.embed_in.weight", "embed_out.weight", config, added),
    *norm("gpt_neox.final_layer_norm", "norm", d),
  ]
  for i in range(config.layers):
    theirs = f"gpt_neox.layers.{i}."
    rules += [
      *norm(f"{theirs}input_layernorm", "layers/attention_norm", d, i),
      *norm(f"{theirs}post_attention_layernorm", "layers/feed_forward_norm", d, i),
      *heads_side_by_side(f"{theirs}attention.query_key_value", config, i),
      *affine(f"{theirs}attention.dense", "layers/attention/output", heads, d, i),
      *affine(f"{theirs}mlp.dense_h_to_4h", "layers/feed_forward/up", d, f, i),
      *affine(f"{theirs}mlp.dense_4h_to_h", "layers/feed_forward/down", f, d, i),
    ]
  return rules


def opt_rules(config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  d, f, heads, _ = config.width, config.feed_forward_width, *head_shapes(config)
  rules = [
    *tables("model.decoder.embed_tokens.weight", "lm_head.weight", config, added),
    same("model.decoder.embed_positions.weight", Part("position_embeddings"), (config.position_rows, d)),
    *norm("model.decoder.final_layer_norm", "norm", d),
  ]
  for i in range(config.layers):
    theirs = f"model.decoder.layers.{i}."
    rules += [
      *norm(f"{theirs}self_attn_layer_norm", "layers/attention_norm", d, i),
      *affine(f"{theirs}self_attn.q_proj", "layers/attention/query", d, heads, i),
      *affine(f"{theirs}self_attn.k_proj", "layers/attention/key", d, heads, i),
      *affine(f"{theirs}self_attn.v_proj", "layers/attention/value", d, heads, i),
      *affine(f"{theirs}self_attn.out_proj", "layers/attention/output", heads, d, i),
      *norm(f"{theirs}final_layer_norm", "layers/feed_forward_norm", d, i),
      *affine(f"{theirs}fc1", "layers/feed_forward/up", d, f, i),
      *affine(f"{theirs}fc2", "layers/feed_forward/down", f, d, i),
    ]
  return rules


MPT_NAMES = dict(norm_1="norm_1", norm_2="norm_2", up="ffn.up_proj", down="ffn.down_proj", norm="norm_f")
MOSAIC_NAMES = dict(norm_1="ln_1", norm_2="ln_2", up="mlp.mlp_up", down="mlp.mlp_down", norm="ln_f")


def mpt_rules(config: DecoderConfig, added: tuple[int, ...], names: dict[str, str] = MPT_NAMES) -> list[Rule]:
  d, f, heads, _ = config.width, config.feed_forward_width, *head_shapes(config)
  rules = [
    *tables("transformer.wte.weight", "lm_head.weight", config, added),
    same(f"transformer.{names['norm']}.weight", Part("norm/scale"), (d,)),
  ]
  for i in range(config.layers):
    theirs = f"transformer.blocks.{i}."
    kernels = [Part(f"layers/attention/{name}/kernel", i) for name in ("query", "key", "value")]
    rules += [
      same(f"{theirs}{names['norm_1']}.weight", Part("layers/attention_norm/scale", i), (d,)),
      fused_linear(f"{theirs}attn.Wqkv.weight", kernels, d, [heads] * 3),
      linear(f"{theirs}attn.out_proj.weight", Part("layers/attention/output/kernel", i), heads, d),
      same(f"{theirs}{names['norm_2']}.weight", Part("layers/feed_forward_norm/scale", i), (d,)),
      linear(f"{theirs}{names['up']}.weight", Part("layers/feed_forward/up/kernel", i), d, f),
      linear(f"{theirs}{names['down']}.weight", Part("layers/feed_forward/down/kernel", i), f, d),
    ]
    if config.query_key_norm:
      rules += [
        same(f"{theirs}attn.q_ln.weight", Part("layers/attention/query_norm/scale", i), (d,)),
        same(f"{theirs}attn.k_ln.weight", Part("layers/attention/key_norm/scale", i), (d,)),
      ]
  return rules


def mosaic_rules(config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  return mpt_rules(config, added, MOSAIC_NAMES)


def gpt2_rules(config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  """GPT-2 keeps its weights inputs first, queries, keys and values side by side."""
  d, f, heads, _ = config.width, config.feed_forward_width, *head_shapes(config)
  rules = [
    *tables("transformer.wte.weight", "lm_head.weight", config, added),
    same("transformer.wpe.weight", Part("position_embeddings"), (config.position_rows, d)),
    *norm("transformer.ln_f", "norm", d),
  ]
  for i in range(config.layers):
    theirs = f"transformer.h.{i}."
    kernels = [Part(f"layers/attention/{name}/kernel", i) for name in ("query", "key", "value")]
    biases = [Part(f"layers/attention/{name}/bias", i) for name in ("query", "key", "value")]
    rules += [
      *norm(f"{theirs}ln_1", "layers/attention_norm", d, i),
      inputs_first(fused_linear(f"{theirs}attn.c_attn.weight", kernels, d, [heads] * 3)),
      fused_vector(f"{theirs}attn.c_attn.bias", biases, [heads] * 3),
      inputs_first(linear(f"{theirs}attn.c_proj.weight", Part("layers/attention/output/kernel", i), heads, d)),
      same(f"{theirs}attn.c_proj.bias", Part("layers/attention/output/bias", i), (d,)),
      *norm(f"{theirs}ln_2", "layers/feed_forward_norm", d, i),
      inputs_first(linear(f"{theirs}mlp.c_fc.weight", Part("layers/feed_forward/up/kernel", i), d, f)),
      same(f"{theirs}mlp.c_fc.bias", Part("layers/feed_forward/up/bias", i), (f,)),
      inputs_first(linear(f"{theirs}mlp.c_proj.weight", Part("layers/feed_forward/down/kernel", i), f, d)),
      same(f"{theirs}mlp.c_proj.bias", Part("layers/feed_forward/down/bias", i), (d,)),
    ]
  return rules


RULES: dict[str, Callable[[DecoderConfig, tuple[int, ...]], list[Rule]]] = {
  "llama": llama_rules,
  "gpt_neox": gpt_neox_rules,
  "opt": opt_rules,
  "mpt": mpt_rules,
  "mosaic_gpt": mosaic_rules,
  "gpt2": gpt2_rules,
}


def head_shapes(config: DecoderConfig) -> tuple[tuple[int, int], tuple[int, int]]:
  """Heads and head width of queries, and of keys and values."""
  return (config.heads, config.key_width), (config.key_value_heads, config.key_width)


def tables(inputs: str, outputs: str, config: DecoderConfig, added: tuple[int, ...]) -> list[Rule]:
  """The token tables: one under two names where they are tied, else two."""
  if config.tied_embeddings:
    return [table((inputs, outputs), "embeddings", config, added)]
  return [table((inputs,), "embeddings", config, added), table((outputs,), "unembeddings", config, added)]


def table(names: tuple[str, ...], path: str, config: DecoderConfig, added: tuple[int, ...]) -> Rule:
  """A token table. Behind the vocabulary stand the added tokens, in another order than ours."""
  known, d = config.vocabulary, config.width
  if not config.extra_tokens:
    return same(names, Part(path), (known, d))
  order = np.asarray(added)

  def split(rows: np.ndarray) -> Parts:
    return rows[:known], rows[known:][order]

  def join(ours: np.ndarray, extra: np.ndarray) -> np.ndarray:
    return np.concatenate([ours, extra[np.argsort(order)]])

  return Rule(names, (Part(path), Part(f"extra_{path}")), split, join, (known + len(added), d))


def norm(name: str, path: str, width: int, layer: int | None = None) -> list[Rule]:
  """A LayerNorm with bias."""
  return [
    same(f"{name}.weight", Part(f"{path}/scale", layer), (width,)),
    same(f"{name}.bias", Part(f"{path}/bias", layer), (width,)),
  ]


def affine(name: str, path: str, inputs, outputs, layer: int) -> list[Rule]:
  """A linear map with bias."""
  ours = (outputs,) if isinstance(outputs, int) else tuple(outputs)
  return [
    linear(f"{name}.weight", Part(f"{path}/kernel", layer), inputs, outputs),
    same(f"{name}.bias", Part(f"{path}/bias", layer), (int(np.prod(ours)),), ours),
  ]


def heads_side_by_side(name: str, config: DecoderConfig, layer: int) -> list[Rule]:
  """GPT-NeoX's fused map: for each head its query, key and value rows together."""
  heads, width, d = config.heads, config.key_width, config.width
  names = ("query", "key", "value")

  def split_kernel(x: np.ndarray) -> Parts:
    return tuple(np.moveaxis(x.reshape(heads, 3, width, d), (1, 3), (0, 1)))

  def join_kernel(*kernels: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.stack(kernels), (0, 1), (1, 3)).reshape(3 * heads * width, d)

  def split_bias(x: np.ndarray) -> Parts:
    return tuple(x.reshape(heads, 3, width).swapaxes(0, 1))

  def join_bias(*biases: np.ndarray) -> np.ndarray:
    return np.stack(biases, axis=1).reshape(3 * heads * width)

  kernels = tuple(Part(f"layers/attention/{part}/kernel", layer) for part in names)
  biases = tuple(Part(f"layers/attention/{part}/bias", layer) for part in names)
  return [
    Rule((f"{name}.weight",), kernels, split_kernel, join_kernel, (3 * heads * width, d)),
    Rule((f"{name}.bias",), biases, split_bias, join_bias, (3 * heads * width,)),
  ]


def inputs_first(rule: Rule) -> Rule:
  """The same rule for a weight kept [in, out]."""
  return Rule(
    rule.names, rule.parts, lambda x: rule.split(x.T), lambda *kernels: rule.join(*kernels).T, rule.shape[::-1]
  )
