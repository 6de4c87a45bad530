"""Pixels as they arrive, and as a vision tower wants them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def normalize(
  pixels: UInt8[Array, "B H W 3"], mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Float[Array, "B H W 3"]:
  """(pixels / 255 - mean) / deviation of each colour, on the device: the host only ever moves bytes."""
  divisor = np.asarray(255 * np.asarray(deviation), np.float32)
  shift = np.asarray(np.asarray(mean) / np.asarray(deviation), np.float32)
  return pixels.astype(jnp.float32) / divisor - shift
