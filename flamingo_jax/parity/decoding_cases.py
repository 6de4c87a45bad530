"""What OpenFlamingo writes and scores after a prompt, and how ours does: greedy, by beam search, with kept media."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.inference.beam import Beams, Rules, Search, run, search
from flamingo_jax.inference.cache import Cache, MediaPart, Written, room_for, taken
from flamingo_jax.inference.decoding import decode
from flamingo_jax.inference.forward import look, seen_now, step
from flamingo_jax.inference.prefill import prefill
from flamingo_jax.inference.scoring import logits_after
from flamingo_jax.inference.weights import Weights, unroll
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parity.comparison import OUTPUT_LIMIT, Arrays, Case, Finding, Ids, equal, finding, make_batch

LIMIT = 10  # tokens that the cases write at most; what they wrote may be shorter, and each kind of it differently
WIDTH, LENGTH_PENALTY = 3, 1.0  # of their beam search


def compare_decoding(case: Case, config: FlamingoConfig, parameters: Parameters, ids: Ids) -> list[Finding]:
  """Logits of a continuation, and tokens written greedily and by beam search."""
  weights = unroll(config, parameters)
  batch = left_to_right(case, ids)
  cache = prefill(config, weights, batch)
  return [score(case, config, weights, ids), *written(case, config, weights, batch, cache, ids)]


def left_to_right(case: Case, ids: Ids) -> Arrays:
  """The prompts: theirs are padded on the left, ours on the right."""
  prompt, mask = case.arrays["prompt"], case.arrays["prompt_mask"]
  rows = [np.concatenate([row[keep == 1], row[keep == 0]]) for row, keep in zip(prompt, mask, strict=True)]
  return make_batch(ids.ours(np.stack(rows)), -np.sort(-mask, axis=1), case.arrays["prompt_features"], ids.vocabulary)


def score(case: Case, config: FlamingoConfig, weights: Weights, ids: Ids) -> Finding:
  """A continuation that sees the last medium of a prompt read before."""
  prompt, continuation = ids.ours(case.arrays["score_prompt"]), ids.ours(case.arrays["score_continuation"])
  batch = make_batch(prompt, np.ones_like(prompt), case.arrays["features"][:1], ids.vocabulary)
  text = dict(tokens=continuation, segments=np.ones_like(continuation), media_index=np.full_like(continuation, -1))
  logits = logits_after(config, weights, prefill(config, weights, batch), text)
  return finding(case, "score_logits", ids.their_columns(logits), OUTPUT_LIMIT)


def written(
  case: Case, config: FlamingoConfig, weights: Weights, batch: Arrays, cache: Cache, ids: Ids
) -> list[Finding]:
  """What is written, to the first `<EOC>`.

  An `<image>` that is written has no picture, and is read in another way by everyone: where one was, we compare what
  their way of reading gives (`their_step`), elsewhere what `decode` and `search` give. A model whose own config turns
  the cache off searches without one.
  """
  image, end, arrays = ids.vocabulary, ids.vocabulary + 1, case.arrays
  prompt = arrays["prompt"].shape[1]
  limits = dict(new_tokens=LIMIT, stop=(end,))
  greedy = decode(config, weights, cache, **limits).lists()
  beams = search(config, weights, cache, **limits, beams=Beams(WIDTH, LENGTH_PENALTY)).best().lists()
  rules = Rules((end,), (), False, LIMIT, LENGTH_PENALTY)
  findings = []
  for name, ours in (("greedy", greedy), ("greedy_uncached", greedy), ("beam3", beams)):
    cached = case.sizes["lm_config"].get("use_cache", True) if name == "beam3" else name == "greedy"
    width = WIDTH if name == "beam3" else 1
    theirs, strayed = as_they_do(config, rules, width, cached, weights, batch, cache, image)
    found = [before(row, end) for row in np.asarray(theirs).tolist()] if strayed else ours
    expected = [before(ids.ours(row[prompt:]).tolist(), end) for row in arrays[name]]
    findings.append(equal(name, found == expected, True))
  return findings


def before(row: list[int], end: int) -> list[int]:
  """What stands before the first end; behind it some have padding."""
  return row[: row.index(end)] if end in row else row


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 7))
def as_they_do(
  config: FlamingoConfig,
  rules: Rules,
  width: int,
  cached: bool,
  weights: Weights,
  batch: Arrays,
  cache: Cache,
  image: int,
) -> tuple[jax.Array, jax.Array]:
  """Tokens int32 [B, limit] that OpenFlamingo writes, and whether any beam ever read an `<image>` that it had written.

  A search of width 1 is a greedy one.
  """
  media = look(config, weights, batch["media"], batch["media_mask"])
  last = jnp.take_along_axis(batch["media_index"], cache.length[:, None] - 1, axis=1)[:, 0]
  beams = cache.repeated(width)
  read = their_step(config, cached, weights, beams, media, image)
  state = room_for(beams, rules.limit), jnp.repeat(last, width, axis=0), jnp.zeros((), bool)
  (rows, size), end = cache.logits.shape, rules.stop[0]
  if width > 1:
    start = Search.start(beams.logits.reshape(rows, width, size), rules.limit)
    found, (_, _, strayed) = run(read, state, start, rules)
    best = found.best()
    ends = jnp.arange(rules.limit) == best.lengths[:, None]
    return jnp.where(ends, end, best.tokens), strayed

  def write(count, carry):
    token, done, tokens, state = carry
    tokens, done = tokens.at[:, count].set(token), done | (token == end)
    state, logits = read(state, jnp.where(done, 0, token), jnp.arange(rows))  # ended rows read padding
    return logits.argmax(axis=-1), done, tokens, state

  start = cache.logits.argmax(axis=-1), jnp.zeros(rows, bool), jnp.zeros((rows, rules.limit), jnp.int32), state
  _, _, tokens, (_, _, strayed) = jax.lax.fori_loop(0, rules.limit, write, start)
  return tokens, strayed


def their_step(config: FlamingoConfig, cached: bool, weights: Weights, cache: Cache, media: MediaPart, image: int):
  """Reading a token as OpenFlamingo does: (written, media index, strayed), tokens, rows -> the same, logits.

  With its cache, where any row of the batch reads an `<image>`, those that do see their first picture from then on, and
  the others none; what is seen stays with the place in the batch when beams change theirs. Without, the rows that read
  one see the next picture, and if there is none, the mean of all.
  """
  previous = config.cross_attention.previous_media
  if not cached:
    gated = dataclasses.replace(config.cross_attention, blind_sees_all=True)
    config = dataclasses.replace(config, cross_attention=gated)

  def read(state: tuple[Written, jax.Array, jax.Array], tokens: jax.Array, rows: jax.Array):
    written, index, strayed = state
    images = tokens == image
    index = jnp.where(images.any(), jnp.where(images, 0, -1), index) if cached else index[rows] + images
    everything = jax.tree.map(lambda array: jnp.repeat(array, len(tokens) // array.shape[0], axis=0), media)
    slots = everything.seen.shape[1] // config.resampler.latents
    seen = seen_now(everything, index[:, None], slots, previous)[:, 0]
    seeing = dataclasses.replace(cache, media=(dataclasses.replace(everything, seen=seen),))
    written, logits = step(config, weights, seeing, taken(written, rows), tokens)
    return (written, index, strayed | images.any()), logits

  return read
