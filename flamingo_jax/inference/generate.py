"""Greedy continuation of interleaved prompts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.parameters import Parameters, nested


def generate(
  config: FlamingoConfig,
  parameters: Parameters,
  prompts: dict[str, np.ndarray],
  *,
  new_tokens: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...],
) -> list[list[int]]:
  """The most likely next token, again and again (paper, section 2.4 without its beam).

  Every token runs the whole model over the text again; the media are encoded and resampled once.

  Args:
    config: of the model.
    parameters: all of them, by path.
    prompts: a batch whose rows may differ in length; `segments` says where each ends.
    new_tokens: how many to write at most.
    stop: tokens that end a row; they are not returned.
    forbidden: tokens never written, such as `<image>`.

  Returns:
    The new tokens of each row.

  Raises:
    UserError: a prompt without a token.
  """
  lengths = (prompts["segments"] > 0).sum(axis=1)
  if lengths.min() == 0:
    raise UserError("The prompt is empty. Give text, an image, or both.")
  written = write(config, new_tokens, stop, forbidden)(parameters, prompts, lengths)
  rows = [list(row[length : length + new_tokens]) for row, length in zip(np.asarray(written), lengths, strict=True)]
  return [cut(row, stop) for row in rows]


@functools.lru_cache(maxsize=8)
def write(config: FlamingoConfig, new_tokens: int, stop: tuple[int, ...], forbidden: tuple[int, ...]):
  """The compiled loop; it ends early when every row has met a stop token."""
  model = Flamingo(config)
  allowed = np.zeros(config.language.vocabulary + config.language.extra_tokens, np.float32)
  allowed[list(forbidden)] = -np.inf

  def loop(parameters: Parameters, prompts: dict[str, jax.Array], lengths: jax.Array) -> jax.Array:
    rows = jnp.arange(len(lengths))
    latents = model.apply(nested(parameters), prompts["media"], prompts["media_mask"], method=Flamingo.see)
    batch = {name: prompts[name] for name in ("media_mask",)} | {
      name: jnp.pad(prompts[name], ((0, 0), (0, new_tokens))) for name in ("tokens", "segments", "media_index")
    }
    last_media = prompts["media_index"][rows, lengths - 1]

    def more(carry):
      count, _, done = carry
      return (count < new_tokens) & ~done.all()

    def one(carry):
      count, batch, done = carry
      logits = model.apply(nested(parameters), batch, latents, method=Flamingo.read)
      at = lengths + count
      token = (logits[rows, at - 1] + allowed).argmax(axis=-1).astype(jnp.int32)
      batch = batch | {
        "tokens": batch["tokens"].at[rows, at].set(token),
        "segments": batch["segments"].at[rows, at].set(1),
        "media_index": batch["media_index"].at[rows, at].set(last_media),
      }
      return count + 1, batch, done | jnp.isin(token, jnp.asarray(stop))

    start = (jnp.zeros((), jnp.int32), batch, jnp.zeros(len(lengths), bool))
    return jax.lax.while_loop(more, one, start)[1]["tokens"]

  return jax.jit(loop)


def cut(tokens: list[int], stop: tuple[int, ...]) -> list[int]:
  """What stands before the first stop token."""
  ends = [place for place, token in enumerate(tokens) if token in stop]
  return tokens[: ends[0]] if ends else tokens
