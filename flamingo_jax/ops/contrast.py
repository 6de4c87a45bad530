"""Sums over all pairs of a batch's queries and keys, in blocks: the [B, B] scores never exist whole.

Each device keeps its own queries, and the keys go round the devices of the mesh: after as many turns as there are
devices all have met, and the keys are at home again with what was summed for them on the way. A device holds its own
rows, one visiting part of the keys, and one block of scores, however many devices there are. The backward pass goes
round once more and computes the scores again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.ops.sharding import ACTIVATIONS

CHUNK = 512  # keys whose scores exist at one time
LOWEST = float(jnp.finfo(jnp.float32).min)
NEVER = -1e9  # the score of what is not offered

Step = Callable[[Any, Any], tuple[Any, Any]]


def logsumexps(
  queries: Float[Array, "B E"], keys: Float[Array, "B E"], offered: Bool[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"], Int[Array, " B"]]:
  """Of the scores queries x keys^T, in float32: each query's over the keys, each key's over the queries.

  Args:
    queries: float32.
    keys: float32.
    offered: the rows that count, as keys and as queries; to the others nothing is summed over.

  Returns:
    The log-sum-exp of each row of the scores, that of each column, and which key each query likes best, the first of
    equals.
  """
  return _logsumexps(queries, keys, offered)


def softplus_sums(
  queries: Float[Array, "B E"], keys: Float[Array, "B E"], bias: Float[Array, ""], offered: Bool[Array, " B"]
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
  """Each query's sum of softplus(score + bias) over the keys that are offered, and which key it likes best."""
  return _softplus_sums(queries, keys, bias, offered)


# The softmax's sums


@jax.custom_vjp
def _logsumexps(queries, keys, offered):
  return _on_all_devices(_logsumexps_here, queries, keys, offered, jnp.arange(len(keys)))


def _logsumexps_forward(queries, keys, offered):
  rows, columns, best = _logsumexps(queries, keys, offered)
  return (rows, columns, best), (queries, keys, offered, rows, columns)


def _logsumexps_backward(kept, back):
  toward_rows, toward_columns, _ = back
  return *_on_all_devices(_logsumexps_back_here, *kept, toward_rows, toward_columns), None


_logsumexps.defvjp(_logsumexps_forward, _logsumexps_backward)


def _logsumexps_here(turn, queries, keys, offered, places):
  def meet(home, visit):
    rows, best = home
    keys, there, places, columns = visit
    scores = _scores(queries, keys)
    by_row = jnp.where(there[None, :], scores, NEVER)
    by_column = jnp.where(offered[:, None], scores, NEVER)
    return (_added(rows, by_row, axis=1), _better(best, by_row, places)), (
      keys,
      there,
      places,
      _added(columns, by_column, axis=0),
    )

  home = _nothing(len(queries)), _nobody(len(queries))
  (rows, best), visit = _all_around(turn, meet, home, (keys, offered, places, _nothing(len(keys))))
  return _finished(rows), _finished(visit[-1]), best[1]


def _logsumexps_back_here(turn, queries, keys, offered, rows, columns, toward_rows, toward_columns):
  def meet(gradient, visit):
    keys, there, columns, toward_columns, toward_keys = visit
    scores = _scores(queries, keys)
    shares = _shares(scores, there[None, :], rows[:, None]) * toward_rows[:, None]
    shares += _shares(scores, offered[:, None], columns[None, :]) * toward_columns[None, :]
    return gradient + _product("ij,je->ie", shares, keys), (
      keys,
      there,
      columns,
      toward_columns,
      toward_keys + _product("ij,ie->je", shares, queries),
    )

  visit = (keys, offered, columns, toward_columns, jnp.zeros_like(keys))
  gradient, visit = _all_around(turn, meet, jnp.zeros_like(queries), visit)
  return gradient, visit[-1]


def _shares(scores, there, sums):
  return jnp.where(there, jnp.exp(jnp.where(there, scores, NEVER) - sums), 0)


def _nothing(count: int):
  """The highest value so far, and the sum of exponentials below it."""
  return jnp.full(count, LOWEST), jnp.zeros(count)


def _added(sums, scores, axis: int):
  highest, total = sums
  new = jnp.maximum(highest, scores.max(axis=axis))
  return new, total * jnp.exp(highest - new) + jnp.exp(scores - jnp.expand_dims(new, axis)).sum(axis=axis)


def _finished(sums):
  highest, total = sums
  return highest + jnp.log(total)


# The sigmoid's


@jax.custom_vjp
def _softplus_sums(queries, keys, bias, offered):
  biases = jnp.broadcast_to(bias, len(queries))
  return _on_all_devices(_softplus_sums_here, queries, keys, biases, offered, jnp.arange(len(keys)))


