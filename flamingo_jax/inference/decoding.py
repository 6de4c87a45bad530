"""Writing after a cache, token by token: in one compiled loop, or so that each token can be read when it is there."""

import dataclasses
import functools
from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.inference.cache import Cache, Written, room_for
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
  settings = check_drawing(config, cache, new_tokens, sampling, key)
  return continued(config, bucket(new_tokens), stop, forbidden, weights, cache, new_tokens, settings, key)


def stream(
  config: FlamingoConfig,
  weights: Weights,
  cache: Cache,
  *,
  new_tokens: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...] = (),
  sampling: Sampling = GREEDY,
  key: Array | None = None,
) -> Iterator[Continuations]:
  """What `decode` writes, as far as it has come: after the first token, the second, and so on to the whole.

  Arguments and faults are those of `decode`, whose steps these are; each token costs a call of its own.
  """
  settings = check_drawing(config, cache, new_tokens, sampling, key)
  draft = first_draft(bucket(new_tokens), stop, forbidden, cache, settings, key)
  yield so_far(draft.tokens, draft.count, stop)
  while draft.count < new_tokens and not draft.done.all():
    draft = next_draft(config, stop, forbidden, weights, cache, draft, settings, key)
    yield so_far(draft.tokens, draft.count, stop)


def check_drawing(
  config: FlamingoConfig, cache: Cache, new_tokens: int, sampling: Sampling, key: Array | None
) -> dict[str, float] | None:
  """The settings of draws; None: there are none. Raises UserError as `decode` does."""
  check_writing(config, cache, new_tokens)
  if sampling.temperature and key is None:
    raise UserError(f"temperature is {sampling.temperature}: drawing needs a key.")
  return dataclasses.asdict(sampling) if sampling.temperature else None


def check_writing(config: FlamingoConfig, cache: Cache, new_tokens: int) -> None:
  """Raises UserError for what `decode` says of `new_tokens`."""
  if new_tokens < 1:
    raise UserError(f"new_tokens is {new_tokens}; it is at least 1.")
  check_context(config.language, cache, np.full(cache.rows, new_tokens - 1))  # the last is never read


@flax.struct.dataclass
class Draft:
  """How far writing has come.

  Attributes:
    count: int32, tokens of each row, one at least.
    done: bool [B], rows that have a stop token.
    last: int32 [B], the newest token of each row, which is not read yet.
    tokens: int32 [B, T], all of them.
    written: the others, read.
  """

  count: Int[Array, ""]
  done: Bool[Array, " B"]
  last: Int[Array, " B"]
  tokens: Int[Array, "B T"]
  written: Written


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
  draft = jax.lax.while_loop(
    lambda draft: (draft.count < limit) & ~draft.done.all(),
    lambda draft: longer(config, stop, forbidden, weights, cache, draft, settings, key),
    begun(capacity, stop, forbidden, cache, settings, key),
  )
  return ended(draft.tokens, draft.count, stop)


def begun(
  capacity: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...],
  cache: Cache,
  settings: dict[str, Array] | None,
  key: Array | None,
) -> Draft:
  """The first token of each row, in room for `capacity`; the rest as in `decode`."""
  token = choose(cache.logits, jnp.zeros((), jnp.int32), forbidden, settings, key)
  tokens = jnp.zeros((cache.rows, capacity), jnp.int32).at[:, 0].set(token)
  return Draft(jnp.ones((), jnp.int32), is_one_of(token, stop), token, tokens, room_for(cache, capacity))


def longer(
  config: FlamingoConfig,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...],
  weights: Weights,
  cache: Cache,
  draft: Draft,
  settings: dict[str, Array] | None,
  key: Array | None,
) -> Draft:
  """One more token of each row."""
  written, logits = step(config, weights, cache, draft.written, draft.last)
  token = choose(logits, draft.count, forbidden, settings, key)
  tokens = draft.tokens.at[:, draft.count].set(token)
  return Draft(draft.count + 1, draft.done | is_one_of(token, stop), token, tokens, written)


def choose(
  logits: Float[Array, "B vocabulary"],
  count: Int[Array, ""],
  forbidden: tuple[int, ...],
  settings: dict[str, Array] | None,
  key: Array | None,
) -> Int[Array, " B"]:
  """The most likely token, or with settings one that is drawn."""
  allowed = without(logits, forbidden)
  return allowed.argmax(axis=-1).astype(jnp.int32) if settings is None else draw(allowed, settings, key, count)


def ended(tokens: Int[Array, "B T"], count: Array, stop: tuple[int, ...]) -> Continuations:
  """Rows cut before their first stop token, or after `count` tokens; every host has all of them."""
  places = jnp.arange(tokens.shape[1])
  ends = jnp.where(is_one_of(tokens, stop) & (places < count), places, count)
  lengths = ends.min(axis=1).astype(jnp.int32)
  cut = jnp.where(places < lengths[:, None], tokens, 0)
  return Continuations(constrain(cut, None, None), constrain(lengths, None))


# The steps of `stream`, each compiled for itself.
first_draft = jax.jit(begun, static_argnums=(0, 1, 2))
next_draft = jax.jit(longer, static_argnums=(0, 1, 2), donate_argnums=5)
so_far = jax.jit(ended, static_argnums=2)


def is_one_of(tokens: Array, some: tuple[int, ...]) -> Array:
  return jnp.isin(tokens, jnp.asarray(some, jnp.int32))


def without(scores: Float[Array, "... vocabulary"], forbidden: tuple[int, ...]) -> Float[Array, "... vocabulary"]:
  """-inf for tokens that may not be written."""
  return scores.at[..., np.asarray(forbidden, np.int32)].set(-jnp.inf) if forbidden else scores
