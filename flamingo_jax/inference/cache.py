"""What is kept of text and media that were read, so that no token is read twice."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.ops.attention import KeyValue


@flax.struct.dataclass
class TextPart:
  """A run of text. Its rows b divide those of the cache: B / b rows of the cache, one after another, share a row.

  Attributes:
    layers: keys and values [b, G, S, K] of every language layer.
    positions: int32 [b, S]; -1 where there is no token.
  """

  layers: tuple[KeyValue, ...]
  positions: Int[Array, "b S"]


@flax.struct.dataclass
class MediaPart:
  """Latents that later tokens may read; rows are shared as those of text.

  Attributes:
    layers: keys and values [b, H, M, K] of every gated layer.
    seen: bool [b, M], the latents that the next token sees.
  """

  layers: tuple[KeyValue, ...]
  seen: Bool[Array, "b M"]


@flax.struct.dataclass
class Cache:
  """All that decoding needs of what came before. A value: nothing changes it, and any number of calls may read it.

  Tokens see one medium, so that only the last one of each row is kept, R latents, whatever the number of shots. With
  `previous_media` all are.

  Attributes:
    text: parts in the order they were read.
    media: none before the first medium; one; or, with `previous_media`, one for each call that brought media.
    length: int32 [B], tokens of each row.
    logits: float32 [B, vocabulary] of the token after them.
  """

  text: tuple[TextPart, ...]
  media: tuple[MediaPart, ...]
  length: Int[Array, " B"]
  logits: Float[Array, "B vocabulary"]

  @property
  def rows(self) -> int:
    """B."""
    return self.length.shape[0]

  def repeated(self, times: int) -> "Cache":
    """Each row so many times, one after another; keys and values are shared, not copied."""
    return dataclasses.replace(
      self, length=jnp.repeat(self.length, times, axis=0), logits=jnp.repeat(self.logits, times, axis=0)
    )


def empty_cache(vocabulary: int) -> Cache:
  """Before any text: one row, which any number of rows share."""
  return Cache((), (), jnp.zeros(1, jnp.int32), jnp.zeros((1, vocabulary), jnp.float32))


@flax.struct.dataclass
class Written:
  """Tokens being written after a cache, in room that was made for all of them.

  Attributes:
    layers: keys and values [B, G, T, K] of every language layer.
    positions: int32 [B, T]; -1 where nothing is written yet.
    count: int32, how many have been read back.
  """

  layers: tuple[KeyValue, ...]
  positions: Int[Array, "B T"]
  count: Int[Array, ""]


def room_for(cache: Cache, tokens: int) -> Written:
  """Room for so many tokens of each row of a cache that has text."""

  def room(kept: Array) -> Array:
    return jnp.zeros((cache.rows, kept.shape[1], tokens, kept.shape[3]), kept.dtype)

  positions = jnp.full((cache.rows, tokens), -1, jnp.int32)
  return Written(jax.tree.map(room, cache.text[0].layers), positions, jnp.zeros((), jnp.int32))


def taken(written: Written, rows: Int[Array, " B"]) -> Written:
  """Row rows[r] in the place of row r, as a beam search orders them."""
  layers, positions = jax.tree.map(lambda array: array[rows], (written.layers, written.positions))
  return dataclasses.replace(written, layers=layers, positions=positions)
