import json
import math

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop.language_rules import language_rules, read_config
from flamingo_jax.models.language.decoder import DecoderConfig

# What the published models' own config files say.
PYTHIA = dict(
  model_type="gpt_neox",
  vocab_size=50_304,
  hidden_size=2560,
  num_hidden_layers=32,
  intermediate_size=10_240,
  num_attention_heads=32,
  hidden_act="gelu",
  layer_norm_eps=1e-5,
  rotary_pct=0.25,
  rotary_emb_base=10_000,
  tie_word_embeddings=False,
  use_parallel_residual=True,
)
LLAMA_7B = dict(
  model_type="llama",
  vocab_size=32_000,
  hidden_size=4096,
  num_hidden_layers=32,
  intermediate_size=11_008,
  num_attention_heads=32,
  hidden_act="silu",
  rms_norm_eps=1e-6,
)
OPT_125M = dict(
  model_type="opt",
  vocab_size=50_272,
  hidden_size=768,
  num_hidden_layers=12,
  ffn_dim=3072,
  num_attention_heads=12,
  max_position_embeddings=2048,
  word_embed_proj_dim=768,
  activation_function="relu",
  do_layer_norm_before=True,
)
MPT_7B = dict(
  model_type="mpt",
  vocab_size=50_432,
  d_model=4096,
  n_layers=32,
  n_heads=32,
  expansion_ratio=4,
  no_bias=True,
  logit_scale=None,
  attn_config=dict(alibi=True, alibi_bias_max=8, clip_qkv=None, prefix_lm=False, qk_ln=False, softmax_scale=None),
)
MPT_1B = dict(
  model_type="mosaic_gpt",
  vocab_size=50_432,
  d_model=2048,
  n_layers=24,
  n_heads=16,
  mlp_ratio=4,
  no_bias=True,
  alibi=True,
  alibi_bias_max=8,
  attn_clip_qkv=None,
  attn_qk_ln=True,
  softmax_scale=None,
)
GPT2_SMALL = dict(
  model_type="gpt2",
  vocab_size=50_257,
  n_embd=768,
  n_layer=12,
  n_head=12,
  n_positions=1024,
  activation_function="gelu_new",
  layer_norm_epsilon=1e-5,
)


@pytest.mark.parametrize(
  ("described", "count"),
  [
    (PYTHIA, 2_775_208_960),
    (LLAMA_7B, 6_738_415_616),
    (OPT_125M, 125_239_296),
    (MPT_7B, 6_649_286_656),
    (MPT_1B, (50_432 + 1) * 2048 + 24 * (12 * 2048 + 4) * 2048),  # published as 1.3 billion
    (GPT2_SMALL, 124_439_808),
  ],
)
def test_as_many_parameters_as_published(described, count):
  rules = language_rules(described["model_type"], read_config(described, "config.json"))
  assert sum(math.prod(rule.shape) for rule in rules) == count


def test_a_llama_is_read_field_by_field():
  described = LLAMA_7B | dict(num_key_value_heads=8, head_dim=96, rope_theta=5e5, tie_word_embeddings=True)
  assert read_config(described, "config.json") == DecoderConfig(
    vocabulary=32_000,
    width=4096,
    layers=32,
    heads=32,
    key_value_heads=8,
    head_width=96,
    feed_forward_width=11_008,
    activation="silu",
    norm_epsilon=1e-6,
    rope_base=5e5,
    tied_embeddings=True,
    extra_tokens=0,
  )


@pytest.mark.parametrize(
  ("described", "moved"),
  [
    (LLAMA_7B | dict(rope_theta=5e5), dict(rope_theta=5e5)),
    (PYTHIA | dict(rotary_emb_base=500), dict(rope_theta=500, partial_rotary_factor=0.25)),
  ],
)
def test_rotary_settings_are_found_where_newer_transformers_keep_them(described, moved):
  newer = {name: value for name, value in described.items() if not name.startswith(("rope_", "rotary_"))}
  newer["rope_parameters"] = moved | dict(rope_type="default")
  assert read_config(newer, "config.json") == read_config(described, "config.json")


