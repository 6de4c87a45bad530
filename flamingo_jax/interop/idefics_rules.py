"""IDEFICS, as transformers keeps it; paths are those of a stored model (`model_folder.py`), layers stacked."""

import dataclasses

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.flamingo_rules import prefixed, width_of
from flamingo_jax.interop.language_rules import activation, llama_rules, norm
from flamingo_jax.interop.rules import Part, Rule, linear, same
from flamingo_jax.interop.vision_rules import IDEFICS_VISION_IGNORED, clip_rules, config_from_idefics
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig, gated_layers
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig

IDEFICS_ADDED = ("<fake_token_around_image>", "<image>")  # its first two; ours stand the other way round
IDEFICS_IGNORED = (r"\.rotary_emb\.inv_freq$", *IDEFICS_VISION_IGNORED)


def idefics_config(described: dict, where: object) -> FlamingoConfig:
  """The architecture that IDEFICS' `config.json` describes.

  Raises:
    UserError: it describes another model, or lacks a field.
  """
  if described.get("model_type") != "idefics":
    raise UserError(f"{where}: model_type is {described.get('model_type')!r}, not 'idefics'.")
  described = {"hidden_act": "silu"} | described
  function = activation(described, "hidden_act", where)
  try:
    if described["additional_vocab_size"] < len(IDEFICS_ADDED):
      raise UserError(
        f"{where}: additional_vocab_size is {described['additional_vocab_size']}; it is at least {len(IDEFICS_ADDED)}, "
        f"for {' and '.join(IDEFICS_ADDED)}."
      )
    perceiver = described["perceiver_config"]
    width, heads = described["hidden_size"], described["num_attention_heads"]
    decoder = DecoderConfig(
      vocabulary=described["vocab_size"],
      width=width,
      layers=described["num_hidden_layers"],
      heads=heads,
      key_value_heads=heads,
      feed_forward_width=described["intermediate_size"],
      activation=function,
      norm_epsilon=described["rms_norm_eps"],
      rope_base=10_000.0,
      tied_embeddings=described.get("tie_word_embeddings", False),
      extra_tokens=described["additional_vocab_size"],
    )
    gated = GatedCrossAttentionConfig(
      every=described["cross_layer_interval"],
      heads=heads,
      head_width=width // heads,
      feed_forward_multiplier=described["intermediate_size"] / width,
      activation=function,
      gated_feed_forward=True,
      norm="rms",
      norm_epsilon=described["rms_norm_eps"],
      head_norm="rms" if described["qk_layer_norms"] else "",
      vector_gates=described["alpha_type"] == "vector",
    )
    resampler = PerceiverResamplerConfig(
      layers=perceiver["resampler_depth"],
      latents=perceiver["resampler_n_latents"],
      heads=perceiver["resampler_n_heads"],
      head_width=perceiver["resampler_head_dim"],
      frames=0,
      activation="relu",
      head_norm="layer" if perceiver["qk_layer_norms_perceiver"] else "",
    )
    tower = config_from_idefics(described)
  except KeyError as error:
    raise UserError(f"{where}: the field {error} is missing.") from error
  return FlamingoConfig(tower, resampler if described["use_resampler"] else None, gated, decoder, dtype="float32")


def idefics_rules(config: FlamingoConfig) -> list[Rule]:
  """The rules of a whole model."""
  width, media_width = width_of(config)
  bare = dataclasses.replace(config.language, extra_tokens=0)
  rules = llama_rules(bare, ())
  extra = config.language.extra_tokens
  rules += [
    reordered("model.embed_tokens.additional_embedding.weight", "extra_embeddings", extra, width),
    reordered("lm_head.additional_fc.weight", "extra_unembeddings", extra, width),
  ]
  for number in range(len(gated_layers(config.language.layers, config.cross_attention))):
    rules += idefics_gated_rules(config, number)
  rules = prefixed(rules, "language/")
  if config.resampler is not None:
    rules += prefixed(idefics_resampler_rules(config.resampler, media_width), "resampler/")
  return rules + prefixed(clip_rules(config.vision, "model.vision_model."), "vision/")


