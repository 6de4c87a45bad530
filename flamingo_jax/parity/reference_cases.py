"""What each kind of reference case holds, and how our models compute the same: modules, whole models, training."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flamingo_jax.interop.flamingo_rules import (
  OPENFLAMINGO_ADDED,
  OPENFLAMINGO_IGNORED,
  PALM_IGNORED,
  OpenFlamingoSettings,
  gated_layer_rules,
  open_openflamingo,
  openflamingo_config,
  openflamingo_rules,
  palm_rules,
  resampler_rules,
)
from flamingo_jax.interop.idefics_rules import IDEFICS_IGNORED, idefics_config, idefics_rules
from flamingo_jax.interop.rules import Merged, Renamed, Rule, Tensors
from flamingo_jax.interop.tensor_files import open_tensors
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig, grouped, stacked
from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import Parameters, nested
from flamingo_jax.models.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig, vision_tower
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.ops.attention import media_mask
from flamingo_jax.ops.labels import chunk_weights, text_weights
from flamingo_jax.ops.layers import layer_norm
from flamingo_jax.parity.comparison import (
  GRADIENT_LIMIT,
  OUTPUT_LIMIT,
  Arrays,
  Case,
  Finding,
  Ids,
  compare_gradients,
  compare_outputs,
  equal,
  finding,
  foreign_gradients,
  load,
  make_batch,
)
from flamingo_jax.parity.decoding_cases import compare_decoding
from flamingo_jax.training.objectives import flamingo_objective
from flamingo_jax.training.optimizer import OptimizerConfig, make_optimizer
from flamingo_jax.training.step import State, is_trainable, make_train_step

# Modules.


def with_gradients(function: Callable, parameters: Parameters, inputs: Arrays, cotangent: np.ndarray):
  """function(parameters, inputs), and the gradients of its product with a cotangent for both arguments."""

  def value(parameters, inputs):
    output = function(parameters, inputs)
    return (output * cotangent).sum(), output

  (_, output), gradients = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(parameters, inputs)
  return output, *jax.device_get(gradients)


def compare_module(case: Case, function: Callable, rules: list[Rule], inputs: tuple[str, ...], ignored=()):
  parameters = load(case.tensors(), rules, ignored)
  given = {name: case.arrays[name] for name in inputs}
  output, by_parameter, by_input = with_gradients(function, parameters, given, case.arrays["cotangent"])
  gradients = foreign_gradients(case, by_parameter, rules) | {f"grad_input:{name}": by_input[name] for name in inputs}
  return compare_outputs(case, {"output": output}) + compare_gradients(case, gradients)


def resampler_case(case: Case) -> list[Finding]:
  sizes = case.sizes
  config = PerceiverResamplerConfig(
    layers=sizes["depth"],
    latents=sizes["num_latents"],
    heads=sizes["heads"],
    head_width=sizes["dim_head"],
    frames=sizes.get("max_num_frames") or 0,
    media=sizes.get("max_num_media") or sizes.get("num_media_embeds") or 0,
    activation="gelu",
  )
  resampler = PerceiverResampler(config, jnp.float32)

  def forward(parameters, inputs):
    features = inputs["features"]
    if features.ndim == 4:  # images only
      features = features[:, :, None]
    return resampler.apply(nested(parameters), features, jnp.ones(features.shape[:3], bool))

  return compare_module(case, forward, resampler_rules(config, sizes["dim"]), ("features",))


# Here upstream lets text that precedes every image see all of them.
BLIND = ("of_xattn_all_text_first", "of_xattn_all_cached")


def gated_case(case: Case) -> list[Finding]:
  sizes, arrays = case.sizes, case.arrays
  previous = not sizes["only_attend_immediate_media"]
  config = GatedCrossAttentionConfig(
    heads=sizes["heads"],
    head_width=sizes["dim_head"],
    activation="gelu",
    previous_media=previous,
    blind_sees_all=case.name in BLIND,
  )
  layer = GatedCrossAttention(config, jnp.float32)
  rows, slots, latents, media_width = arrays["media"].shape
  length = arrays["text"].shape[1]
  if "media_locations" not in arrays:
    mask = np.ones((rows, length, slots * latents), bool)
  else:
    index = np.cumsum(arrays["media_locations"], axis=1) - 1
    if sizes.get("use_cached_media"):  # all of the text follows what `media_locations` speaks of
      index = np.repeat(index[:, -1:], length, axis=1)
    mask = media_mask(index, np.ones((rows, slots), bool), latents, previous=previous)

  def forward(parameters, inputs):
    media = inputs["media"].reshape(rows, slots * latents, media_width)
    return layer.apply(nested(parameters), inputs["text"], media, mask)

  return compare_module(
    case, forward, gated_layer_rules(config, sizes["dim"], media_width, ("",), None), ("text", "media")
  )


# Whole models.


def compare_model(
  case: Case,
  config: FlamingoConfig,
  parameters: Parameters,
  rules: list[Rule],
  batch: Arrays,
  weights: np.ndarray | None,
  ids: Ids,
) -> list[Finding]:
  """Logits where there is a token, and loss and gradients if the case has them."""
  model = Flamingo(config)
  weights = np.zeros(batch["tokens"].shape, np.float32) if weights is None else weights

  def value(stored):
    parameters = nested(grouped(stored, config))
    likelihoods = model.apply(parameters, batch, method=Flamingo.score)
    total, weight = -(likelihoods * weights[:, 1:]).sum(), weights[:, 1:].sum()
    return total / jnp.maximum(weight, 1), model.apply(parameters, batch)

  if "loss" in case.arrays:
    (loss, logits), gradients = jax.device_get(jax.jit(jax.value_and_grad(value, has_aux=True))(parameters))
  else:
    loss, logits = jax.device_get(jax.jit(value)(parameters))
    gradients = {}
  present = batch["segments"] > 0
  reference = case.arrays["logits"]
  # What an implementation computes at padding, nobody reads.
  ours = np.where(present[..., None], ids.their_columns(logits), reference)
  found = {"logits": ours} | ({"loss": loss} if "loss" in case.arrays else {})
  taken = [rule for rule in rules if rule.parts[0].path in gradients]
  return compare_outputs(case, found) + compare_gradients(case, foreign_gradients(case, gradients, taken))


def openflamingo_model(case: Case, tensors: Tensors, **changes) -> tuple[FlamingoConfig, Parameters, list[Rule], Ids]:
  sizes = case.sizes
  tensors = open_openflamingo(tensors)
  heads, previous_media = sizes["xattn"]["heads"], not sizes["only_attend_immediate_media"]
  settings = OpenFlamingoSettings(heads=heads, resampler_heads=heads, previous_media=previous_media)
  config = openflamingo_config(tensors, sizes["lm_config"], settings=settings, **changes)
  rules = openflamingo_rules(config, sizes["lm"])
  ids = Ids(config.language.vocabulary, OPENFLAMINGO_ADDED)
  return config, load(tensors, rules, OPENFLAMINGO_IGNORED), rules, ids


def openflamingo_case(case: Case) -> list[Finding]:
  config, parameters, rules, ids = openflamingo_model(case, case.tensors())
  arrays, image = case.arrays, config.language.vocabulary
  batch = make_batch(ids.ours(arrays["tokens"]), arrays["attention_mask"], arrays["features"], image)
  weights = (arrays["labels"] != -100).astype(np.float32)
  findings = compare_model(case, config, parameters, rules, batch, weights, ids)
  return findings + compare_decoding(case, config, grouped(parameters, config), ids)


def checkpoint_case(case: Case) -> list[Finding]:
  """The trainable part as upstream saves it, and the language model apart."""
  trained = open_openflamingo(open_tensors(case.folder / f"{case.name}.pt"))
  language = open_tensors(case.folder / f"{case.name}_hf_lm.safetensors")
  tensors = Merged(trained, Renamed(language, lambda name: f"lang_encoder.{name}"))
  config, parameters, rules, ids = openflamingo_model(case, tensors)
  arrays = case.arrays
  batch = make_batch(
    ids.ours(arrays["tokens"]), arrays["attention_mask"], arrays["features"], config.language.vocabulary
  )
  return compare_model(case, config, parameters, rules, batch, None, ids)


def clip_case(case: Case) -> list[Finding]:
  """open_clip's tower, alone and within a whole model."""
  vision, arrays = case.sizes["vision"], case.arrays
  tower = VitConfig(
    width=vision["width"],
    layers=vision["layers"],
    heads=vision["heads"],
    feed_forward_multiplier=vision["mlp_ratio"],
    activation=vision["act"],
    attention_bias=True,
    patch_bias=False,
    class_token=True,
    pre_norm=True,
    final_norm=False,
    image_size=vision["image_size"],
    patch_size=vision["patch_size"],
  )
  config, parameters, rules, ids = openflamingo_model(case, case.tensors(), vision=tower)
  tensors = case.tensors()
  pixels = np.moveaxis(arrays["pixels"], 3, -1)  # [B, N, F, H, W, 3]
  with_class = dataclasses.replace(tower, keep_class_token=True)
  visual = {path.removeprefix("vision/"): p for path, p in parameters.items() if path.startswith("vision/")}
  encode = vision_tower(with_class, jnp.float32)
  features = jax.jit(lambda p, x: encode.apply(nested(p), x, method="encode"))(
    visual, pixels.reshape(-1, *pixels.shape[3:])
  )
  scale, bias = (tensors.read(f"vision_encoder.ln_post.{kind}") for kind in ("weight", "bias"))
  normed = layer_norm(dtype=jnp.float32, name=None).apply({"params": {"scale": scale, "bias": bias}}, features[:, 0])
  grid = features[:, 1:]
  given = dataclasses.replace(config, vision=FeaturesConfig(width=tower.width, positions=grid.shape[1]))
  media = np.asarray(grid).reshape(*pixels.shape[:3], *grid.shape[1:])
  batch = make_batch(ids.ours(arrays["tokens"]), arrays["attention_mask"], media, config.language.vocabulary)
  seen = {path: p for path, p in parameters.items() if not path.startswith("vision/")}
  pooled = normed @ tensors.read("vision_encoder.proj")
  findings = compare_outputs(case, {"clip_tokens": grid, "clip_pooled": pooled})
  return findings + compare_model(case, given, seen, rules, batch, None, ids)


