"""Beam search: the continuations that are most likely as a whole (paper, section 4: width 3)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.inference.cache import Cache, room_for, taken
from flamingo_jax.inference.decoding import Continuations, check_writing, ended, is_one_of, without
from flamingo_jax.inference.forward import step
from flamingo_jax.inference.prefill import bucket
from flamingo_jax.inference.weights import Weights
from flamingo_jax.models.flamingo import FlamingoConfig

NEVER = -1e9  # a score that nothing real has


@dataclasses.dataclass(frozen=True)
class Beams:
  """How to search; transformers' `generate` means the same by the last two."""

  width: int = 3
  length_penalty: float = 1.0  # a score is the log-likelihood over the length to this power; above 0: longer ones win
  early_stopping: bool = False  # end a row with `width` finished beams, whatever the others could become

  def __post_init__(self):
    """Raises UserError for a width that is not positive, and for a penalty that is not a number."""
    if self.width < 1:
      raise UserError(f"The width of a beam search is {self.width}; it is at least 1.")
    if not np.isfinite(self.length_penalty):
      raise UserError(f"length_penalty is {self.length_penalty}; it is a finite number.")


@flax.struct.dataclass
class Found:
  """The best continuations of each row, best first.

  Attributes:
    tokens: int32 [B, W, T]; zeros behind.
    lengths: int32 [B, W], without the stop token.
    scores: float32 [B, W], log-likelihoods, the stop token's included, over lengths to the power of the penalty; below
      NEVER / 2 where fewer than W were found.
  """

  tokens: Int[Array, "B W T"]
  lengths: Int[Array, "B W"]
  scores: Float[Array, "B W"]

  def best(self) -> Continuations:
    """The first of each row."""
    return Continuations(self.tokens[:, 0], self.lengths[:, 0])


def search(
  config: FlamingoConfig,
  weights: Weights,
  cache: Cache,
  *,
  new_tokens: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...] = (),
  beams: Beams = Beams(),
) -> Found:
  """Searches continuations of each row of a cache. Beams share what is kept of their prompt and of its media.

  Args:
    config: of the model.
    weights: of `unroll`.
    cache: of the prompts.
    new_tokens: how many to write at most; a beam of that length counts as finished.
    stop: tokens that end a beam.
    forbidden: tokens never written, such as `<image>`.
    beams: how to search.

  Raises:
    UserError: `new_tokens` is below 1 or does not fit the model's context, or the vocabulary is too small.
  """
  check_writing(config, cache, new_tokens)
  if kept_for(beams.width, stop) > cache.logits.shape[1]:
    raise UserError(f"A beam search of width {beams.width} needs {kept_for(beams.width, stop)} tokens to choose from.")
  shape = (bucket(new_tokens), stop, forbidden, beams.width, beams.early_stopping)
  return searched(config, shape, weights, cache, new_tokens, beams.length_penalty)


@functools.partial(jax.jit, static_argnums=(0, 1))
def searched(config: FlamingoConfig, shape: tuple, weights: Weights, cache: Cache, limit: Array, penalty: Array):
  capacity, stop, forbidden, width, early = shape
  cache = cache.repeated(width)

  def read(written, tokens, rows):
    return step(config, weights, cache, taken(written, rows), tokens)

  start = Search.start(cache.logits.reshape(-1, width, cache.logits.shape[1]), capacity)
  rules = Rules(stop, forbidden, early, limit, penalty)
  return run(read, room_for(cache, capacity), start, rules)[0]


# The search itself, which knows tokens and logits but no model.


@dataclasses.dataclass(frozen=True)
class Rules:
  """What ends a beam and a search; fields as in `search` and Beams."""

  stop: tuple[int, ...]
  forbidden: tuple[int, ...]
  early_stopping: bool
  limit: int | Array
  length_penalty: float | Array


@flax.struct.dataclass
class Search:
  """Where a search stands.

  Attributes:
    logits: float32 [B, W, vocabulary] of the next token of each running beam.
    count: int32, tokens of each running beam.
    tokens: int32 [B, W, T] of the running beams.
    scores: float32 [B, W], their log-likelihoods.
    done_tokens: int32 [B, W, T] of the best finished beams.
    done_scores: float32 [B, W], with the length penalty.
    done: bool [B, W], which of these are there.
    hopeful: bool [B], rows where a running beam may yet beat a finished one.
    more: whether there is anything left to do.
  """

  logits: Float[Array, "B W vocabulary"]
  count: Int[Array, ""]
  tokens: Int[Array, "B W T"]
  scores: Float[Array, "B W"]
  done_tokens: Int[Array, "B W T"]
  done_scores: Float[Array, "B W"]
  done: Bool[Array, "B W"]
  hopeful: Bool[Array, " B"]
  more: Bool[Array, ""]

  @classmethod
  def start(cls, logits: Float[Array, "B W vocabulary"], capacity: int) -> "Search":
    """Of W equal beams, of which only the first counts; else all W would find the same."""
    shape = logits.shape[:2]
    tokens = jnp.zeros((*shape, capacity), jnp.int32)
    never = jnp.full(shape, NEVER, jnp.float32)
    nothing = jnp.zeros(shape, bool)
    hopeful, zero = jnp.ones(shape[0], bool), jnp.zeros((), jnp.int32)
    return cls(logits, zero, tokens, never.at[:, 0].set(0.0), tokens, never, nothing, hopeful, jnp.ones((), bool))