def _softplus_sums_forward(queries, keys, bias, offered):
  return _softplus_sums(queries, keys, bias, offered), (queries, keys, bias, offered)


def _softplus_sums_backward(kept, back):
  queries, keys, bias, offered = kept
  biases = jnp.broadcast_to(bias, len(queries))
  *found, of_bias = _on_all_devices(_softplus_back_here, queries, keys, biases, offered, back[0])
  return *found, of_bias.sum(), None


_softplus_sums.defvjp(_softplus_sums_forward, _softplus_sums_backward)


def _softplus_sums_here(turn, queries, keys, biases, offered, places):
  def meet(home, visit):
    sums, best = home
    keys, there, places = visit
    scores = _scores(queries, keys)
    more = jnp.where(there[None, :], jax.nn.softplus(scores + biases[:, None]), 0).sum(axis=1)
    return (sums + more, _better(best, jnp.where(there[None, :], scores, NEVER), places)), visit

  home = jnp.zeros(len(queries)), _nobody(len(queries))
  (sums, best), _ = _all_around(turn, meet, home, (keys, offered, places))
  return sums, best[1]


def _softplus_back_here(turn, queries, keys, biases, offered, toward):
  def meet(home, visit):
    gradient, of_bias = home
    keys, there, toward_keys = visit
    slopes = jax.nn.sigmoid(_scores(queries, keys) + biases[:, None]) * toward[:, None]
    slopes = jnp.where(there[None, :], slopes, 0)
    home = gradient + _product("ij,je->ie", slopes, keys), of_bias + slopes.sum(axis=1)
    return home, (keys, there, toward_keys + _product("ij,ie->je", slopes, queries))

  home = jnp.zeros_like(queries), jnp.zeros(len(queries))
  (gradient, of_bias), visit = _all_around(turn, meet, home, (keys, offered, jnp.zeros_like(keys)))
  return gradient, visit[-1], of_bias


# Blocks and turns


def _product(form: str, a, b):
  """In full float32, also where a device would rather round to bfloat16 first: scores go into an exponential."""
  return jnp.einsum(form, a, b, precision=jax.lax.Precision.HIGHEST)


_scores = functools.partial(_product, "ie,je->ij")


def _nobody(count: int):
  """The best score so far, and its key."""
  return jnp.full(count, LOWEST), jnp.full(count, jnp.iinfo(jnp.int32).max)


def _better(best, scores, places):
  """The first of equals whatever the order in which keys come: a batch may hold one caption twice."""
  highest, place = best
  here = scores.max(axis=1)
  at = jnp.where(scores == here[:, None], places[None, :], jnp.iinfo(jnp.int32).max).min(axis=1)
  at = jnp.where(here == highest, jnp.minimum(place, at), at)
  return jnp.maximum(highest, here), jnp.where(here >= highest, at, place)


def _on_all_devices(function, *arrays):
  """function(turn, *arrays) on each device's rows; `turn` hands arrays on to the next device."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = ACTIVATIONS["batch"]
  sizes = {} if mesh.empty else dict(mesh.shape)
  parts = 1 if mesh.empty else sizes[axes[0]] * sizes[axes[1]]
  if parts == 1 or len(arrays[0]) % parts:
    return function((lambda tree: tree, 1), *arrays)
  ring = [(device, (device + 1) % parts) for device in range(parts)]
  turn = functools.partial(jax.lax.ppermute, axis_name=axes, perm=ring)
  rows = PartitionSpec(axes)
  return jax.shard_map(functools.partial(function, (turn, parts)), in_specs=rows, out_specs=rows, check_vma=False)(
    *arrays
  )


def _all_around(turn: tuple[Callable, int], meet: Step, home, visit):
  """Meets every part of the visitors of every device, in chunks, and gives what stayed and what came home again.

  Args:
    turn: from `_on_all_devices`, and the number of devices.
    meet: (home, a chunk of visitors) -> both after that; padding is of zeros, and not offered.
    home: what stays.
    visit: arrays with the visitors' rows first.
  """
  hand_on, parts = turn
  count = len(jax.tree.leaves(visit)[0])
  size = min(CHUNK, count)

  def cut(array):
    padded = jnp.pad(array, ((0, -count % size), *((0, 0),) * (array.ndim - 1)))
    return padded.reshape(-1, size, *array.shape[1:])

  def one_turn(carry, _):
    home, visit = carry
    home, visit = jax.lax.scan(meet, home, visit)
    return (home, hand_on(visit)), None

  (home, visit), _ = jax.lax.scan(one_turn, (home, jax.tree.map(cut, visit)), length=parts)
  return home, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], visit)
