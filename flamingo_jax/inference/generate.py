"""Prompts to continuations in one call."""

import jax
import numpy as np

from flamingo_jax.inference.beam import Beams, search
from flamingo_jax.inference.decoding import decode
from flamingo_jax.inference.prefill import prefill
from flamingo_jax.inference.sampling import GREEDY, Sampling
from flamingo_jax.inference.weights import unroll
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters


def generate(
  config: FlamingoConfig,
  parameters: Parameters,
  prompts: dict[str, np.ndarray],
  *,
  new_tokens: int,
  stop: tuple[int, ...],
  forbidden: tuple[int, ...],
  how: Sampling | Beams = GREEDY,
  key: jax.Array | None = None,
) -> list[list[int]]:
  """Continues prompts once. For more than one call with the same parameters, `unroll` them and call the parts.

  Args:
    config: of the model.
    parameters: all of them, by path.
    prompts: a batch as `prefill` takes it.
    new_tokens: how many to write at most.
    stop: tokens that end a row; they are not returned.
    forbidden: tokens never written, such as `<image>`.
    how: each token by itself, or by beam search.
    key: for draws.

  Returns:
    The new tokens of each row.

  Raises:
    UserError: as `prefill`, `decode` and `search`.
  """
  weights = unroll(config, parameters)
  cache = prefill(config, weights, prompts)
  limits = dict(new_tokens=new_tokens, stop=stop, forbidden=forbidden)
  if isinstance(how, Beams):
    return search(config, weights, cache, beams=how, **limits).best().lists()
  return decode(config, weights, cache, sampling=how, key=key, **limits).lists()
