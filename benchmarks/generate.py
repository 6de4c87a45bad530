"""Times greedy writing after a prompt with one image, its key, value and media kept: tokens a second, and the first.

    python benchmarks/generate.py [--config c.json | --set every=1 --set new_tokens=64] [--repeats 5] [--start DIR]

The settings are those of settings.py, and the model is that of train_step.py. Prints one JSON line. `--start`
names a folder with OpenFlamingo's own weights (weights.safetensors) and a batch (batch.npz), whose first row begins the
prompt: `tokens`, in OpenFlamingo's ids, then agree with what it writes from the same files. Beside our times stands
what the same cores take to write without a cache, the whole model over the whole text for every token; and what they
could write at most, were a token to take no longer than reading the weights once at the rate of a plain sum
(`memory_bound_tokens_per_s`).
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from settings import WRITING, add_settings, at_least, read_settings
from train_step import make_config, make_start, read_start

from flamingo_jax.inference.decoding import decode
from flamingo_jax.inference.prefill import prefill
from flamingo_jax.inference.weights import Weights, unroll
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.parameters import Parameters, nested


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add_settings(parser)
  parser.add_argument("--repeats", type=at_least(1), default=5)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--start", type=pathlib.Path, help="a folder with weights.safetensors and batch.npz")
  parser.add_argument("--no-uncached", action="store_true", help="leave out the slow comparison")
  options = parser.parse_args()
  settings = read_settings(options.config, options.set, WRITING)
  config = make_config(settings, options.dtype)
  parameters, batch = read_start(options.start, config) if options.start else make_start(settings, config)
  prompts = make_prompts(settings, batch, config.language.vocabulary)
  found = measure(settings, config, parameters, prompts, options.repeats)
  if not options.no_uncached:
    found |= measure_uncached(settings, config, parameters, prompts, found)
  print(json.dumps(found))


def make_prompts(settings: dict, batch: dict, image: int) -> dict:
  """The first row's beginning, so many times, with the media it speaks of."""
  rows, length = settings["generate_batch"], settings["prompt"]
  index = batch["media_index"][:1, :length]
  slots = max(1, index.max() + 1)
  one = dict(
    tokens=batch["tokens"][:1, :length],
    segments=batch["segments"][:1, :length],
    media_index=index,
    media=batch["media"][:1, :slots],
    media_mask=batch["media_mask"][:1, :slots],
  )
  return {name: np.repeat(array, rows, axis=0) for name, array in one.items()}


def measure(settings: dict, config: FlamingoConfig, parameters: Parameters, prompts: dict, repeats: int) -> dict:
  """Reads the prompts and writes after them, with a cache."""
  weights = jax.block_until_ready(unroll(config, parameters))
  prompts = jax.device_put(prompts)
  rows, new = settings["generate_batch"], settings["new_tokens"]
  end = config.language.vocabulary + 1  # <EOC> would end a row early

  def write(count: int) -> np.ndarray:
    cache = prefill(config, weights, prompts)
    return np.asarray(decode(config, weights, cache, new_tokens=count, stop=(), forbidden=(end,)).tokens)[:, :count]

  began = time.perf_counter()
  write(new)  # compiles both programs, of which `first` needs the other length
  write(1)
  compile_seconds = time.perf_counter() - began
  first, whole = [], []
  for _ in range(repeats):
    first.append(timed(lambda: write(1)))
    whole.append(timed(lambda: write(new)))
  first_seconds, seconds = (statistics.median(wall for wall, _, _ in times) for times in (first, whole))
  best_first, best = (min(wall for wall, _, _ in times) for times in (first, whole))
  cpu = statistics.median(cpu for _, cpu, _ in whole)
  read, rate = bytes_of_a_token(weights), reading_rate()
  bound = rows * new / (first_seconds + (new - 1) * read / rate)
  tokens = their_ids(whole[-1][2], config.language.vocabulary)
  return dict(
    library=f"flamingo_jax / jax {jax.__version__}",
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    repeats=repeats,
    generate_cache_tokens_per_s=round(rows * new / seconds, 1),
    generate_cache_tokens_per_s_best=round(rows * new / best, 1),
    generate_cache_decode_tokens_per_s=round(rows * (new - 1) / max(seconds - first_seconds, 1e-9), 1),
    generate_cache_first_token_ms=round(1e3 * first_seconds, 1),
    generate_cache_first_token_ms_best=round(1e3 * best_first, 1),
    generate_cache_cpu_s=round(cpu, 3),
    generate_cache_tokens_per_cpu_s=round(rows * new / cpu, 1),
    memory_gb_per_s=round(rate / 1e9, 1),
    weights_of_a_token_mb=round(read / 1e6, 1),
    memory_bound_tokens_per_s=round(bound, 1),
    share_of_memory_bound=round(rows * new / seconds / bound, 3),
    compile_s=round(compile_seconds, 1),
    parameters=sum(int(np.prod(p.shape)) for p in parameters.values()),
    peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    tokens=tokens[0][:16].tolist(),
    tokens_sum=int(tokens.sum()),
    config=settings | dict(model=config.dtype),
  )


