"""Whole Flamingos of other implementations: OpenFlamingo, and lucidrains', which it grew from.

Paths are those of a stored model (`model_folder.py`): layers stacked, gated layers stacked.
"""

import dataclasses
import re
from collections.abc import Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.interop.language_rules import IGNORED as LANGUAGE_IGNORED
from flamingo_jax.interop.language_rules import (
  head_shapes,
  language_rules,
  read_config,
  tables,
)
from flamingo_jax.interop.rules import Part, Renamed, Rule, Tensors, fused_linear, linear, same
from flamingo_jax.interop.vision_rules import (
  OPEN_CLIP_IGNORED,
  open_clip_rules,
)
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import gated_layers
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig, VisionConfig
from flamingo_jax.models.vision.vit import VitConfig

# OpenFlamingo adds <|endofchunk|>, <image> and, where the tokenizer has no padding, <PAD>; ours are <image>, <EOC>.
OPENFLAMINGO_ADDED = (1, 0, 2)
ADDED_TOKENS = ("<|endofchunk|>", "<image>", "<PAD>")  # in their order
OPENFLAMINGO_IGNORED = (*LANGUAGE_IGNORED, *OPEN_CLIP_IGNORED)
LAYERS_OF = {  # where a family keeps its layers
  "llama": "model.layers",
  "gpt_neox": "gpt_neox.layers",
  "opt": "model.decoder.layers",
  "mpt": "transformer.blocks",
  "mosaic_gpt": "transformer.blocks",
}


@dataclasses.dataclass(frozen=True)
class OpenFlamingoSettings:
  """What no shape in a checkpoint tells; the defaults are what upstream fixes.

  Attributes:
    added: how many tokens were added: 2, or 3 with <PAD>.
    heads: of the gated layers.
    resampler_heads: of the resampler.
    previous_media: whether it was trained to attend to all previous media.
  """

  added: int = 3
  heads: int = 8
  resampler_heads: int = 8
  previous_media: bool = False


def openflamingo_settings(described: dict, where: object) -> OpenFlamingoSettings:
  """The settings that the config.json of `flamingo export --to=openflamingo` has.

  Raises:
    UserError: its added tokens are not those that OpenFlamingo adds, or are not behind all others.
  """
  tokens, rows = described["added_tokens"], described["rows"]
  first = rows - len(tokens)
  if len(tokens) < 2 or tokens != {name: first + place for place, name in enumerate(ADDED_TOKENS[: len(tokens)])}:
    raise UserError(
      f"{where}: added_tokens is {tokens!r}; they are {', '.join(ADDED_TOKENS[:2])} and perhaps {ADDED_TOKENS[2]}, the "
      f"last of {rows} rows in this order."
    )
  gated = described["cross_attention"]
  return OpenFlamingoSettings(
    added=len(tokens),
    heads=gated["heads"],
    resampler_heads=described["resampler"]["heads"],
    previous_media=not gated["only_attend_immediate_media"],
  )


def open_openflamingo(tensors: Tensors) -> Tensors:
  """A checkpoint without the prefixes that distributed training leaves in its names."""
  return Renamed(tensors, lambda name: name.removeprefix("module.").replace("._checkpoint_wrapped_module", ""))


