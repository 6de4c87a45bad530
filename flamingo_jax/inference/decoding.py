"""Writing after a cache, token by token, in one compiled loop."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.inference.cache import Cache, room_for
from flamingo_jax.inference.forward import step
from flamingo_jax.inference.prefill import bucket, check_context
from flamingo_jax.inference.sampling import GREEDY, Sampling, draw
from flamingo_jax.inference.weights import Weights
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.ops.sharding import constrain


@flax.struct.dataclass
class Continuations:
  """What was written after each row.

  Attributes:
    tokens: int32 [B, T]; zeros behind.
    lengths: int32 [B], without the stop token.
  """

  tokens: Int[Array, "B T"]
  lengths: Int[Array, " B"]

  def lists(self) -> list[list[int]]:
    """The tokens of each row."""
    tokens, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def decode(
  config: FlamingoConfig,
  weights: Weights,
  cache: Cache,
  *,
  new_tokens: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...] = (),
  sampling: Sampling = GREEDY,
  key: Array | None = None,
) -> Continuations:
  """Writes one continuation of each row of a cache; `cache.repeated(n)` gives n of each.

  Args:
    config: of the model.
    weights: of `unroll`.
    cache: of the prompts.
    new_tokens: how many to write at most.
    stop: tokens that end a row.
    forbidden: tokens never written, such as `<image>`.
    sampling: how each token is chosen.
    key: for the draws; greedy writing needs none.

  Raises:
    UserError: `new_tokens` is below 1, does not fit the model's context, or there is no key to draw with.
  """
  check_writing(config, cache, new_tokens)
  if sampling.temperature and key is None:
    raise UserError(f"temperature is {sampling.temperature}: drawing needs a key.")
  settings = dataclasses.asdict(sampling) if sampling.temperature else None
  capacity = bucket(new_tokens)
  return continued(config, capacity, stop, forbidden, weights, cache, new_tokens, settings, key)


def check_writing(config: FlamingoConfig, cache: Cache, new_tokens: int) -> None:
  """Raises UserError for what `decode` says of `new_tokens`."""
  if new_tokens < 1:
    raise UserError(f"new_tokens is {new_tokens}; it is at least 1.")
  check_context(config.language, cache, np.full(cache.rows, new_tokens - 1))  # the last is never read


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def continued(
  config: FlamingoConfig,
  capacity: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...],
  weights: Weights,
  cache: Cache,
  limit: Array,
  settings: dict[str, Array] | None,
  key: Array | None,
) -> Continuations:
  def choose(logits: Float[Array, "B vocabulary"], count: Array) -> Int[Array, " B"]:
    allowed = without(logits, forbidden)
    return allowed.argmax(axis=-1).astype(jnp.int32) if settings is None else draw(allowed, settings, key, count)

  def more(carry):
    count, done, *_ = carry
    return (count < limit) & ~done.all()

  def write(carry):
    count, done, token, tokens, written = carry
    written, logits = step(config, weights, cache, written, token)
    token = choose(logits, count)
    return count + 1, done | is_one_of(token, stop), token, tokens.at[:, count].set(token), written

  token = choose(cache.logits, jnp.zeros((), jnp.int32))
  tokens = jnp.zeros((cache.rows, capacity), jnp.int32).at[:, 0].set(token)
  start = (jnp.ones((), jnp.int32), is_one_of(token, stop), token, tokens, room_for(cache, capacity))
  count, _, _, tokens, _ = jax.lax.while_loop(more, write, start)
  return ended(tokens, count, stop)


def ended(tokens: Int[Array, "B T"], count: Array, stop: tuple[int, ...]) -> Continuations:
  """Rows cut before their first stop token, or after `count` tokens; every host has all of them."""
  places = jnp.arange(tokens.shape[1])
  ends = jnp.where(is_one_of(tokens, stop) & (places < count), places, count)
  lengths = ends.min(axis=1).astype(jnp.int32)
  cut = jnp.where(places < lengths[:, None], tokens, 0)
  return Continuations(constrain(cut, None, None), constrain(lengths, None))


def is_one_of(tokens: Array, some: tuple[int, ...]) -> Array:
  return jnp.isin(tokens, jnp.asarray(some, jnp.int32))


def without(scores: Float[Array, "... vocabulary"], forbidden: tuple[int, ...]) -> Float[Array, "... vocabulary"]:
  """-inf for tokens that may not be written."""
  return scores.at[..., np.asarray(forbidden, np.int32)].set(-jnp.inf) if forbidden else scores
