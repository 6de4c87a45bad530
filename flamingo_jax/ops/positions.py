"""Where tokens stand: positions within a document, and rotary embeddings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def segment_positions(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
  """The position of each token within its document; it restarts at 0 where a new segment starts."""
  index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
  return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def rotate(x: Float[Array, "B L H K"], positions: Int[Array, "B L"], base: float) -> Float[Array, "B L H K"]:
  """Rotary position embedding (Su et al., 2021), first half paired with second half, angles in float32."""
  half = x.shape[-1] // 2
  frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  cosine, sine = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
  return rotated.astype(x.dtype)
