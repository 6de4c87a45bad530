"""Times a training step on vision features: forward, backward, clipping, AdamW on the resampler and the gated layers.

    python benchmarks/train_step.py [--config c.json | --set dim=256 --set layers=6] [--steps 8] [--start DIR]

The language model is a frozen Llama with untied embeddings; settings.py has the settings, flamingo_3b.json those of the
3B. Prints one JSON line. `mfu` is the share of what a large matrix product reaches in the same run; the model's own
operations count, so what is frozen has no weight gradients and what is computed again counts once. `--start` names a
folder with OpenFlamingo's own weights (weights.safetensors) and a batch (batch.npz: tokens, labels, features): two
implementations then begin at the same point, and their `losses` agree.
"""

import dataclasses
import json
import pathlib
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from settings import STEP, read_settings, step_arguments

from flamingo_jax.interop.descriptions import model_faults
from flamingo_jax.interop.flamingo_rules import OPENFLAMINGO_IGNORED, open_openflamingo, openflamingo_rules
from flamingo_jax.interop.rules import assemble, check_tensors
from flamingo_jax.interop.tensor_files import open_tensors
from flamingo_jax.memory import give_back_freed, use_huge_pages
from flamingo_jax.models.flamingo import FlamingoConfig, grouped, initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import Parameters, flat
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.ops.remat import POLICIES
from flamingo_jax.planning.flops import flamingo_flops, total
from flamingo_jax.training.objectives import flamingo_objective
from flamingo_jax.training.optimizer import OptimizerConfig, make_optimizer
from flamingo_jax.training.step import State, is_trainable, make_train_step

TRAINABLE = ("^resampler/", "/gated_cross_attention/")
ADDED = 3  # tokens behind the vocabulary: <image>, <EOC>, <PAD>


def main() -> None:
  parser = step_arguments(__doc__, dtype="float32")
  parser.add_argument("--remat", default=FlamingoConfig.remat, choices=POLICIES, help="what is computed again")
  parser.add_argument("--start", type=pathlib.Path, help="a folder with weights.safetensors and batch.npz")
  options = parser.parse_args()
  settings = read_settings(options.config, options.set, STEP)
  config = make_config(settings, options.dtype, options.remat)
  parameters, batch = read_start(options.start, config) if options.start else make_start(settings, config)
  print(json.dumps(measure(settings, config, parameters, batch, options.steps, options.warmup)))


def make_config(settings: dict, dtype: str, remat: str = FlamingoConfig.remat) -> FlamingoConfig:
  config = FlamingoConfig(
    vision=FeaturesConfig(width=settings["vis_dim"], positions=settings["vis_tokens"]),
    resampler=PerceiverResamplerConfig(
      layers=settings["resampler_depth"],
      latents=settings["latents"],
      heads=settings["resampler_heads"],
      head_width=settings["dim_head"],
      frames=0,
      activation="gelu",
    ),
    cross_attention=GatedCrossAttentionConfig(
      every=settings["every"],
      offset=settings["every"] - 1,
      heads=settings["xattn_heads"],
      head_width=settings["dim_head"],
      activation="gelu",
    ),
    language=DecoderConfig(
      vocabulary=settings["vocab"] - ADDED,
      width=settings["dim"],
      layers=settings["layers"],
      heads=settings["heads"],
      key_value_heads=settings["kv_heads"],
      feed_forward_width=settings["ffn"],
      norm_epsilon=1e-6,
      rope_base=10_000.0,
      tied_embeddings=False,
      extra_tokens=ADDED,
    ),
    dtype=dtype,
    remat=remat,
  )
  if faults := model_faults(config):
    raise SystemExit("\n".join(faults))
  return config


