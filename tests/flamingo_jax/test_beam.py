"""The search itself, on tables of likelihoods instead of a model, against one written in plain Python."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.inference.beam import Rules, Search, run

SIZE, ROWS, LIMIT = 6, 3, 4


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def found(logits, penalty, width: int, stop: tuple[int, ...], early: bool, forbidden: tuple[int, ...] = ()):
  """Searches with a language model that is a table [SIZE, SIZE]: the last two tokens' sum picks the row."""

  def read(state, tokens, rows):
    state = (state[rows] + tokens) % SIZE
    return state, logits[state]

  start = jnp.zeros(ROWS * width, jnp.int32) + jnp.repeat(jnp.arange(ROWS), width)
  first = logits[start].reshape(ROWS, width, SIZE)
  return run(read, start, Search.start(first, LIMIT + 2), Rules(stop, forbidden, early, LIMIT, penalty))[0]


def likelihood(logits: np.ndarray, row: int, tokens: tuple[int, ...]) -> float:
  state, total = row, 0.0
  for token in tokens:
    total += logits[state, token] - math.log(np.exp(logits[state]).sum())
    state = (state + token) % SIZE
  return total


def plainly(logits, penalty: float, width: int, stop: tuple[int, ...], early: bool, row: int) -> list[tuple]:
  """Beams as lists of tokens; each is scored from its first token on. [(tokens, score)], best first."""
  running, done = [()], []
  for length in range(1, LIMIT + 1):
    longer = [(*beam, token) for beam in running for token in range(SIZE)]
    longer.sort(key=lambda beam: -likelihood(logits, row, beam))
    ends = [beam[-1] in stop or length == LIMIT for beam in longer]
    kept = list(zip(longer, ends, strict=True))[: max(2, 1 + len(stop)) * width]
    done += [(beam, likelihood(logits, row, beam) / length**penalty) for beam, end in kept[:width] if end]
    done = sorted(done, key=lambda pair: -pair[1])[:width]
    running = [beam for beam, end in kept if not end][:width]
    if not running or (early and len(done) == width):
      break
    best = likelihood(logits, row, running[0]) / length**penalty
    if len(done) == width and best <= done[-1][1]:
      break
  return done


@pytest.mark.parametrize(("width", "stop", "early"), [(3, (5,), False), (3, (5, 1), True), (1, (5,), False)])
def test_the_search_is_one_in_plain_python(width, stop, early):
  ended = set()
  for seed, penalty in itertools.product(range(8), (1.0, 0.0, -1.0)):
    logits = np.random.default_rng(seed).normal(size=(SIZE, SIZE), scale=1.5)
    ours = jax.tree.map(np.asarray, found(jnp.asarray(logits, jnp.float32), penalty, width, stop, early))
    for row in range(ROWS):
      expected = plainly(logits, penalty, width, stop, early, row)
      ended |= {len(beam) for beam, _ in expected}
      real = [beam[:-1] if beam[-1] in stop else beam for beam, _ in expected]
      lengths = ours.lengths[row, : len(expected)]
      assert [tuple(t[:n]) for t, n in zip(ours.tokens[row], lengths, strict=False)] == real
      np.testing.assert_allclose(ours.scores[row, : len(expected)], [score for _, score in expected], rtol=1e-4)
  assert len(ended) > 2


def test_a_wide_search_finds_the_best_of_all():
  """As wide as there are beginnings, it is an exhaustive one."""
  logits = np.random.default_rng(1).normal(size=(SIZE, SIZE), scale=2.0)
  ours = found(jnp.asarray(logits, jnp.float32), 0.0, SIZE**2, (), False)
  for row in range(ROWS):
    every = itertools.product(range(SIZE), repeat=LIMIT)
    best = max(every, key=lambda tokens: likelihood(logits, row, tokens))
    assert tuple(np.asarray(ours.best().tokens)[row, :LIMIT].tolist()) == best


def test_forbidden_tokens_are_in_no_beam():
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(SIZE, SIZE)), jnp.float32).at[:, 2].add(5.0)
  with_it, without_it = (np.asarray(found(logits, 1.0, 3, (5,), False, some).tokens) for some in ((), (2,)))
  assert (with_it == 2).any()
  assert not (without_it == 2).any()
