"""Parameters as decoding reads them: every layer for itself, kernels turned so that a token reads each once."""

from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util

from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.language.decoder import gated_layers, plan_groups
from flamingo_jax.models.parameters import Parameters


@flax.struct.dataclass
class Weights:
  """What `unroll` makes of a model's parameters; each dict is nested, as a Flax module takes it.

  Attributes:
    vision: of encoder and resampler.
    tables: of the language model: embeddings, positions, the last norm.
    layers: of each language layer.
    gated: of each gated layer.
  """

  vision: dict
  tables: dict
  layers: tuple[dict, ...]
  gated: tuple[dict, ...]


def unroll(config: FlamingoConfig, parameters: Parameters) -> Weights:
  """Takes the parameters of a whole model out of their stacks; on a mesh they stay cut as they were.

  Training scans over stacked layers. Decoding would copy each layer out of its stack for every token, which costs as
  much as multiplying with it. What the modules cast to the dtype of the computation is cast here, once.

  Args:
    config: of the model.
    parameters: all of them, by path; on the host or on devices. For a while both forms exist.
  """
  return jax.jit(split, static_argnums=0)(config, parameters)


def split(config: FlamingoConfig, parameters: Parameters) -> Weights:
  dtype = jnp.dtype(config.dtype)
  language = {path: array for path, array in parameters.items() if path.startswith("language/")}
  stacks = tuple(f"language/{part}/" for part in ("prefix", "groups", "tail"))
  return Weights(
    vision=tree({path: array for path, array in parameters.items() if path not in language}, ""),
    tables=tree(
      {path: cast(path, array, dtype) for path, array in language.items() if not path.startswith(stacks)}, "language/"
    ),
    layers=tuple(layer(language, *place, dtype) for place in layer_places(config)),
    gated=tuple(layer(language, *place, dtype) for place in gated_places(config)),
  )


def layer_places(config: FlamingoConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Below which path each language layer lies, and where in its stack."""
  plan = plan_groups(config.language.layers, config.cross_attention)
  yield from (("language/prefix/", (number,)) for number in range(plan.prefix))
  for group in range(plan.groups):
    yield from (("language/groups/layers/", (group, number)) for number in range(plan.group_layers))
  yield from (("language/tail/layers/", (number,)) for number in range(plan.tail or 0))


def gated_places(config: FlamingoConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
  """The same of the gated layers; one of a ragged tail is in no stack."""
  plan = plan_groups(config.language.layers, config.cross_attention)
  for number in range(len(gated_layers(config.language.layers, config.cross_attention))):
    if number < plan.groups:
      yield "language/groups/gated_cross_attention/", (number,)
    else:
      yield "language/tail/gated_cross_attention/", ()


def layer(language: Parameters, prefix: str, place: tuple[int, ...], dtype: jnp.dtype) -> dict:
  """One layer's parameters, cast and turned."""
  own = {path: array[place] for path, array in language.items() if path.startswith(prefix)}
  return tree(dict(turned(path, cast(path, array, dtype)) for path, array in own.items()), prefix)


def cast(path: str, array: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Kernels, biases of linear maps and tables; norms and gates are applied in their own dtype."""
  owner, _, name = path.rpartition("/")
  is_table = name.endswith("embeddings")
  return array.astype(dtype) if name == "kernel" or is_table or (name == "bias" and "norm" not in owner) else array


def turned(path: str, array: jax.Array) -> tuple[str, jax.Array]:
  """A kernel [inputs ..., outputs ...] with its outputs first, under the name that ops.layers.Linear knows."""
  owner, _, name = path.rpartition("/")
  if name != "kernel":
    return path, array
  inputs = array.ndim - 1 if owner.endswith("/output") else 1  # attention's output sums over heads and their width
  return f"{owner}/turned", array.transpose(*range(inputs, array.ndim), *range(inputs))


def tree(parameters: Parameters, prefix: str) -> dict:
  return traverse_util.unflatten_dict({path.removeprefix(prefix): array for path, array in parameters.items()}, sep="/")