def reordered(name: str, path: str, rows: int, width: int) -> Rule:
  """The table of the added tokens, the first two of which stand in another order than ours."""
  order = np.asarray([1, 0, *range(2, rows)])
  return Rule((name,), (Part(path),), lambda x: (x[order],), lambda x: x[order], (rows, width))


def idefics_gated_rules(config: FlamingoConfig, number: int) -> list[Rule]:
  gated, (width, media_width) = config.cross_attention, width_of(config)
  theirs = f"model.gated_cross_attn_layers.{number}."
  heads, hidden = (gated.heads, gated.head_width), round(width * gated.feed_forward_multiplier)
  gate_shapes = ((1, 1, width), (width,)) if gated.vector_gates else ((1,), ())

  def part(path: str) -> Part:
    return Part(f"gated_cross_attention/{path}", number)

  rules = [
    same(f"{theirs}input_layernorm.weight", part("attention_norm/scale"), (width,)),
    linear(f"{theirs}cross_attn.q_proj.weight", part("attention/query/kernel"), width, heads),
    linear(f"{theirs}cross_attn.k_proj.weight", part("attention/key/kernel"), media_width, heads),
    linear(f"{theirs}cross_attn.v_proj.weight", part("attention/value/kernel"), media_width, heads),
    linear(f"{theirs}cross_attn.o_proj.weight", part("attention/output/kernel"), heads, width),
    same(f"{theirs}alpha_cross_attn", part("attention_gate"), *gate_shapes),
    same(f"{theirs}post_attention_layernorm.weight", part("feed_forward_norm/scale"), (width,)),
    linear(f"{theirs}mlp.gate_proj.weight", part("feed_forward/gate/kernel"), width, hidden),
    linear(f"{theirs}mlp.up_proj.weight", part("feed_forward/up/kernel"), width, hidden),
    linear(f"{theirs}mlp.down_proj.weight", part("feed_forward/down/kernel"), hidden, width),
    same(f"{theirs}alpha_dense", part("feed_forward_gate"), *gate_shapes),
  ]
  if gated.head_norm:
    rules += [
      same(f"{theirs}cross_attn.q_layer_norm.weight", part("attention/query_norm/scale"), (gated.head_width,)),
      same(f"{theirs}cross_attn.k_layer_norm.weight", part("attention/key_norm/scale"), (gated.head_width,)),
    ]
  return rules


def idefics_resampler_rules(config: PerceiverResamplerConfig, width: int) -> list[Rule]:
  heads, hidden = (config.heads, config.head_width), round(width * config.feed_forward_multiplier)
  prefix = "model.perceiver_resampler."
  rules = [
    same(f"{prefix}latents", Part("latents"), (config.latents, width)),
    *norm(f"{prefix}layer_norm", "norm", width),
  ]
  for i in range(config.layers):
    attend, feed = f"{prefix}blocks.{i}.0.", f"{prefix}blocks.{i}.1."
    rules += [
      *norm(f"{attend}context_layer_norm", "layers/features_norm", width, i),
      *norm(f"{attend}latents_layer_norm", "layers/latents_norm", width, i),
      linear(f"{attend}q_proj.weight", Part("layers/attention/query/kernel", i), width, heads),
      linear(f"{attend}k_proj.weight", Part("layers/attention/key/kernel", i), width, heads),
      linear(f"{attend}v_proj.weight", Part("layers/attention/value/kernel", i), width, heads),
      linear(f"{attend}output_proj.weight", Part("layers/attention/output/kernel", i), heads, width),
      *norm(f"{feed}ln", "layers/feed_forward_norm", width, i),
      linear(f"{feed}fc.weight", Part("layers/feed_forward/up/kernel", i), width, hidden),
      linear(f"{feed}c_proj.weight", Part("layers/feed_forward/down/kernel", i), hidden, width),
    ]
    if config.head_norm:
      rules += norm(f"{attend}q_layer_norm", "layers/attention/query_norm", config.head_width, i)
      rules += norm(f"{attend}k_layer_norm", "layers/attention/key_norm", config.head_width, i)
  return rules