def make_start(settings: dict, config: FlamingoConfig) -> tuple[Parameters, dict]:
  """Random parameters with gates half open, and a random batch whose images stand at equal distances."""
  fresh = jax.jit(lambda key: flat(initialize(config, key)))(jax.random.key(0))
  parameters = {path: jnp.full_like(p, 0.5) if path.endswith("_gate") else p for path, p in fresh.items()}
  random = np.random.default_rng(0)
  image, (rows, length) = config.language.vocabulary, (settings["batch"], settings["text"])
  tokens = random.integers(3, image, (rows, length))
  tokens[:, np.arange(settings["images"]) * length // (settings["images"] + 1)] = image
  media = (rows, settings["images"], 1, settings["vis_tokens"], settings["vis_dim"])
  features = random.standard_normal(media).astype(np.float32)
  return parameters, make_batch(tokens, (tokens != image).astype(np.float32), features, image)


def read_start(folder: pathlib.Path, config: FlamingoConfig) -> tuple[Parameters, dict]:
  """OpenFlamingo's weights, and a batch in its token ids."""
  tensors, rules = open_openflamingo(open_tensors(folder / "weights.safetensors")), openflamingo_rules(config, "llama")
  check_tensors(tensors, rules, OPENFLAMINGO_IGNORED)
  parameters = grouped(assemble(tensors, rules), config)
  with np.load(folder / "batch.npz") as arrays:
    tokens, labels, features = (arrays[name] for name in ("tokens", "labels", "features"))
  end, image = config.language.vocabulary, config.language.vocabulary + 1  # theirs; ours are the other way round
  ours = np.where(tokens == end, image, np.where(tokens == image, end, tokens))
  return parameters, make_batch(ours, (labels != -100).astype(np.float32), features[:, :, None], end)


def make_batch(tokens: np.ndarray, weights: np.ndarray, media: np.ndarray, image: int) -> dict:
  return dict(
    tokens=tokens.astype(np.int32),
    segments=np.ones(tokens.shape, np.int32),
    loss_weights=weights,
    media=media,
    media_mask=np.ones(media.shape[:3], bool),
    media_index=np.cumsum(tokens == image, axis=1, dtype=np.int32) - 1,
  )


def measure(
  settings: dict, config: FlamingoConfig, parameters: Parameters, batch: dict, steps: int, warmup: int
) -> dict[str, object]:
  """Runs the step and describes what it took; takes the parameters out of their dict."""
  rate = optax.constant_schedule(settings["lr"])
  adam = OptimizerConfig(weight_decay=settings["weight_decay"], no_decay=("^resampler/",))
  optimizer = make_optimizer(adam, rate)
  trained = [path for path in parameters if is_trainable(path, TRAINABLE)]
  trainable = {path: jnp.array(parameters.pop(path), jnp.float32) for path in trained}  # none is held twice
  frozen = {path: jnp.asarray(parameters.pop(path), config.dtype) for path in list(parameters)}
  state = State(jnp.zeros((), jnp.int32), trainable, jax.jit(optimizer.init)(trainable))
  step = jax.jit(make_train_step(flamingo_objective(config), optimizer, rate, {"pages": 1.0}), donate_argnums=0)
  batches = {"pages": jax.device_put(batch)}
  began = time.perf_counter()
  compiled = step.lower(state, frozen, batches).compile()
  compile_seconds, times, losses = time.perf_counter() - began, [], []
  give_back_freed()  # as `flamingo train` does
  for number in range(warmup + steps):
    began = time.perf_counter()
    state, metrics = compiled(state, frozen, batches)
    losses.append(round(float(metrics["loss"]), 5))
    if number >= warmup:
      times.append(time.perf_counter() - began)
  step_seconds = statistics.median(times)
  shapes = {name: array.shape for name, array in batch.items()}
  operations = total(flamingo_flops(config, shapes, lambda path: is_trainable(path, TRAINABLE)).values()).all
  memory, peak = jax.devices()[0].memory_stats() or {}, matmul_peak(config.dtype)
  return dict(
    library=f"flamingo_jax / jax {jax.__version__}",
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    steps=len(times),
    step_ms=round(1e3 * step_seconds, 1),
    step_ms_min=round(1e3 * min(times), 1),
    step_ms_max=round(1e3 * max(times), 1),
    tokens_per_s=round(batch["tokens"].size / step_seconds, 1),
    compile_s=round(compile_seconds, 1),
    trainable=sum(int(p.size) for p in trainable.values()),
    parameters=sum(int(p.size) for p in (trainable | frozen).values()),
    peak_rss_train_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    peak_device_mib=memory["peak_bytes_in_use"] >> 20 if memory else None,
    remat=config.remat,
    model_gflop=round(operations / 1e9, 1),
    matmul_peak_gflops=round(peak / 1e9, 1),
    mfu=round(operations / step_seconds / peak, 3),
    losses=losses[:12],
    config=settings | dict(model=dataclasses.asdict(config)["dtype"]),
  )


def matmul_peak(dtype: str, repeats: int = 5, products: int = 20) -> float:
  """FLOP/s of large square matrix products of random numbers, one after another; the best of some rounds."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  unit = a * size**-0.5  # so that products of products stay as large as they are

  @jax.jit
  def run(a, unit):
    return jax.lax.fori_loop(0, products, lambda _, a: a @ unit, a)

  run(a, unit).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    began = time.perf_counter()
    run(a, unit).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 * products / best


if __name__ == "__main__":
  use_huge_pages()  # as `flamingo train` does
  main()