@pytest.mark.parametrize(
  ("described", "message"),
  [
    (
      LLAMA_7B | dict(model_type="bert"),
      "model_type is 'bert'; read are llama, gpt_neox, opt, mpt, mosaic_gpt, gpt2.",
    ),
    ({}, "model_type is '(absent)'; read are llama, gpt_neox, opt, mpt, mosaic_gpt, gpt2."),
    (
      LLAMA_7B | dict(rope_scaling=dict(factor=8.0, rope_type="llama3")),
      "rope_scaling is {'factor': 8.0, 'rope_type': 'llama3'}; only None is read.",
    ),
    (LLAMA_7B | dict(rope_parameters=dict(rope_type="llama3")), "rope_type is 'llama3'; only 'default' is read."),
    (PYTHIA | dict(rope_scaling=dict(type="linear")), "rope_scaling is {'type': 'linear'}; only None is read."),
    (LLAMA_7B | dict(attention_bias=True), "attention_bias is True; only False is read."),
    (LLAMA_7B | dict(hidden_act="swish"), "hidden_act is 'swish'; known are gelu, gelu_new, gelu_fast, "),
    (MPT_7B | dict(no_bias=False), "no_bias is False; only True is read."),
    (MPT_7B | dict(attn_config=dict(clip_qkv=6)), "attn_config: clip_qkv is 6; only None is read."),
    (MPT_7B | dict(attn_config=dict(alibi=False)), "attn_config: alibi is False; only True is read."),
    (MPT_7B | dict(attn_config=dict(rope=True)), "attn_config: rope is True; only False is read."),
    (
      MPT_7B | dict(attn_config=dict(sliding_window_size=128)),
      "attn_config: sliding_window_size is 128; only -1 or None is read.",
    ),
    (
      MPT_7B | dict(norm_type="rmsnorm"),
      "norm_type is 'rmsnorm'; only 'layernorm' or 'low_precision_layernorm' is read.",
    ),
    (MPT_7B | dict(ffn_config=dict(ffn_type="mptglu")), "ffn_config: ffn_type is 'mptglu'; only 'mptmlp' is read."),
    (
      MPT_7B | dict(ffn_config=dict(ffn_act_fn=dict(name="relu"))),
      "ffn_config: ffn_act_fn is {'name': 'relu'}; only None or {'name': 'gelu'} or ",
    ),
    (MPT_1B | dict(attn_clip_qkv=6), "attn_clip_qkv is 6; only None is read."),
    (MPT_1B | dict(alibi=False), "alibi is False; only True is read."),
    (MPT_1B | dict(alibi_bias_max=16), "alibi_bias_max is 16; only 8 is read."),
    (GPT2_SMALL | dict(scale_attn_weights=False), "scale_attn_weights is False; only True is read."),
  ],
)
def test_what_the_decoder_does_not_have_is_refused(described, message):
  with pytest.raises(UserError) as error:
    read_config(json.loads(json.dumps(described)), "opt/config.json")
  assert str(error.value).startswith(f"opt/config.json: {message}")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("described", "changes"),
  [
    (LLAMA_7B, dict(rope_scaling=dict(rope_type="default"))),
    (LLAMA_7B, dict(rope_scaling=dict(type="default"))),
    (MPT_7B, dict(norm_type="low_precision_layernorm", ffn_config=dict(ffn_type="mptmlp"))),
    (MPT_7B, dict(attn_config=dict(alibi=True, rope=False, sliding_window_size=-1))),
    (MPT_7B, dict(ffn_config=dict(ffn_act_fn=dict(name="gelu", approximate="none")))),
  ],
)
def test_other_ways_to_write_what_the_decoder_has_are_read(described, changes):
  assert read_config(described | changes, "config.json") == read_config(described, "config.json")


def test_the_layout_of_opt_350m_is_refused_with_all_its_faults():
  with pytest.raises(UserError) as error:
    read_config(OPT_125M | dict(word_embed_proj_dim=512, do_layer_norm_before=False), "opt/config.json")
  assert str(error.value).splitlines() == [
    "opt/config.json: do_layer_norm_before is False; only True is read.",
    "opt/config.json: word_embed_proj_dim is 512; only 768 is read.",
  ]


@pytest.mark.parametrize("described", [LLAMA_7B, PYTHIA, OPT_125M, MPT_7B, MPT_1B, GPT2_SMALL])
def test_a_missing_field_is_named(described):
  without = {name: value for name, value in described.items() if name != "vocab_size"}
  with pytest.raises(UserError) as error:
    read_config(without, "opt/config.json")
  assert str(error.value) == "opt/config.json: the field 'vocab_size' is missing."