def run(
  read: Callable[[Any, Array, Array], tuple[Any, Float[Array, "rows vocabulary"]]],
  state: Any,
  start: Search,
  rules: Rules,
) -> tuple[Found, Any]:
  """Searches until nothing better can come; also gives the last state.

  Args:
    read: takes a state, the next token int32 [B * W] of each beam, and which row of the state each beam continues;
      gives the new state, and the logits after it.
    state: of B * W rows.
    start: with the first logits.
    rules: what ends it.
  """

  def further(carry):
    search, rows, state = carry
    state, logits = read(state, search.tokens[:, :, search.count - 1].reshape(-1), rows)
    return (*advance(dataclasses.replace(search, logits=logits.reshape(search.logits.shape)), rules), state)

  carry = (*advance(start, rules), state)
  search, _, state = jax.lax.while_loop(lambda carry: carry[0].more, further, carry)
  rows, width, capacity = search.done_tokens.shape
  cut = ended(search.done_tokens.reshape(rows * width, capacity), jnp.asarray(rules.limit), rules.stop)
  tokens, lengths = cut.tokens.reshape(search.done_tokens.shape), cut.lengths.reshape(rows, width)
  return Found(tokens, lengths, search.done_scores), state


def kept_for(width: int, stop: tuple[int, ...]) -> int:
  """How many candidates are looked at, so that `width` go on even if all others end."""
  return max(2, 1 + len(stop)) * width


def advance(search: Search, rules: Rules) -> tuple[Search, Int[Array, " rows"]]:
  """One more token for every beam; also which row, of B * W, each beam continues.

  The rules are transformers': of the best candidates, those that end enter the finished beams if they are among the
  first W, and the best W of the others go on. A row without hope gets no further finished beam.
  """
  (rows, width, size), count = search.logits.shape, search.count + 1
  likelihoods = without(jax.nn.log_softmax(search.logits, axis=-1), rules.forbidden) + search.scores[:, :, None]
  scores, places = jax.lax.top_k(likelihoods.reshape(rows, -1), kept_for(width, rules.stop))
  parents, new = places // size, places % size
  tokens = jnp.take_along_axis(search.tokens, parents[:, :, None], axis=1).at[:, :, search.count].set(new)
  ends = is_one_of(new, rules.stop) | (count >= rules.limit)
  running, chosen = jax.lax.top_k(scores + ends * NEVER, width)

  just_done = ends & (jnp.arange(scores.shape[1]) < width)
  closed = ~search.hopeful | (search.done.all(axis=1) & rules.early_stopping)
  final = scores / count.astype(jnp.float32) ** rules.length_penalty + (closed[:, None] + ~just_done * 1.0) * NEVER
  merged = jnp.concatenate([search.done_scores, final], axis=1)
  done_scores, best = jax.lax.top_k(merged, width)
  done = jnp.take_along_axis(jnp.concatenate([search.done, just_done], axis=1), best, axis=1)
  done_tokens = jnp.take_along_axis(jnp.concatenate([search.done_tokens, tokens], axis=1), best[:, :, None], axis=1)

  possible = running[:, 0] / count.astype(jnp.float32) ** rules.length_penalty
  worst = jnp.where(done, done_scores.min(axis=1, keepdims=True), NEVER).min(axis=1)
  hopeful = search.hopeful & (possible > worst)
  open_row = ~done.all() if rules.early_stopping else True
  return Search(
    logits=search.logits,
    count=count,
    tokens=jnp.take_along_axis(tokens, chosen[:, :, None], axis=1),
    scores=running,
    done_tokens=done_tokens,
    done_scores=done_scores,
    done=done,
    hopeful=hopeful,
    more=hopeful.any() & open_row & ~ends.all(),
  ), (jnp.arange(rows)[:, None] * width + jnp.take_along_axis(parents, chosen, axis=1)).reshape(-1)
