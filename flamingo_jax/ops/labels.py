"""Which tokens are learnt, as weights of predicting them; NumPy, for pipelines and comparisons alike."""

import numpy as np
from jaxtyping import Bool, Float, Int


def text_weights(marker: Bool[np.ndarray, "... L"], present: Bool[np.ndarray, "... L"]) -> Float[np.ndarray, "... L"]:
  """All that is present but media markers (paper, equation 1)."""
  return (present & ~marker).astype(np.float32)


def chunk_weights(
  tokens: Int[np.ndarray, "... L"], present: Bool[np.ndarray, "... L"], *, image: int, end_of_chunk: int
) -> Float[np.ndarray, "... L"]:
  """OpenFlamingo's choice for interleaved pages: what stands between an image and the `<EOC>` after it, with that one.

  Text before the first image and between an `<EOC>` and the next image is not learnt.
  """
  marker = tokens == image
  places = np.arange(tokens.shape[-1])
  last_image = np.maximum.accumulate(np.where(marker, places, -1), axis=-1)
  ends = np.where(tokens == end_of_chunk, places, -1)
  last_end_before = np.concatenate(
    [np.full_like(ends[..., :1], -1), np.maximum.accumulate(ends, axis=-1)[..., :-1]], -1
  )
  inside = (last_image >= 0) & (last_end_before < last_image)
  return text_weights(marker, present) * inside
