"""How likely given continuations are: ranked answers of close-ended tasks (paper, section 4)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flamingo_jax.errors import UserError
from flamingo_jax.inference.cache import Cache
from flamingo_jax.inference.forward import Text, language_tables, next_logits, read
from flamingo_jax.inference.prefill import bucket, check_context
from flamingo_jax.inference.weights import Weights
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.ops.sharding import constrain
from flamingo_jax.ops.vocabulary import log_likelihoods

Options = Sequence[Sequence[int]]  # token ids of each


def score_options(
  config: FlamingoConfig, weights: Weights, cache: Cache, options: Sequence[Options]
) -> list[np.ndarray]:
  """log p(option | prompt) of every option; what the prompts hold is read from the cache by all of their options.

  Args:
    config: of the model.
    weights: of `unroll`.
    cache: of the prompts; a row of the cache may serve several rows of options, as in `extend`.
    options: a row for each prompt, of one or more options; both rows and options may differ in length.

  Returns:
    Float32 of each row, one number for each of its options: the sum over its tokens.

  Raises:
    UserError: a row without options, an option without a token, one that is longer than the model's context, or rows
      that those of the cache do not divide.
  """
  if not len(options) or len(options) % cache.rows:
    raise UserError(f"There are options for {len(options)} prompts after a cache of {cache.rows} rows.")
  for row, own in enumerate(options):
    if not len(own) or not all(len(option) for option in own):
      raise UserError(f"Prompt {row} has no options, or one without a token.")
  most = max(len(own) for own in options)
  longest = max(len(option) for own in options for option in own)
  tokens = np.zeros((len(options), most, bucket(longest)), np.int32)
  present = np.zeros(tokens.shape, bool)
  for row, own in enumerate(options):
    for place, option in enumerate(own):
      tokens[row, place, : len(option)], present[row, place, : len(option)] = option, True
    present[row, len(own) :, 0] = True  # what no option fills is read as one token, and left out below
  check_context(config.language, cache, present.sum(axis=-1).max(axis=1) - 1)
  scores = np.asarray(
    scored(config, weights, cache, *(array.reshape(-1, tokens.shape[2]) for array in (tokens, present)))
  )
  return [row[: len(own)] for row, own in zip(scores.reshape(len(options), most), options, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def scored(
  config: FlamingoConfig, weights: Weights, cache: Cache, tokens: Array, present: Array
) -> Float[Array, " rows"]:
  """Sums of log-likelihoods of the tokens that are present, int32 and bool [rows, L]."""
  first = jnp.repeat(jax.nn.log_softmax(cache.logits, axis=-1), len(tokens) // cache.rows, axis=0)
  first = jnp.take_along_axis(first, tokens[:, :1], axis=1)[:, 0]
  text = dict(tokens=tokens, segments=present.astype(jnp.int32), media_index=jnp.full(tokens.shape, -1))
  states = read(config, weights, cache, text).states

  def others(decoder):
    return log_likelihoods(decoder.norm(states)[:, :-1], tokens[:, 1:], decoder.unembedding_tables())

  rest = (language_tables(config, weights, others) * present[:, 1:]).sum(axis=1)
  return constrain(first + rest, None)  # read by all hosts


@functools.partial(jax.jit, static_argnums=0)
def logits_after(config: FlamingoConfig, weights: Weights, cache: Cache, text: Text) -> Float[Array, "B L vocabulary"]:
  """Float32 logits after every token of a text that follows a cache; for vocabularies that fit in memory so often."""
  return next_logits(config, weights, read(config, weights, cache, text).states)
