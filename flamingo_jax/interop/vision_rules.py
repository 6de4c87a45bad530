"""Foreign vision towers: transformers' CLIP, SigLIP and IDEFICS, open_clip's, and timm's NFNets.

Each format has rules for its tensors, patterns of those that are known and not wanted, and a reader of its config.
Paths are relative to the tower.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.rules import Part, Rule, fused_linear, fused_vector, linear, same
from flamingo_jax.models.vision.nfnet import VARIANTS, NfnetConfig
from flamingo_jax.models.vision.vit import VitConfig

CLIP_IGNORED = (
  r"^(text_model|text_projection|visual_projection)\.",
  r"^logit_scale$",
  r"vision_model\.post_layernorm\.",  # a VitConfig with final_norm takes it all the same
  r"\.position_ids$",
)
SIGLIP_IGNORED = (r"^text_model\.", r"^logit_(scale|bias)$", r"vision_model\.head\.", r"\.position_ids$")
IDEFICS_VISION_IGNORED = (r"vision_model\.post_layernorm\.", r"\.position_ids$")
OPEN_CLIP_IGNORED = (r"(^|\.)proj$", r"(^|\.)ln_post\.(weight|bias)$")
OPEN_CLIP_TEXT_IGNORED = (  # in a checkpoint of both towers, where the vision tower's names begin with "visual."
  r"^(transformer|token_embedding|ln_final|text)\.",
  r"^(positional_embedding|text_projection|logit_scale|logit_bias|attn_mask)$",
)
TIMM_NFNET_IGNORED = (r"^head\.fc\.", r"^final_conv\.")  # an NfnetConfig with final_conv takes that all the same

ACTIVATION_NAMES = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
CLIP_PIXELS = dict(pixel_mean=(0.48145466, 0.4578275, 0.40821073), pixel_deviation=(0.26862954, 0.26130258, 0.27577711))
CLIP_SWITCHES = dict(attention_bias=True, patch_bias=False, class_token=True, pre_norm=True, final_norm=False)


def clip_rules(config: VitConfig, prefix: str = "vision_model.") -> list[Rule]:
  """Of transformers' CLIP, SigLIP and IDEFICS towers, which name their tensors alike.

  Args:
    config: from `config_from_clip`, `config_from_siglip` or `config_from_idefics`.
    prefix: of the foreign names; "model.vision_model." within IDEFICS.
  """
  width, embeddings = config.width, f"{prefix}embeddings."
  rules = vit_embedding_rules(
    config,
    patches=f"{embeddings}patch_embedding",
    class_token=f"{embeddings}class_embedding",
    positions=f"{embeddings}position_embedding.weight",
  )
  for layer in range(config.layers):
    name = f"{prefix}encoder.layers.{layer}."
    part = layer_part("encoder/layers/", layer)
    heads = (config.heads, width // config.heads)
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
      rules += linear_with_bias(f"{name}self_attn.{theirs}", part, f"attention/{ours}", width, heads)
    rules += linear_with_bias(f"{name}self_attn.out_proj", part, "attention/output", heads, width)
    rules += norm_rules(f"{name}layer_norm1", part, "attention_norm", width)
    rules += norm_rules(f"{name}layer_norm2", part, "feed_forward_norm", width)
    rules += linear_with_bias(f"{name}mlp.fc1", part, "feed_forward/up", width, config.feed_forward_width)
    rules += linear_with_bias(f"{name}mlp.fc2", part, "feed_forward/down", config.feed_forward_width, width)
  if config.pre_norm:
    rules += norm_rules(f"{prefix}pre_layrnorm", Part, "pre_norm", width)
  if config.final_norm:
    rules += norm_rules(f"{prefix}post_layernorm", Part, "encoder/norm", width)
  return rules


def open_clip_rules(config: VitConfig, prefix: str = "visual.") -> list[Rule]:
  """Of open_clip's VisionTransformer.

  Args:
    config: from `config_from_open_clip`.
    prefix: of the foreign names; empty for the tower alone.
  """
  width = config.width
  rules = vit_embedding_rules(
    config,
    patches=f"{prefix}conv1",
    class_token=f"{prefix}class_embedding",
    positions=f"{prefix}positional_embedding",
  )
  for layer in range(config.layers):
    name = f"{prefix}transformer.resblocks.{layer}."
    part = layer_part("encoder/layers/", layer)
    heads = (config.heads, width // config.heads)
    inputs = [f"attention/{ours}" for ours in ("query", "key", "value")]
    kernels, biases = ([part(f"{path}/{kind}") for path in inputs] for kind in ("kernel", "bias"))
    rules.append(fused_linear(f"{name}attn.in_proj_weight", kernels, width, [heads] * 3))
    rules.append(fused_vector(f"{name}attn.in_proj_bias", biases, [heads] * 3))
    rules += linear_with_bias(f"{name}attn.out_proj", part, "attention/output", heads, width)
    rules += norm_rules(f"{name}ln_1", part, "attention_norm", width)
    rules += norm_rules(f"{name}ln_2", part, "feed_forward_norm", width)
    rules += linear_with_bias(f"{name}mlp.c_fc", part, "feed_forward/up", width, config.feed_forward_width)
    rules += linear_with_bias(f"{name}mlp.c_proj", part, "feed_forward/down", config.feed_forward_width, width)
  if config.pre_norm:
    rules += norm_rules(f"{prefix}ln_pre", Part, "pre_norm", width)
  if config.final_norm:
    rules += norm_rules(f"{prefix}ln_post", Part, "encoder/norm", width)
  return rules


def vit_embedding_rules(config: VitConfig, *, patches: str, class_token: str, positions: str) -> list[Rule]:
  """What comes before a ViT's layers, under the foreign names given."""
  width, size = config.width, config.patch_size
  shape = (config.patches + config.class_token, width)
  rules = [
    patch_convolution(f"{patches}.weight", Part("patch_embedding/kernel"), size, width),
    same(positions, Part("position_embeddings"), shape),
  ]
  if config.patch_bias:
    rules.append(same(f"{patches}.bias", Part("patch_embedding/bias"), (width,)))
  if config.class_token:
    rules.append(same(class_token, Part("class_embedding"), (width,)))
  return rules


