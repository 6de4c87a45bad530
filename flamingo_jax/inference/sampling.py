"""How the next token is chosen: the most likely one, or one drawn from the likely ones."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.errors import UserError

LARGEST_TOP_K = 2**31 - 1  # an int32 on the device


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw; temperature first, then the `top_k` most likely, then the fewest of those with `top_p` together."""

  temperature: float = 0.0  # logits are divided by it; 0: no draw, the most likely token
  top_k: int = 0  # 0: all
  top_p: float = 1.0

  def __post_init__(self):
    """Raises UserError for what is out of range, all at once."""
    faults = []
    if not 0 <= self.temperature < float("inf"):
      faults.append(f"temperature is {self.temperature}; it is at least 0, and 0 means the most likely token.")
    if not 0 <= self.top_k <= LARGEST_TOP_K:
      faults.append(f"top_k is {self.top_k}; it is from 1 to {LARGEST_TOP_K}, or 0 for all tokens.")
    if not 0 < self.top_p <= 1:
      faults.append(f"top_p is {self.top_p}; it is above 0 and at most 1.")
    if self.temperature == 0 and (self.top_k or self.top_p < 1):
      faults.append("temperature is 0, which always takes the most likely token; top_k and top_p need one above 0.")
    if faults:
      raise UserError("\n".join(faults))


GREEDY = Sampling()


def likely(logits: Float[Array, "B vocabulary"], sampling: dict[str, Array]) -> Float[Array, "B vocabulary"]:
  """Logits divided by the temperature, and -inf for the tokens that `top_k` and `top_p` rule out; ties stay in.

  Args:
    logits: float32; -inf where a token may not be written.
    sampling: the fields of a Sampling with a temperature above 0, as arrays or numbers.
  """
  logits = logits / sampling["temperature"]
  falling = -jnp.sort(-logits, axis=-1)
  size = logits.shape[-1]
  kept = jnp.where(sampling["top_k"] > 0, sampling["top_k"], size)
  falling = jnp.where(jnp.arange(size) < kept, falling, -jnp.inf)
  shares = jax.nn.softmax(falling, axis=-1)
  before = jnp.cumsum(shares, axis=-1) - shares  # of the tokens that are more likely
  inside = (before < sampling["top_p"]) & (falling > -jnp.inf)
  lowest = jnp.where(inside, falling, jnp.inf).min(axis=-1, keepdims=True)
  return jnp.where(logits >= lowest, logits, -jnp.inf)


def draw(
  logits: Float[Array, "B vocabulary"], sampling: dict[str, Array], key: Array, count: Int[Array, ""]
) -> Int[Array, " B"]:
  """A token of each row. What a row draws depends on the key, its place and how many it has drawn, on no other row."""
  rows = jnp.arange(logits.shape[0])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, count), rows)
  return jax.vmap(jax.random.categorical)(keys, likely(logits, sampling)).astype(jnp.int32)