def train_case(case: Case) -> list[Finding]:
  """Five updates of two streams by our own step, with upstream's schedule, whose first update has rate zero."""
  config, parameters, rules, ids = openflamingo_model(case, case.tensors())
  sizes, arrays, image = case.sizes, case.arrays, config.language.vocabulary
  patterns = ("^resampler/", "/gated_cross_attention/", "^language/extra_embeddings$")
  whole = grouped(parameters, config)
  trainable = {path: jnp.asarray(p) for path, p in whole.items() if is_trainable(path, patterns)}
  frozen = {path: p for path, p in whole.items() if path not in trainable}
  rate = optax.linear_schedule(0.0, sizes["lr"], sizes["warmup_steps"])
  settings = OptimizerConfig(
    weight_decay=sizes["weight_decay"],
    no_decay=("^resampler/", "extra_"),
    beta1=sizes["betas"][0],
    beta2=sizes["betas"][1],
    epsilon=sizes["eps"],
    clip_norm=sizes["clip"],
  )
  optimizer = make_optimizer(settings, rate)
  weights = dict(laion=1.0, mmc4=1.0)
  step = jax.jit(make_train_step(flamingo_objective(config), optimizer, rate, weights))
  state = State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
  record: dict[str, list] = {name: [] for name in ("loss_laion", "loss_mmc4", "grad_norm", "lr")}
  for number in range(len(arrays["lr"])):
    batches = {}
    for stream in weights:
      tokens, present, labels, media = (
        arrays[f"{stream}_{part}"][number] for part in ("tokens", "mask", "labels", "features")
      )
      batches[stream] = make_batch(ids.ours(tokens), present, media, image) | {
        "loss_weights": (labels != -100).astype(np.float32)
      }
    state, metrics = step(state, frozen, batches)
    record["loss_laion"].append(metrics["loss/laion"])
    record["loss_mmc4"].append(metrics["loss/mmc4"])
    record["grad_norm"].append(metrics["gradient_norm"])
    record["lr"].append(metrics["learning_rate"])
  final = foreign_gradients(case, jax.device_get(stacked({**state.trainable, **frozen})), rules, "final:")
  missing = [name for name in arrays if name.startswith("final:") and name not in final]
  norms = np.asarray(record.pop("grad_norm"))
  findings = compare_outputs(case, {name: np.asarray(values) for name, values in record.items()} | final)
  findings.append(finding(case, "grad_norm", norms, GRADIENT_LIMIT))
  return findings + [Finding(name, float("inf"), OUTPUT_LIMIT) for name in missing]


