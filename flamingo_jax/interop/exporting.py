"""A trained Flamingo for other programs: what OpenFlamingo can hold of it, and its forward pass as one program."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from flamingo_jax.interop.flamingo_rules import ADDED_TOKENS, LAYERS_OF, OPENFLAMINGO_ADDED, trainable_rules
from flamingo_jax.interop.rules import foreign_from
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.parameters import Parameters, nested
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import example_media

PLATFORMS = ("cpu", "tpu", "cuda")
TABLES = ("embeddings", "extra_embeddings", "unembeddings", "extra_unembeddings")


# OpenFlamingo.


def openflamingo_faults(config: FlamingoConfig, family: str, trained: Iterable[str]) -> list[str]:
  """Everything of a model that OpenFlamingo has no place for, one line each.

  Args:
    config: of the model.
    family: of its language model, such as "gpt_neox".
    trained: the paths of the trained parameters.
  """
  gated, resampler = config.cross_attention, config.resampler
  only = {
    "model.cross_attention.activation": (gated.activation, "gelu"),
    "model.cross_attention.norm": (gated.norm, "layer"),
    "model.cross_attention.norm_epsilon": (gated.norm_epsilon, 1e-5),
    "model.cross_attention.head_norm": (gated.head_norm, ""),
    "model.cross_attention.gated_feed_forward": (gated.gated_feed_forward, False),
    "model.cross_attention.gated": (gated.gated, True),
    "model.cross_attention.vector_gates": (gated.vector_gates, False),
    "model.cross_attention.after": (gated.after, False),
    "model.cross_attention.offset": (gated.offset, gated.every - 1),
    # Its text before the first image reads all media where text reads all previous ones, else none.
    "model.cross_attention.blind_sees_all": (gated.blind_sees_all, gated.previous_media),
  }
  if isinstance(resampler, PerceiverResamplerConfig):
    only["model.resampler.activation"] = (resampler.activation, "gelu")
    only["model.resampler.head_norm"] = (resampler.head_norm, "")
  faults = [f"{field} is {ours!r}; OpenFlamingo has only {theirs!r}." for field, (ours, theirs) in only.items()
            if ours != theirs]  # fmt: skip
  if not isinstance(resampler, PerceiverResamplerConfig):
    faults.append("model.resampler is no Perceiver; OpenFlamingo always has one.")
  if family not in LAYERS_OF:
    faults.append(f"the language model is of the family {family!r}; OpenFlamingo has {', '.join(LAYERS_OF)}.")
  if config.language.extra_tokens > len(ADDED_TOKENS):
    faults.append(
      f"model.language.extra_tokens is {config.language.extra_tokens}; OpenFlamingo adds at most {len(ADDED_TOKENS)}."
    )
  if others := [path for path in trained if not is_in_checkpoint(path)]:
    faults.append(
      f"{len(others)} parameters were trained that an OpenFlamingo checkpoint leaves out, {min(others)} first; "
      "it holds the resampler, the gated layers and the token tables."
    )
  return faults


def is_in_checkpoint(path: str) -> bool:
  """Whether OpenFlamingo trains a parameter."""
  is_table = path.removeprefix("language/") in TABLES
  return path.startswith("resampler/") or "/gated_cross_attention/" in path or is_table


def openflamingo_tensors(config: FlamingoConfig, family: str, parameters: Parameters) -> dict[str, np.ndarray]:
  """OpenFlamingo's trained part under its own names, float32.

  Args:
    config: of a model without `openflamingo_faults`.
    family: of its language model.
    parameters: by path, layers stacked.
  """
  rules = trainable_rules(with_head_width(config), family)
  return {names[0]: np.asarray(array, np.float32) for names, array in foreign_from(parameters, rules)}


def with_head_width(config: FlamingoConfig) -> FlamingoConfig:
  """The same model, the resampler's head width as a number."""
  resampler = config.resampler
  width = resampler.head_width or config.vision.width // resampler.heads
  return dataclasses.replace(config, resampler=dataclasses.replace(resampler, head_width=width))


def openflamingo_description(config: FlamingoConfig, family: str) -> dict:
  """What a checkpoint was made for, in the words of OpenFlamingo's constructors."""
  language, gated, resampler = config.language, config.cross_attention, with_head_width(config).resampler
  names = [ADDED_TOKENS[place] for place in sorted(OPENFLAMINGO_ADDED[: language.extra_tokens])]
  return dict(
    language=dict(family=family, width=language.width, layers=language.layers),
    rows=language.vocabulary + language.extra_tokens,
    added_tokens={name: language.vocabulary + place for place, name in enumerate(names)},
    decoder_layers=LAYERS_OF[family],
    vis_dim=config.vision.width,
    cross_attn_every_n_layers=gated.every,
    resampler=dict(
      depth=resampler.layers,
      num_latents=resampler.latents,
      heads=resampler.heads,
      dim_head=resampler.head_width,
      ff_mult=resampler.feed_forward_multiplier,
      max_num_frames=resampler.frames or None,
      max_num_media=resampler.media or None,
    ),
    cross_attention=dict(
      heads=gated.heads,
      dim_head=gated.head_width,
      ff_mult=gated.feed_forward_multiplier,
      only_attend_immediate_media=not gated.previous_media,
    ),
  )


# StableHLO.


def forward_inputs(config: FlamingoConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """What the exported forward pass takes beside the parameters, in its order.

  Rows b, text length l, media slots n and frames f are free; a model with embeddings of frames or of a medium's place
  has as many as these at most.
  """
  resampler = config.resampler
  limits = {"f": resampler.frames if resampler else 0, "n": getattr(resampler, "media", 0)}
  constraints = [f"{axis} <= {most}" for axis, most in limits.items() if most]
  b, l, n, f = export.symbolic_shape("b, l, n, f", constraints=constraints)  # noqa: E741  as in all shapes
  frame = jax.eval_shape(lambda: example_media(config.vision))
  return dict(
    tokens=jax.ShapeDtypeStruct((b, l), jnp.int32),
    segments=jax.ShapeDtypeStruct((b, l), jnp.int32),
    media=jax.ShapeDtypeStruct((b, n, f, *frame.shape), frame.dtype),
    media_mask=jax.ShapeDtypeStruct((b, n, f), jnp.bool_),
    media_index=jax.ShapeDtypeStruct((b, l), jnp.int32),
  )


def export_forward(config: FlamingoConfig, parameters: Parameters) -> bytes:
  """The forward pass for all of PLATFORMS: (parameters, *forward_inputs) -> logits float32 [b, l, vocabulary].

  Args:
    config: of the model.
    parameters: arrays, or their shapes, by path as the model takes them.
  """
  inputs = forward_inputs(config)
  anywhere = dataclasses.replace(config, attention="xla")  # what "auto" would choose runs on one platform only

  def forward(parameters: Parameters, *arrays: jax.Array) -> jax.Array:
    return Flamingo(anywhere).apply(nested(parameters), dict(zip(inputs, arrays, strict=True)))

  shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in parameters.items()}
  return bytes(export.export(jax.jit(forward), platforms=PLATFORMS)(shapes, *inputs.values()).serialize())