def openflamingo_config(
  tensors: Tensors,
  language: dict,
  *,
  vision: VisionConfig | None = None,
  settings: OpenFlamingoSettings,
) -> FlamingoConfig:
  """The architecture of an OpenFlamingo checkpoint, from the shapes in it.

  Args:
    tensors: as `open_openflamingo` gives them, with the language model's.
    language: `config.json` of the language model, from transformers.
    vision: of the encoder; None: the media will be its features.
    settings: what no shape tells.

  Raises:
    UserError: it is not an OpenFlamingo checkpoint, or its language model is of another family.
  """
  needed = ("perceiver.latents", "perceiver.layers.0.0.to_q.weight", "perceiver.layers.0.1.1.weight")
  if missing := [name for name in needed if name not in tensors.names]:
    raise UserError(f"{tensors.path}: not an OpenFlamingo checkpoint: {', '.join(missing)} missing.")
  latents, width = tensors.shape("perceiver.latents")
  places = gated_places(tensors)
  every = places[0] + 1
  resampler = PerceiverResamplerConfig(
    layers=count_layers(tensors, r"^perceiver\.layers\.(\d+)\."),
    latents=latents,
    heads=settings.resampler_heads,
    head_width=head_width(tensors, "perceiver.layers.0.0.to_q.weight", settings.resampler_heads),
    feed_forward_multiplier=multiplier(tensors, "perceiver.layers.0.1.1.weight"),
    frames=rows_of(tensors, "perceiver.frame_embs"),
    media=rows_of(tensors, "perceiver.media_time_embs"),
    activation="gelu",
  )
  gated = GatedCrossAttentionConfig(
    every=every,
    offset=every - 1,
    heads=settings.heads,
    head_width=head_width(tensors, gated_name(tensors, places[0], "attn.to_q.weight"), settings.heads),
    feed_forward_multiplier=multiplier(tensors, gated_name(tensors, places[0], "ff.1.weight")),
    activation="gelu",
    previous_media=settings.previous_media,
    blind_sees_all=settings.previous_media,  # its text before the first image reads all media then
  )
  added = settings.added
  decoder = read_config(language | {"vocab_size": vocabulary_rows(tensors, language)}, tensors.path, extra_tokens=added)
  if places != gated_layers(decoder.layers, gated):
    raise UserError(
      f"{tensors.path}: gated layers stand at {places}, but the language model has {decoder.layers} layers, which puts "
      f"them at {gated_layers(decoder.layers, gated)}. Is it another language model?"
    )
  vision = vision or FeaturesConfig(width=width)
  return FlamingoConfig(vision, resampler, gated, decoder, dtype="float32")


def head_width(tensors: Tensors, name: str, heads: int) -> int:
  """Of attention, from its query weight [heads x width, inputs]."""
  inner = tensors.shape(name)[0]
  if inner % heads:
    raise UserError(f"{tensors.path}: {name} is {inner} wide, which {heads} heads do not divide.")
  return inner // heads


def multiplier(tensors: Tensors, name: str) -> float:
  """Of a feed-forward, from its first weight [hidden, width]."""
  hidden, width = tensors.shape(name)
  return hidden / width


def gated_name(tensors: Tensors, place: int, name: str) -> str:
  """What a tensor of the gated layer before a language layer goes by. Raises UserError when it is missing."""
  ends = (f".{place}.gated_cross_attn_layer.{name}", f".gated_cross_attn_layers.{place}.{name}")
  for found in tensors.names:
    if found.endswith(ends):
      return found
  raise UserError(f"{tensors.path}: not an OpenFlamingo checkpoint: {ends[0].lstrip('.')} missing.")


def gated_places(tensors: Tensors) -> tuple[int, ...]:
  """The language layers that have a gated one."""
  pattern = re.compile(r"\.(\d+)\.gated_cross_attn_layer\.|\.gated_cross_attn_layers\.(\d+)\.")
  found = {int(match[1] or match[2]) for name in tensors.names if (match := pattern.search(name))}
  if not found:
    raise UserError(f"{tensors.path}: not an OpenFlamingo checkpoint: no gated cross-attention layer in it.")
  return tuple(sorted(found))


def openflamingo_origin(tensors: Tensors) -> str:
  """What a checkpoint seems to have been made for: which kind of language model, how wide, how often gated."""
  places = gated_places(tensors)
  families = [
    family for family, layers in LAYERS_OF.items() if any(f"lang_encoder.{layers}." in n for n in tensors.names)
  ]
  name = next(
    (n for n in tensors.names if n.endswith((".gated_cross_attn_layer.ff.0.weight", f".{places[0]}.ff.0.weight"))), ""
  )
  width = tensors.shape(name)[0] if name else "unknown"
  kind = " or ".join(families) or "a language model"
  return f"{kind} of width {width}, gated before layers {', '.join(map(str, places))}"


def count_layers(tensors: Tensors, pattern: str) -> int:
  return 1 + max(int(match[1]) for name in tensors.names if (match := re.search(pattern, name)))


def rows_of(tensors: Tensors, name: str) -> int:
  return tensors.shape(name)[0] if name in tensors.names else 0


def vocabulary_rows(tensors: Tensors, language: dict) -> int:
  """The rows of the token table, which the checkpoint brings with the added tokens."""
  family = language.get("model_type")
  if family not in LAYERS_OF:
    raise UserError(f"{tensors.path}: language models of type {family!r} are not read; {', '.join(LAYERS_OF)} are.")
  name = "lang_encoder." + language_rules(family, read_config(language, tensors.path))[0].names[0]
  if name not in tensors.names:
    raise UserError(
      f"{tensors.path}: {name} is missing; the checkpoint keeps the embeddings of its added tokens there."
    )
  return tensors.shape(name)[0]