def labels_case(case: Case) -> list[Finding]:
  """Which tokens upstream learns, for pairs and for pages."""
  tokens, sizes = case.arrays["tokens"], case.sizes
  present, image = tokens != sizes["pad_id"], sizes["media_id"]
  pairs = text_weights(tokens == image, present)
  pages = chunk_weights(tokens, present, image=image, end_of_chunk=sizes["endofchunk_id"])
  return [
    equal("laion", np.where(pairs > 0, tokens, -100), case.arrays["laion"]),
    equal("mmc4", np.where(pages > 0, tokens, -100), case.arrays["mmc4"]),
  ]


def palm_case(case: Case) -> list[Finding]:
  sizes, arrays = case.sizes, case.arrays
  width, heads = sizes["dim"], sizes["heads"]
  config = FlamingoConfig(
    vision=FeaturesConfig(width=width),
    resampler=PerceiverResamplerConfig(
      layers=sizes["perceiver_depth"],
      latents=sizes["perceiver_num_latents"],
      heads=heads,
      head_width=sizes["dim_head"],
      frames=0,
      media=case.tensors().shape("perceiver_resampler.media_pos_emb")[0],
      activation="gelu",
    ),
    cross_attention=GatedCrossAttentionConfig(
      every=sizes["cross_attn_every"], after=True, heads=heads, head_width=sizes["dim_head"], activation="gelu"
    ),
    language=DecoderConfig(
      vocabulary=sizes["num_tokens"],
      width=width,
      layers=sizes["depth"],
      heads=heads,
      key_value_heads=1,
      head_width=sizes["dim_head"],
      feed_forward_width=4 * width,
      norm="layer_without_bias",
      residual="shared",
      rope_base=10_000.0,
      extra_tokens=0,
    ),
    dtype="float32",
  )
  rules = palm_rules(config)
  parameters = load(case.tensors(), rules, PALM_IGNORED)
  tokens = arrays["tokens"].astype(np.int32)
  batch = make_batch(tokens, np.ones_like(tokens), arrays["features"][:, :, None], sizes["media_token_id"])
  ones = np.ones(tokens.shape, np.float32)
  return compare_model(case, config, parameters, rules, batch, ones, Ids(sizes["num_tokens"], ()))


