import jax
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.generate import generate
from flamingo_jax.inference.sampling import Sampling

NEW, LENGTH, ROWS = 5, 10, 3


@pytest.fixture(scope="module")
def prompts(make_batch):
  """Ragged rows, each with two media."""
  batch = make_batch(seed=4, rows=ROWS, length=LENGTH)
  assert len(set((batch["segments"] > 0).sum(axis=1))) > 1
  return {name: array for name, array in batch.items() if name != "loss_weights"}


def write(tiny, parameters, prompts, stop=(), forbidden=(), new_tokens=NEW, **how) -> list[list[int]]:
  rows = generate(tiny, parameters, prompts, new_tokens=new_tokens, stop=stop, forbidden=forbidden, **how)
  return [[int(token) for token in row] for row in rows]


@pytest.fixture(scope="module")
def plain(tiny, parameters, prompts, logits):
  """Greedy decoding in plain Python: a whole forward pass a token, one row at a time; forbidden tokens are skipped."""

  def one(batch: dict, row: int, forbidden: tuple[int, ...]) -> list[int]:
    length = int((batch["segments"][row] > 0).sum())
    text = {name: np.zeros((1, LENGTH + NEW), np.int32) for name in ("tokens", "segments", "media_index")}
    for name, array in text.items():
      array[0, :length] = batch[name][row, :length]
    own = text | {name: batch[name][row : row + 1] for name in ("media", "media_mask")}
    for at in range(length, length + NEW):
      order = np.argsort(-np.asarray(logits(parameters, own))[0, at - 1])
      own["tokens"][0, at] = next(token for token in order if token not in forbidden)
      own["segments"][0, at], own["media_index"][0, at] = 1, own["media_index"][0, at - 1]
    return own["tokens"][0, length : length + NEW].tolist()

  return lambda batch=prompts, forbidden=(): [one(batch, row, forbidden) for row in range(len(batch["tokens"]))]


@pytest.fixture(scope="module")
def greedy(tiny, parameters, prompts):
  return write(tiny, parameters, prompts)


def test_greedy_writing_is_a_plain_loop_over_whole_forward_passes(greedy, plain):
  assert greedy == plain()
  assert len({token for row in greedy for token in row}) > 3


def test_ragged_prompts_together_are_as_one_by_one(tiny, parameters, prompts, greedy):
  for row in range(ROWS):
    alone = {name: array[row : row + 1] for name, array in prompts.items()}
    assert write(tiny, parameters, alone) == [greedy[row]]


def test_padding_says_nothing(tiny, parameters, prompts, greedy):
  padding = prompts["segments"] == 0
  noise = prompts | {"tokens": np.where(padding, 7, prompts["tokens"])}
  assert (noise["tokens"] != prompts["tokens"]).any()
  assert write(tiny, parameters, noise) == greedy


def test_media_change_what_their_own_row_writes_and_no_other(tiny, parameters, prompts, greedy, plain):
  media = prompts["media"].copy()
  media[1] = 255 - media[1]
  other = write(tiny, parameters, prompts | {"media": media})
  assert [row == before for row, before in zip(other, greedy, strict=True)] == [True, False, True]
  assert other == plain(prompts | {"media": media})


def test_a_row_ends_before_its_stop_token_and_the_others_go_on(tiny, parameters, prompts, greedy):
  stop = (greedy[0][2], greedy[1][0])
  found = write(tiny, parameters, prompts, stop=stop)
  ends = [min([place for place, token in enumerate(row) if token in stop], default=NEW) for row in greedy]
  assert found == [row[:end] for row, end in zip(greedy, ends, strict=True)]
  assert ends[1] == 0 and max(ends) > 0


def test_a_forbidden_token_gives_way_to_the_next_most_likely(tiny, parameters, prompts, greedy, plain):
  forbidden = tuple(sorted({row[0] for row in greedy} | {greedy[0][1]}))
  found = write(tiny, parameters, prompts, forbidden=forbidden)
  assert not {token for row in found for token in row} & set(forbidden)
  assert found == plain(forbidden=forbidden)


def test_a_prompt_without_a_token_is_refused(tiny, parameters, prompts):
  segments = prompts["segments"].copy()
  segments[1] = 0
  with pytest.raises(UserError, match="The prompt is empty"):
    write(tiny, parameters, prompts | {"segments": segments})


@pytest.mark.parametrize("narrow", [dict(top_k=1), dict(top_p=1e-6)])
def test_a_draw_from_one_token_is_the_most_likely_one(tiny, parameters, prompts, greedy, narrow):
  key = jax.random.key(5)
  assert write(tiny, parameters, prompts, how=Sampling(temperature=3.0, **narrow), key=key) == greedy
  assert write(tiny, parameters, prompts, how=Sampling(temperature=3.0), key=key) != greedy


def test_the_seed_settles_what_is_drawn(tiny, parameters, prompts):
  def drawn(seed: int) -> list[list[int]]:
    return write(tiny, parameters, prompts, how=Sampling(temperature=2.0), key=jax.random.key(seed))

  assert drawn(0) == drawn(0) != drawn(1)


def test_a_single_beam_is_greedy_writing(tiny, parameters, prompts, greedy):
  assert write(tiny, parameters, prompts, how=Beams(1)) == greedy


def test_a_wide_search_finds_the_best_of_all_pairs(tiny, parameters, prompts, greedy, logits):
  vocabulary = tiny.language.vocabulary + tiny.language.extra_tokens
  limits = dict(new_tokens=2, forbidden=(greedy[1][1],))  # without it the best pairs are the greedy ones
  found = write(tiny, parameters, prompts, how=Beams(vocabulary // 2), **limits)
  best = []
  for row in range(ROWS):
    length = int((prompts["segments"][row] > 0).sum())
    text = {name: np.zeros((vocabulary, LENGTH + 1), np.int32) for name in ("tokens", "segments", "media_index")}
    for name, array in text.items():
      array[:, :length] = prompts[name][row, :length]
    text["tokens"][:, length], text["segments"][:, length] = np.arange(vocabulary), 1  # one row for each first token
    text["media_index"][:, length] = text["media_index"][:, length - 1]
    own = {name: np.repeat(prompts[name][row : row + 1], vocabulary, axis=0) for name in ("media", "media_mask")}
    scores = np.array(jax.nn.log_softmax(logits(parameters, text | own)))
    scores[:, :, limits["forbidden"]] = -np.inf
    pairs = scores[0, length - 1][:, None] + scores[:, length]
    best.append([int(token) for token in np.unravel_index(pairs.argmax(), pairs.shape)])
  assert found == best
  assert found != write(tiny, parameters, prompts, **limits)


def test_a_length_penalty_above_zero_favours_longer_rows(tiny, parameters, prompts, greedy):
  stop = tuple({row[1] for row in greedy})

  def lengths(penalty: float) -> list[int]:
    return [len(row) for row in write(tiny, parameters, prompts, stop=stop, how=Beams(3, length_penalty=penalty))]

  short, long = lengths(-8.0), lengths(8.0)
  assert all(few <= many for few, many in zip(short, long, strict=True))
  assert sum(short) < sum(long)