def openflamingo_rules(config: FlamingoConfig, family: str) -> list[Rule]:
  """The rules of a whole model."""
  return trainable_rules(config, family) + frozen_rules(config, family)


def trainable_rules(config: FlamingoConfig, family: str) -> list[Rule]:
  """What OpenFlamingo's own checkpoints hold: resampler, gated layers, token tables."""
  _, width = width_of(config)
  rules = prefixed(resampler_rules(config.resampler, width, "perceiver."), "resampler/")
  rules += gated_rules(config, family)
  return rules + [rule for rule in renamed_language_rules(config, family) if is_table(rule)]


def frozen_rules(config: FlamingoConfig, family: str) -> list[Rule]:
  """The language model and, if it is part of the model, the vision encoder."""
  rules = [rule for rule in renamed_language_rules(config, family) if not is_table(rule)]
  if isinstance(config.vision, VitConfig):
    rules += prefixed(open_clip_rules(config.vision, "vision_encoder."), "vision/")
  return rules


def is_table(rule: Rule) -> bool:
  return rule.parts[0].path in ("language/embeddings", "language/unembeddings")


def gated_rules(config: FlamingoConfig, family: str) -> list[Rule]:
  rules = []
  for number, place in enumerate(gated_layers(config.language.layers, config.cross_attention)):
    names = (
      f"lang_encoder.{LAYERS_OF[family]}.{place}.gated_cross_attn_layer.",
      f"lang_encoder.gated_cross_attn_layers.{place}.",
    )
    rules += prefixed(gated_layer_rules(config.cross_attention, *width_of(config), names, number), "language/")
  return rules


def renamed_language_rules(config: FlamingoConfig, family: str) -> list[Rule]:
  """Upstream wraps each layer of the language model, and its state dict names it once more from before that."""
  layers = re.compile(re.escape(LAYERS_OF[family]) + r"\.(\d+)\.(.*)")

  def names(name: str) -> tuple[str, ...]:
    match = layers.fullmatch(name)
    if not match:
      return (f"lang_encoder.{name}",)
    layer, rest = match.groups()
    return (
      f"lang_encoder.{LAYERS_OF[family]}.{layer}.decoder_layer.{rest}",
      f"lang_encoder.old_decoder_blocks.{layer}.{rest}",
      f"lang_encoder.{name}",
    )

  rules = language_rules(family, config.language, OPENFLAMINGO_ADDED[: config.language.extra_tokens])
  renamed = [
    dataclasses.replace(rule, names=tuple(new for name in rule.names for new in names(name))) for rule in rules
  ]
  return prefixed(renamed, "language/")


def width_of(config: FlamingoConfig) -> tuple[int, int]:
  """D of the language model and V of the media."""
  return config.language.width, config.vision.width


def prefixed(rules: Sequence[Rule], prefix: str) -> list[Rule]:
  """The same rules for parameters that stand deeper in the model."""
  return [
    dataclasses.replace(rule, parts=tuple(Part(prefix + part.path, part.layer) for part in rule.parts))
    for rule in rules
  ]


def resampler_rules(config: PerceiverResamplerConfig, width: int, prefix: str = "") -> list[Rule]:
  """OpenFlamingo's resampler, and lucidrains' (which calls the media embeddings `media_pos_emb`)."""
  heads = (config.heads, config.head_width)
  hidden = round(width * config.feed_forward_multiplier)
  rules = [
    same(f"{prefix}latents", Part("latents"), (config.latents, width)),
    same(f"{prefix}norm.weight", Part("norm/scale"), (width,)),
    same(f"{prefix}norm.bias", Part("norm/bias"), (width,)),
  ]
  if config.frames:
    rules.append(same(f"{prefix}frame_embs", Part("temporal_embeddings"), (config.frames, width)))
  if config.media:
    names = (f"{prefix}media_time_embs", f"{prefix}media_pos_emb")
    rules.append(same(names, Part("media_embeddings"), (config.media, 1, width), (config.media, width)))
  for i in range(config.layers):
    attend, feed = f"{prefix}layers.{i}.0.", f"{prefix}layers.{i}.1."
    kernels = [Part(f"layers/attention/{name}/kernel", i) for name in ("key", "value")]
    rules += [
      same(f"{attend}norm_media.weight", Part("layers/features_norm/scale", i), (width,)),
      same(f"{attend}norm_media.bias", Part("layers/features_norm/bias", i), (width,)),
      same(f"{attend}norm_latents.weight", Part("layers/latents_norm/scale", i), (width,)),
      same(f"{attend}norm_latents.bias", Part("layers/latents_norm/bias", i), (width,)),
      linear(f"{attend}to_q.weight", Part("layers/attention/query/kernel", i), width, heads),
      fused_linear(f"{attend}to_kv.weight", kernels, width, [heads] * 2),
      linear(f"{attend}to_out.weight", Part("layers/attention/output/kernel", i), heads, width),
      same(f"{feed}0.weight", Part("layers/feed_forward_norm/scale", i), (width,)),
      same(f"{feed}0.bias", Part("layers/feed_forward_norm/bias", i), (width,)),
      linear(f"{feed}1.weight", Part("layers/feed_forward/up/kernel", i), width, hidden),
      linear(f"{feed}3.weight", Part("layers/feed_forward/down/kernel", i), hidden, width),
    ]
  return rules


