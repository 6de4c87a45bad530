"""The operations that a training step needs, from the sizes of the model: what is frozen is not differentiated.

Only matrix products, convolutions and the products within attention count, a multiplication and an addition as two.
Forward passes run everywhere; gradients of activations from the loss down to the first trained parameter; gradients of
weights for the trained ones. Attention counts all pairs of query and key, seen or not.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.encoder import EncoderConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig, plan_groups
from flamingo_jax.models.language_model import LanguageModelConfig
from flamingo_jax.models.mlp_resampler import MlpResamplerConfig
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.towers import FeaturesConfig, VisionConfig

Trained = Callable[[str], bool]  # whether a parameter is trained whose path starts so


@dataclasses.dataclass(frozen=True)
class Flops:
  """Operations of one step, over all chips.

  Attributes:
    forward: of the forward pass.
    activations: of the gradients that are handed down through layers.
    weights: of the gradients of trained parameters.
  """

  forward: float = 0
  activations: float = 0
  weights: float = 0

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

  def __mul__(self, times: int) -> "Flops":
    return Flops(*(times * value for value in dataclasses.astuple(self)))

  @property
  def all(self) -> float:
    return self.forward + self.activations + self.weights


def total(parts) -> Flops:
  return functools.reduce(Flops.__add__, parts, Flops())


def product(rows: float, inputs: int, outputs: int, *, trained: bool, passed: bool) -> Flops:
  """A linear map of so many rows; `passed` is whether its input needs a gradient."""
  once = 2 * rows * inputs * outputs
  return Flops(once, once * passed, once * trained)


def attend(rows: int, queries: int, keys: int, channels: int, *, to_query: bool, to_keys: bool) -> Flops:
  """Scores and means of values; `channels` of all heads together.

  Backward, the shares need a gradient first; then queries, keys and values, where those need one.
  """
  once = 2 * rows * queries * keys * channels
  return Flops(2 * once, once * ((to_query or to_keys) + to_query + 2 * to_keys))


def flamingo_flops(config: FlamingoConfig, shapes: dict[str, tuple[int, ...]], trained: Trained) -> dict[str, Flops]:
  """The operations of one stream's batch, by part of the model.

  Args:
    config: of the model.
    shapes: of the batch's arrays, by name (docs/batch.md).
    trained: of parameters as the model names them.
  """
  rows, length = shapes["tokens"]
  slots, frames = shapes["media"][1:3]
  vision = config.vision
  parts = {"vision encoder": tower(vision, rows * slots * frames, trained)}
  seen = trained("vision/")
  latents, width = vision.positions, vision.width
  if config.resampler is not None:
    resampler = config.resampler
    at_once = isinstance(resampler, MlpResamplerConfig)
    count, features = (resample_at_once, resampler.frames) if at_once else (resample, frames)
    parts["resampler"] = count(resampler, rows * slots, features * vision.positions, width, trained, seen)
    seen, latents, width = seen or trained("resampler/"), resampler.latents, resampler.output_width or width
  text, media = (rows, length), (slots * latents, width)
  return parts | decode(config.language, config.cross_attention, text, media, trained, seen)


def language_flops(
  config: LanguageModelConfig, shapes: dict[str, tuple[int, ...]], trained: Trained
) -> dict[str, Flops]:
  """The same for a language model on its own."""
  parts = decode(config.language, None, shapes["tokens"], (0, 0), trained, seen=False)
  return {"language model": parts["language model"]}


def contrastive_flops(
  config: ContrastiveConfig, shapes: dict[str, tuple[int, ...]], trained: Trained
) -> dict[str, Flops]:
  """The same for contrastive training."""
  rows, length = shapes["tokens"]
  text, joint = config.text, config.joint_width
  below = trained("text/embeddings") or trained("text/position_embeddings")
  embed = product(
    rows * length,
    config.embedding_width,
    text.width,
    trained=trained("text/embedding_projection/kernel"),
    passed=trained("text/embeddings"),
  )
  below = below or trained("text/embedding_projection/")
  towers = {
    "vision encoder": tower(config.vision, rows, trained),
    "text encoder": embed + encode(text, rows, length, "text/encoder/", trained, below),
  }
  projections = [
    product(rows, width, joint, trained=trained(f"{name}_projection/kernel"), passed=trained(tower))
    for name, tower, width in (("image", "vision/", config.vision.width), ("text", "text/", text.width))
  ]
  needed = [trained("image_projection/") or trained("vision/"), trained("text_projection/") or trained("text/")]
  once = 2 * rows * rows * joint
  similarity = Flops(once, once * sum(needed))
  return towers | {"projections and temperature": total(projections) + similarity}


# The language model


def decode(
  language: DecoderConfig,
  gated: GatedCrossAttentionConfig | None,
  text: tuple[int, int],
  media: tuple[int, int],
  trained: Trained,
  seen: bool,
) -> dict[str, Flops]:
  """Language model and gated layers: text of (rows, length) that reads media of (latents a row, their width)."""
  plan = plan_groups(language.layers, gated)
  stacks = [  # (where its parameters are, gated layers, plain layers)
    ("language/prefix/", "", 0, plan.prefix),
    ("language/groups/layers/", "language/groups/gated_cross_attention/", plan.groups, plan.groups * plan.group_layers),
    ("language/tail/layers/", "language/tail/gated_cross_attention/", int(plan.tail is not None), plan.tail or 0),
  ]
  passed = any(trained(f"language/{name}") for name in ("embeddings", "extra_embeddings", "position_embeddings"))
  layers, between = Flops(), Flops()
  for plain_path, gated_path, gated_count, plain_count in stacks:
    if gated_count:
      # In a loop over groups every round does what one of them needs.
      looped = plan.groups > 0 and gated_path.startswith("language/groups/")
      below = passed or (looped and (seen or trained("language/groups/")))
      between += gated_layer(gated, language.width, text, media, gated_path, trained, below, seen) * gated_count
      passed = passed or seen or trained(gated_path)
    if plain_count:
      below = passed or trained(plain_path)
      layers += decoder_layer(language, text, plain_path, trained, below) * plain_count
      passed = below
  return {"language model": layers + unembed(language, text, trained, passed), "gated cross-attention": between}


def decoder_layer(config: DecoderConfig, text: tuple[int, int], path: str, trained: Trained, passed: bool) -> Flops:
  """Self-attention and feed-forward block of one layer."""
  rows, length = text
  width, head_width = config.width, config.key_width
  count = rows * length

  def linear(name: str, inputs: int, outputs: int) -> Flops:
    return product(count, inputs, outputs, trained=trained(f"{path}{name}/kernel"), passed=passed)

  channels = config.heads * head_width
  maps = [
    linear("attention/query", width, channels),
    linear("attention/key", width, config.key_value_heads * head_width),
    linear("attention/value", width, config.key_value_heads * head_width),
    attend(rows, length, length, channels, to_query=passed, to_keys=passed),
    linear("attention/output", channels, width),
    *(
      linear(f"feed_forward/{name}", width, config.feed_forward_width)
      for name in (("up", "gate") if config.gated_feed_forward else ("up",))
    ),
    linear("feed_forward/down", config.feed_forward_width, width),
  ]
  if config.positions == "relative":
    of_distance = trained(f"{path}attention/distance/kernel")
    once = 2 * rows * length * length * channels
    maps.append(product(length, width, channels, trained=of_distance, passed=False))
    maps.append(Flops(once, once * (passed + of_distance)))
  return total(maps)


def gated_layer(
  config: GatedCrossAttentionConfig,
  width: int,
  text: tuple[int, int],
  media: tuple[int, int],
  path: str,
  trained: Trained,
  passed: bool,
  seen: bool,
) -> Flops:
  """One gated layer: `passed` is whether the text below needs a gradient, `seen` whether the media do."""
  rows, length = text
  latents, media_width = media
  own = trained(path)
  channels = config.heads * config.head_width
  hidden = round(width * config.feed_forward_multiplier)

  def linear(name: str, count: int, inputs: int, outputs: int, needed: bool) -> Flops:
    return product(count, inputs, outputs, trained=trained(f"{path}{name}/kernel"), passed=needed)

  return total(
    [
      linear("attention/query", rows * length, width, channels, passed or own),
      linear("attention/key", rows * latents, media_width, channels, seen),
      linear("attention/value", rows * latents, media_width, channels, seen),
      attend(rows, length, latents, channels, to_query=passed or own, to_keys=seen or own),
      linear("attention/output", rows * length, channels, width, passed or seen or own),
      *(
        linear(f"feed_forward/{name}", rows * length, width, hidden, passed or seen or own)
        for name in (("up", "gate") if config.gated_feed_forward else ("up",))
      ),
      linear("feed_forward/down", rows * length, hidden, width, passed or seen or own),
    ]
  )


def unembed(config: DecoderConfig, text: tuple[int, int], trained: Trained, passed: bool) -> Flops:
  """Logits of all positions but the last, and their gradients."""
  rows, length = text
  count = rows * (length - 1)
  tables = {"embeddings" if config.tied_embeddings else "unembeddings": config.vocabulary}
  if config.extra_tokens:
    tables["extra_embeddings" if config.tied_embeddings else "extra_unembeddings"] = config.extra_tokens
  needed = passed or trained("language/norm/")
  return total(
    product(count, config.width, entries, trained=trained(f"language/{name}"), passed=needed)
    for name, entries in tables.items()
  )


# Vision and resampler


def resample(
  config: PerceiverResamplerConfig, clips: int, features: int, width: int, trained: Trained, seen: bool
) -> Flops:
  """So many clips of so many features to latents; `seen` is whether the features need a gradient."""
  passed = seen or trained("resampler/")
  head_width = config.head_width or width // config.heads
  channels, context = config.heads * head_width, features + config.latents
  hidden = round(width * config.feed_forward_multiplier)

  def linear(name: str, count: int, inputs: int, outputs: int) -> Flops:
    return product(clips * count, inputs, outputs, trained=trained(f"resampler/{name}/kernel"), passed=passed)

  layer = total(
    [
      linear("layers/attention/query", config.latents, width, channels),
      linear("layers/attention/key", context, width, channels),
      linear("layers/attention/value", context, width, channels),
      attend(clips, config.latents, context, channels, to_query=passed, to_keys=passed),
      linear("layers/attention/output", config.latents, channels, width),
      linear("layers/feed_forward/up", config.latents, width, hidden),
      linear("layers/feed_forward/down", config.latents, hidden, width),
    ]
  )
  if not config.output_width:
    return layer * config.layers
  return layer * config.layers + linear("output", config.latents, width, config.output_width)


def resample_at_once(
  config: MlpResamplerConfig, clips: int, features: int, width: int, trained: Trained, seen: bool
) -> Flops:
  """The same by an MLP, which reads absent frames too."""
  passed = seen or trained("resampler/")
  inputs, outputs = features * width, config.latents * (config.output_width or width)
  up = product(clips, inputs, config.hidden_width, trained=trained("resampler/up/kernel"), passed=passed)
  return up + product(clips, config.hidden_width, outputs, trained=trained("resampler/down/kernel"), passed=passed)


def tower(config: VisionConfig, frames: int, trained: Trained) -> Flops:
  """A vision encoder over so many frames."""
  if isinstance(config, FeaturesConfig):
    return Flops()
  if isinstance(config, NfnetConfig):
    return nfnet(config, trained) * frames
  patches, pixels = config.patches, 3 * config.patch_size**2
  first = trained("vision/patch_embedding/kernel")
  embed = product(frames * patches, pixels, config.width, trained=first, passed=False)
  below = any(trained(f"vision/{name}") for name in ("patch_embedding", "class_", "position_", "pre_norm"))
  return embed + encode(config, frames, patches + config.class_token, "vision/encoder/", trained, below)


def encode(config: EncoderConfig, rows: int, length: int, path: str, trained: Trained, passed: bool) -> Flops:
  """A bidirectional encoder; `passed` is whether its input needs a gradient."""
  passed, width = passed or trained(path), config.width
  channels = width // config.heads * config.heads

  def linear(name: str, inputs: int, outputs: int) -> Flops:
    return product(rows * length, inputs, outputs, trained=trained(f"{path}layers/{name}/kernel"), passed=passed)

  layer = total(
    [
      *(linear(f"attention/{name}", width, channels) for name in ("query", "key", "value")),
      attend(rows, length, length, channels, to_query=passed, to_keys=passed),
      linear("attention/output", channels, width),
      linear("feed_forward/up", width, config.feed_forward_width),
      linear("feed_forward/down", config.feed_forward_width, width),
    ]
  )
  return layer * config.layers


def nfnet(config: NfnetConfig, trained: Trained) -> Flops:
  """An NFNet over one frame; its backward pass counts as twice the forward one from the first trained block on."""
  side, stem = config.image_size, config.widths[0] // 2
  maps, inputs, passed = [], 3, False

  def convolve(path: str, inputs: int, outputs: int, size: int, side: int, stride: int = 1, groups: int = 1) -> int:
    nonlocal passed
    once = 2 * taps(side, size, stride) ** 2 * inputs // groups * outputs
    learned = trained(f"vision/{path}/kernel")
    maps.append(Flops(once, once * passed, once * learned))
    return math.ceil(side / stride)

  for index, (share, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2))):
    side = convolve(f"stem/conv_{index}", inputs, stem // share, 3, side, stride)
    inputs, passed = stem // share, passed or trained(f"vision/stem/conv_{index}/")
  for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
    middle, groups = width // 2, width // 2 // config.group_width
    for block in range(blocks):
      path = f"stage_{stage}/{'rest' if block else 'first'}"
      stride = 1 if block or not stage else 2
      passed = passed or (block > 0 and trained(f"vision/{path}/"))  # a loop: all its rounds do what one needs
      out = math.ceil(side / stride)
      if not block:
        convolve(f"{path}/shortcut", inputs, width, 1, out)
      convolve(f"{path}/reduce", inputs, middle, 1, side)
      convolve(f"{path}/first_grouped", middle, middle, 3, side, stride, groups)
      convolve(f"{path}/second_grouped", middle, middle, 3, out, groups=groups)
      convolve(f"{path}/expand", middle, width, 1, out)
      for name, shape in (("squeeze", (width, width // 2)), ("excite", (width // 2, width))):
        learned = trained(f"vision/{path}/squeeze_excite/{name}/kernel")
        maps.append(product(1, *shape, trained=learned, passed=passed or trained(f"vision/{path}/")))
      side, inputs, passed = out, width, passed or trained(f"vision/{path}/")
  if config.final_conv:
    convolve("final_conv", inputs, config.width, 1, side)
  return total(maps)


def taps(side: int, size: int, stride: int) -> int:
  """Pairs of a place of the kernel and one of the result, along an axis, that lie within the image (padding "SAME")."""
  out = math.ceil(side / stride)
  before = max((out - 1) * stride + size - side, 0) // 2
  places = np.arange(out)[:, None] * stride + np.arange(size) - before
  return int(((places >= 0) & (places < side)).sum())
