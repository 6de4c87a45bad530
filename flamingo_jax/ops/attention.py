"""The one attention function of the project."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
  query: Float[Array, "B L H K"],
  key: Float[Array, "B S G K"],
  value: Float[Array, "B S G K"],
  mask: Bool[Array, "B L S"] | None = None,
  bias: Float[Array, "B H L S"] | None = None,
) -> Float[Array, "B L H K"]:
  """Scaled dot-product attention with a float32 softmax; G divides H (grouped queries).

  A query whose mask row is all False gets exactly zero. A softmax over a fully masked row is uniform over every key,
  which would let text before the first image see all images. `bias` is added to the scaled scores.
  """
  if mask is None:
    return jax.nn.dot_product_attention(query, key, value, bias)
  attended = jax.nn.dot_product_attention(query, key, value, bias, mask=mask[:, None])
  return jnp.where(mask.any(axis=-1)[:, :, None, None], attended, 0)


def causal_mask(segments: Array) -> Array:
  """Which positions see which in self-attention: [B, L] int segments (0: padding) to bool [B, L, L]."""
  length = segments.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  same = segments[:, :, None] == segments[:, None, :]
  return causal & same & (segments > 0)[:, :, None]


def media_mask(media_index: Array, media_exists: Array, latents: int, *, previous: bool = False) -> Array:
  """Which latents each token may read: its own medium's, if that medium exists.

  Args:
    media_index: int32 [B, L], the media slot of each token; -1: none.
    media_exists: bool [B, N].
    latents: R, the number of latents of one medium.
    previous: whether the media in the slots before its own may be read too.

  Returns:
    bool [B, L, N * R].
  """
  slots = jnp.arange(media_exists.shape[1])
  own = media_index[:, :, None]
  seen = slots <= own if previous else slots == own
  return jnp.repeat(seen & media_exists[:, None, :], latents, axis=-1)