def idefics_case(case: Case) -> list[Finding]:
  arrays = case.arrays
  config = idefics_config(case.sizes, case.name)
  rules = idefics_rules(config)
  parameters = load(case.tensors(), rules, IDEFICS_IGNORED)
  pixels = np.moveaxis(arrays["pixels"], 2, -1)  # [B, N, H, W, 3]
  tower = vision_tower(config.vision, jnp.float32)
  visual = {path.removeprefix("vision/"): p for path, p in parameters.items() if path.startswith("vision/")}
  encode = jax.jit(lambda p, x: tower.apply(nested(p), x, method="encode"))
  features = np.asarray(encode(visual, pixels.reshape(-1, *pixels.shape[2:])))
  media = features.reshape(*pixels.shape[:2], 1, *features.shape[1:])
  given = dataclasses.replace(config, vision=FeaturesConfig(width=config.vision.width, positions=features.shape[1]))
  seen = {path: p for path, p in parameters.items() if not path.startswith("vision/")}
  tokens = arrays["tokens"].astype(np.int32)
  attends = arrays["image_attention_mask"]
  batch = make_batch(tokens, arrays["attention_mask"], media, -1)
  batch["media_index"] = np.where(attends.any(axis=-1), attends.argmax(axis=-1), -1).astype(np.int32)
  weights = (arrays["labels"] != -100).astype(np.float32)
  latents = jax.jit(
    lambda p: Flamingo(given).apply(nested(grouped(p, given)), media, batch["media_mask"], method=Flamingo.resample)
  )(seen)
  findings = compare_outputs(case, {"image_hidden_states": np.asarray(latents)})
  ids = Ids(config.language.vocabulary, ())
  return findings + compare_model(case, given, seen, rules, batch, weights, ids)


KINDS: dict[str, Callable[[Case], list[Finding]]] = {  # how a name begins -> what to do; the first that fits
  "of_resampler_": resampler_case,
  "of_xattn_": gated_case,
  "of_flamingo_": openflamingo_case,
  "of_checkpoint": checkpoint_case,
  "of_clip_": clip_case,
  "of_train": train_case,
  "of_labels": labels_case,
  "luc_resampler": resampler_case,
  "luc_xattn_": gated_case,
  "luc_palm": palm_case,
  "idefics_": idefics_case,
}