def gated_layer_rules(
  config: GatedCrossAttentionConfig, width: int, media_width: int, prefixes: Sequence[str], number: int | None
) -> list[Rule]:
  """OpenFlamingo's and lucidrains' gated layer.

  Args:
    config: of the layer.
    width: D, of the text.
    media_width: V.
    prefixes: of the names it goes by.
    number: of the layer among the gated ones; None: it stands alone.
  """
  heads = (config.heads, config.head_width)
  hidden = round(width * config.feed_forward_multiplier)
  inside = "" if number is None else "gated_cross_attention/"

  def names(name: str) -> tuple[str, ...]:
    return tuple(prefix + name for prefix in prefixes)

  def part(path: str) -> Part:
    return Part(inside + path, number)

  return [
    same(names("attn.norm.weight"), part("attention_norm/scale"), (width,)),
    same(names("attn.norm.bias"), part("attention_norm/bias"), (width,)),
    linear(names("attn.to_q.weight"), part("attention/query/kernel"), width, heads),
    fused_linear(
      names("attn.to_kv.weight"),
      [part("attention/key/kernel"), part("attention/value/kernel")],
      media_width,
      [heads] * 2,
    ),
    linear(names("attn.to_out.weight"), part("attention/output/kernel"), heads, width),
    same(names("attn_gate"), part("attention_gate"), (1,), ()),
    same(names("ff.0.weight"), part("feed_forward_norm/scale"), (width,)),
    same(names("ff.0.bias"), part("feed_forward_norm/bias"), (width,)),
    linear(names("ff.1.weight"), part("feed_forward/up/kernel"), width, hidden),
    linear(names("ff.3.weight"), part("feed_forward/down/kernel"), hidden, width),
    same(names("ff_gate"), part("feed_forward_gate"), (1,), ()),
  ]


# lucidrains' FlamingoPaLM: a decoder whose attention and feed-forward share one norm and one matrix product.

PALM_IGNORED = (r"\.beta$", r"\.rotary_emb\.inv_freq$")  # buffers: a bias that stays zero, and rotary frequencies


def palm_rules(config: FlamingoConfig) -> list[Rule]:
  """The rules of a whole model."""
  language, (width, media_width) = config.language, width_of(config)
  heads, grouped = head_shapes(language)
  rules = [
    *tables("token_emb.weight", "to_logits.1.weight", language, ()),
    same("to_logits.0.gamma", Part("norm/scale"), (width,)),
  ]
  for i in range(language.layers):
    theirs, f = f"layers.{i}.0.fn.", language.feed_forward_width
    paths = ("attention/query", "attention/key", "attention/value", "feed_forward/up", "feed_forward/gate")
    kernels = [Part(f"layers/{path}/kernel", i) for path in paths]
    rules += [
      same(f"{theirs}norm.gamma", Part("layers/attention_norm/scale", i), (width,)),
      fused_linear(f"{theirs}fused_attn_ff_proj.weight", kernels, width, [heads, grouped, grouped, f, f]),
      linear(f"{theirs}attn_out.weight", Part("layers/attention/output/kernel", i), heads, width),
      linear(f"{theirs}ff_out.1.weight", Part("layers/feed_forward/down/kernel", i), f, width),
    ]
  for number, place in enumerate(gated_layers(language.layers, config.cross_attention)):
    rules += gated_layer_rules(config.cross_attention, width, media_width, (f"layers.{place}.1.",), number)
  resampler = resampler_rules(config.resampler, media_width, "perceiver_resampler.")
  return prefixed(rules, "language/") + prefixed(resampler, "resampler/")
