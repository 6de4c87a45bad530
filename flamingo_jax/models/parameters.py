"""Parameters as the whole project passes them: one flat dict, path -> array."""

import flax.linen as nn
import jax
from flax import traverse_util

Parameters = dict[str, jax.Array]


def nested(parameters: Parameters) -> dict:
  """What a Flax module's `apply` takes."""
  return {"params": traverse_util.unflatten_dict(parameters, sep="/")}


def flat(boxed: dict) -> Parameters:
  """What a Flax module's `init` gave, without the boxes that carry logical axes."""
  return traverse_util.flatten_dict(nn.unbox(boxed), sep="/")
