"""Where tokens stand: positions within a document, and the ways in which attention is told of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def segment_positions(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
  """The position of each token within its document; it restarts at 0 where a new segment starts."""
  index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
  return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def rotate(
  x: Float[Array, "B L H K"], positions: Int[Array, "B L"], base: float, share: float = 1.0
) -> Float[Array, "B L H K"]:
  """Rotary position embedding (Su et al., 2021), first half paired with second half, angles in float32.

  Only the first `share` of each head is rotated, rounded down (GPT-NeoX).
  """
  turned = int(x.shape[-1] * share)
  half = turned // 2
  frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  cosine, sine = jnp.cos(angles), jnp.sin(angles)
  first, second, rest = jnp.split(x.astype(jnp.float32), [half, turned], axis=-1)
  rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)
  return rotated.astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
  """How fast attention falls with distance, a head: float32 [H] (Press et al., 2022, section 3)."""
  power = 2 ** int(np.ceil(np.log2(heads)))
  slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
  if power != heads:  # every second slope of the next power of two, then the others
    slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
  return slopes.astype(np.float32)


def alibi_bias(positions: Int[Array, "B L"], heads: int) -> Float[Array, "B H L L"]:
  """What ALiBi adds to the scores: minus the distance to the key, times the head's slope."""
  return alibi(distances(positions, positions), heads)


def alibi(distance: Int[Array, "B L S"], heads: int) -> Float[Array, "B H L S"]:
  """The same for any queries and keys."""
  return -distance[:, None].astype(jnp.float32) * alibi_slopes(heads)[:, None, None]


def distances(positions: Int[Array, "B L"], of_keys: Int[Array, "b S"]) -> Int[Array, "B L S"]:
  """How far each query is behind each key; B / b rows of queries, one after another, read the same keys."""
  of_keys = jnp.repeat(of_keys, positions.shape[0] // of_keys.shape[0], axis=0)
  return positions[:, :, None] - of_keys[:, None, :]


def earlier(positions: Int[Array, "B L"], of_keys: Int[Array, "b S"]) -> Bool[Array, "B L S"]:
  """Which keys are there, and no later than the query; a position of -1 tells that there is none."""
  there = jnp.repeat(of_keys >= 0, positions.shape[0] // of_keys.shape[0], axis=0)
  return there[:, None, :] & (distances(positions, of_keys) >= 0)


def sinusoids(length: int, width: int) -> Float[Array, "L D"]:
  """Sines, then cosines, of positions 0 ... length - 1 (Vaswani et al., 2017, section 3.5)."""
  frequencies = 10_000.0 ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def by_distance(scores: Float[Array, "B H L T"]) -> Float[Array, "B H L L"]:
  """Scores of the distances 0 ... T - 1 to scores of the keys: key s of query l is l - s away. Later keys are left
  to the causal mask."""
  places = jnp.arange(scores.shape[2])
  distance = jnp.maximum(places[:, None] - places[None, :], 0)
  return jnp.take_along_axis(scores, jnp.broadcast_to(distance, (1, 1, *distance.shape)), axis=-1)
