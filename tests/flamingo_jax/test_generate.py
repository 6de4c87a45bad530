import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.inference.generate import generate

NEW, LENGTH, ROWS = 5, 10, 3


@pytest.fixture(scope="module")
def prompts(make_batch):
  """Ragged rows, each with two media."""
  batch = make_batch(seed=4, rows=ROWS, length=LENGTH)
  assert len(set((batch["segments"] > 0).sum(axis=1))) > 1
  return {name: array for name, array in batch.items() if name != "loss_weights"}


def write(tiny, parameters, prompts, stop=(), forbidden=()) -> list[list[int]]:
  rows = generate(tiny, parameters, prompts, new_tokens=NEW, stop=stop, forbidden=forbidden)
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