def bytes_of_a_token(weights: Weights) -> int:
  """What one step of all rows reads: all but the table of which it looks up rows, and the media's own kernels."""
  tables = dict(weights.tables)
  if "unembeddings" in tables:  # else the table is the one of the logits
    del tables["embeddings"]
  media = [gated["attention"][name] for gated in weights.gated for name in ("key", "value")]
  held, of_media = (
    [leaf.nbytes for leaf in jax.tree.leaves(tree)] for tree in ((tables, weights.layers, weights.gated), media)
  )
  return sum(held) - sum(of_media)


def reading_rate(size: int = 1 << 28, repeats: int = 20) -> float:
  """Bytes a second of a sum over an array that no cache holds; the best of some."""
  numbers, total = jnp.ones(size // 4, jnp.float32), jax.jit(jnp.sum)
  total(numbers).block_until_ready()
  return size / min(timed(lambda: np.asarray(total(numbers)))[0] for _ in range(repeats))


def measure_uncached(
  settings: dict, config: FlamingoConfig, parameters: Parameters, prompts: dict, found: dict
) -> dict:
  """Writes with the training forward pass over the whole text; says whether it is the same, and how much slower."""
  rows, new, length = settings["generate_batch"], settings["new_tokens"], settings["prompt"]
  model = Flamingo(config)
  text = {name: np.pad(prompts[name], ((0, 0), (0, new))) for name in ("tokens", "segments", "media_index")}
  text["segments"][:, length:], text["media_index"][:, length:] = 1, text["media_index"][:, length - 1 : length]

  @jax.jit
  def write(parameters, text, media, mask):
    latents = model.apply(nested(parameters), media, mask, method=Flamingo.see)

    def one(count, tokens):
      logits = model.apply(
        nested(parameters), text | dict(tokens=tokens, media_mask=mask), latents, method=Flamingo.read
      )
      at = length + count
      last = jnp.take(logits, at - 1, axis=1).at[:, config.language.vocabulary + 1].set(-jnp.inf)
      return tokens.at[:, at].set(last.argmax(axis=-1).astype(jnp.int32))

    return jax.lax.fori_loop(0, new, one, jnp.asarray(text["tokens"]))[:, length:]

  arguments = jax.device_put((parameters, text, prompts["media"], prompts["media_mask"]))
  compiled = write.lower(*arguments).compile()
  seconds, cpu, tokens = timed(lambda: np.asarray(compiled(*arguments)))
  tokens = their_ids(tokens, config.language.vocabulary)
  return dict(
    generate_no_cache_tokens_per_s=round(rows * new / seconds, 1),
    generate_no_cache_cpu_s=round(cpu, 3),
    generate_cache_equals_no_cache=int(tokens.sum()) == found["tokens_sum"]
    and tokens[0][:16].tolist() == found["tokens"],
    cache_speedup=round(found["generate_cache_tokens_per_s"] * seconds / (rows * new), 1),
  )


def their_ids(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
  """OpenFlamingo has <EOC> before <image>."""
  swapped = np.where(tokens == vocabulary, vocabulary + 1, np.where(tokens == vocabulary + 1, vocabulary, tokens))
  return swapped


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
  """Seconds on the clock, seconds of all cores together, and what came out."""
  cpu, began = sum(os.times()[:2]), time.perf_counter()
  result = run()
  return time.perf_counter() - began, sum(os.times()[:2]) - cpu, result


if __name__ == "__main__":
  main()