def timm_nfnet_rules(config: NfnetConfig, prefix: str = "") -> list[Rule]:
  """Of timm's dm_nfnet_f0 to f6."""
  rules, channels, stem = [], 3, config.widths[0] // 2
  for index, share in enumerate((8, 4, 2, 1)):
    name = f"{prefix}stem.conv{index + 1}"
    rules += standardized_conv(name, Part, f"stem/conv_{index}", (3, 3, channels, stem // share))
    channels = stem // share
  for stage, (blocks, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
    for block in range(blocks):
      part = layer_part(f"stage_{stage}/rest/", block - 1) if block else layer_part(f"stage_{stage}/first/")
      rules += timm_block(f"{prefix}stages.{stage}.{block}.", part, channels, width, config.group_width)
      if block == 0:
        rules += standardized_conv(
          f"{prefix}stages.{stage}.0.downsample.conv", part, "shortcut", (1, 1, channels, width)
        )
      channels = width
  if config.final_conv:
    rules += standardized_conv(f"{prefix}final_conv", Part, "final_conv", (1, 1, channels, config.width))
  return rules


def timm_block(name: str, part: Callable[[str], Part], channels: int, width: int, group_width: int) -> list[Rule]:
  """Of one residual block, without its shortcut."""
  middle = width // 2
  return [
    *standardized_conv(f"{name}conv1", part, "reduce", (1, 1, channels, middle)),
    *standardized_conv(f"{name}conv2", part, "first_grouped", (3, 3, group_width, middle)),
    *standardized_conv(f"{name}conv2b", part, "second_grouped", (3, 3, group_width, middle)),
    *standardized_conv(f"{name}conv3", part, "expand", (1, 1, middle, width)),
    pointwise(f"{name}attn_last.fc1.weight", part("squeeze_excite/squeeze/kernel"), width, middle),
    same(f"{name}attn_last.fc1.bias", part("squeeze_excite/squeeze/bias"), (middle,)),
    pointwise(f"{name}attn_last.fc2.weight", part("squeeze_excite/excite/kernel"), middle, width),
    same(f"{name}attn_last.fc2.bias", part("squeeze_excite/excite/bias"), (width,)),
    same(f"{name}skipinit_gain", part("skip_gain"), ()),
  ]


def layer_part(prefix: str, layer: int | None = None) -> Callable[[str], Part]:
  """Parts by their path below a prefix, of one layer if they are stacked."""
  return lambda path: Part(prefix + path, layer)


def norm_rules(name: str, part: Callable[[str], Part], path: str, width: int) -> list[Rule]:
  return [
    same(f"{name}.weight", part(f"{path}/scale"), (width,)),
    same(f"{name}.bias", part(f"{path}/bias"), (width,)),
  ]


def linear_with_bias(
  name: str, part: Callable[[str], Part], path: str, inputs: int | tuple[int, ...], outputs: int | tuple[int, ...]
) -> list[Rule]:
  shape = (outputs,) if isinstance(outputs, int) else outputs
  return [
    linear(f"{name}.weight", part(f"{path}/kernel"), inputs, outputs),
    same(f"{name}.bias", part(f"{path}/bias"), (int(np.prod(shape)),), shape),
  ]


def standardized_conv(
  name: str, part: Callable[[str], Part], path: str, kernel: tuple[int, int, int, int]
) -> list[Rule]:
  """Of a convolution whose kernel, as we keep it, is [height, width, in, out]."""
  height, width, inputs, outputs = kernel
  weight = Rule(
    (f"{name}.weight",),
    (part(f"{path}/kernel"),),
    lambda x: (x.transpose(2, 3, 1, 0),),
    lambda x: x.transpose(3, 2, 0, 1),
    (outputs, inputs, height, width),
  )
  gain = same(f"{name}.gain", part(f"{path}/gain"), (outputs, 1, 1, 1), (outputs,))
  return [weight, gain, same(f"{name}.bias", part(f"{path}/bias"), (outputs,))]


def pointwise(name: str, part: Part, inputs: int, outputs: int) -> Rule:
  """A linear map that they keep as a 1 x 1 convolution."""
  return Rule((name,), (part,), lambda x: (x[:, :, 0, 0].T,), lambda x: x.T[:, :, None, None], (outputs, inputs, 1, 1))


def patch_convolution(name: str, part: Part, size: int, width: int) -> Rule:
  """A convolution that moves by its own size, which is a linear map of the patches that `to_patches` cuts."""
  return Rule(
    (name,),
    (part,),
    lambda x: (x.transpose(2, 3, 1, 0).reshape(size * size * 3, width),),
    lambda x: x.reshape(size, size, 3, width).transpose(3, 2, 0, 1),
    (width, 3, size, size),
  )


def config_from_clip(described: dict) -> VitConfig:
  """From the config.json of a CLIPModel or a CLIPVisionModel; the class token is dropped from the features."""
  vision = described.get("vision_config", described)
  defaults: dict = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
  defaults |= dict(image_size=224, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5)
  return VitConfig(**sizes_from_transformers(defaults | vision), **CLIP_SWITCHES, **CLIP_PIXELS)


def config_from_siglip(described: dict) -> VitConfig:
  """From the config.json of a SiglipModel or a SiglipVisionModel."""
  vision = described.get("vision_config", described)
  defaults: dict = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
  defaults |= dict(image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
  return VitConfig(**sizes_from_transformers(defaults | vision), attention_bias=True)


def config_from_idefics(described: dict) -> VitConfig:
  """From the config.json of an IdeficsModel, whose features keep the class token."""
  vision = described["vision_config"]
  defaults: dict = dict(embed_dim=768, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16)
  defaults |= dict(image_size=224, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5)
  sizes = defaults | vision
  sizes["hidden_size"] = sizes["embed_dim"]
  return VitConfig(**sizes_from_transformers(sizes), **CLIP_SWITCHES, keep_class_token=True, **CLIP_PIXELS)


def pixels_from_transformers(described: dict, where: object) -> dict:
  """The mean and deviation of pixels that a preprocessor_config.json names; what it leaves out stays as it is.

  Raises:
    UserError: pixels are prepared in another way than by a mean and a deviation where 255 counts as 1.
  """
  for field in ("do_normalize", "do_rescale"):
    if described.get(field, True) is not True:
      raise UserError(f"{where}: {field} is {described[field]!r}; only True is read.")
  factor = described.get("rescale_factor", 1 / 255)
  if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
    raise UserError(f"{where}: rescale_factor is {factor!r}; only 1/255 is read.")
  fields = {"pixel_mean": "image_mean", "pixel_deviation": "image_std"}
  pixels = {ours: tuple(described[theirs]) for ours, theirs in fields.items() if theirs in described}
  for ours, values in pixels.items():
    if len(values) != 3 or (ours == "pixel_deviation" and not min(values) > 0):
      raise UserError(f"{where}: {fields[ours]} is {list(values)}; it is one number a colour, a deviation above 0.")
  return pixels


def sizes_from_transformers(vision: dict) -> dict:
  """The fields that all of transformers' towers describe alike.

  Raises:
    UserError: an activation that we do not have.
  """
  return dict(
    width=vision["hidden_size"],
    layers=vision["num_hidden_layers"],
    heads=vision["num_attention_heads"],
    feed_forward_multiplier=vision["intermediate_size"] / vision["hidden_size"],
    activation=activation_from(vision["hidden_act"]),
    norm_epsilon=vision["layer_norm_eps"],
    image_size=vision["image_size"],
    patch_size=vision["patch_size"],
  )


def activation_from(name: str) -> str:
  if name not in ACTIVATION_NAMES:
    known = ", ".join(ACTIVATION_NAMES)
    raise UserError(f"vision_config.hidden_act is {name!r}; towers are read with one of {known}.")
  return ACTIVATION_NAMES[name]


def config_from_open_clip(described: dict, *, quick_gelu: bool | None = None) -> VitConfig:
  """From a model config of open_clip, or the open_clip_config.json that it publishes; as OpenFlamingo reads the
  tower: the class token is dropped from the features, and the norm after the last layer with it.

  Args:
    described: the config.
    quick_gelu: overrides what the config says: OpenAI's own weights always mean True, whatever config they came with.

  Raises:
    UserError: the tower is not a plain ViT.
  """
  model, pixels = described.get("model_cfg", described), described.get("preprocess_cfg", {})
  vision = model["vision_cfg"]
  read = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
  without_effect = {
    "output_tokens",
    "patch_dropout",
    "pool_type",
    "global_average_pool",
    "n_queries",
    "attn_pooler_heads",
  }
  others = {name: value for name, value in vision.items() if name not in read | without_effect and value}
  if not isinstance(vision.get("layers"), int):
    others.setdefault("layers", vision.get("layers"))
  if others:
    changes = ", ".join(f"{name}={value!r}" for name, value in others.items())
    raise UserError(f"vision_cfg: only open_clip's plain ViT is read, without {changes}.")
  quick = model.get("quick_gelu", False) if quick_gelu is None else quick_gelu
  return VitConfig(
    width=vision["width"],
    layers=vision["layers"],
    heads=vision["width"] // vision.get("head_width", 64),
    feed_forward_multiplier=int(vision["width"] * vision.get("mlp_ratio", 4.0)) / vision["width"],
    activation="quick_gelu" if quick else "gelu",
    image_size=vision.get("image_size", 224),
    patch_size=vision.get("patch_size", 16),
    pixel_mean=tuple(pixels.get("mean", CLIP_PIXELS["pixel_mean"])),
    pixel_deviation=tuple(pixels.get("std", CLIP_PIXELS["pixel_deviation"])),
    **CLIP_SWITCHES,
  )


def config_from_timm(described: dict) -> NfnetConfig:
  """From the config.json that timm publishes with a dm_nfnet.

  Raises:
    UserError: it describes another architecture.
  """
  architecture = described.get("architecture", "(absent)")
  match = re.fullmatch(r"dm_nfnet_(f\d)", architecture)
  if not match or match[1].upper() not in VARIANTS:
    raise UserError(f"architecture is {architecture!r}; of timm's models dm_nfnet_f0 to dm_nfnet_f6 are read.")
  trained = described.get("pretrained_cfg", {})
  defaults = NfnetConfig()
  return NfnetConfig(
    variant=match[1].upper(),
    image_size=trained.get("input_size", (3, defaults.image_size))[-1],
    pixel_mean=tuple(trained.get("mean", defaults.pixel_mean)),
    pixel_deviation=tuple(trained.get("std", defaults.pixel_deviation)),
  )
