import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import (
  EndOfChunk,
  Medium,
  Shot,
  Text,
  assemble,
  assemble_zero_shot,
  media_of,
  trimmed,
  with_shuffled_media,
  with_shuffled_shots,
  without_media,
  written,
)


def caption(number: int, text: str = "a cat") -> Shot:
  return Shot((Medium(f"{number}.jpg"), Text("Output:")), f" {text}")


def test_a_prompt_is_the_papers():
  """Figure 8, and the appendix on zero-shot evaluation."""
  shots = [caption(0, "A cat wearing sunglasses."), caption(1, "Elephants walking in the savanna.")]
  assert written(assemble(shots, caption(2))) == (
    "<image>Output: A cat wearing sunglasses.<EOC><image>Output: Elephants walking in the savanna.<EOC><image>Output:"
  )
  assert written(assemble_zero_shot(shots, caption(2))) == (
    "Output: A cat wearing sunglasses.<EOC>Output: Elephants walking in the savanna.<EOC><image>Output:"
  )


@given(st.lists(st.sampled_from(["<image>", "<EOC>", "\\", "a", " ", "<", "image>"]), min_size=1).map("".join))
def test_what_a_data_set_writes_is_never_a_marker(text):
  prompt = assemble([caption(0, text + "x")], caption(1))
  assert [type(piece) for piece in prompt] == [Medium, Text, EndOfChunk, Medium, Text]
  assert prompt[1] == Text(f"Output: {text}x")
  unmarked = re.sub(r"\\(\\|<image>|<EOC>)", " ", written(prompt))
  assert (unmarked.count("<image>"), unmarked.count("<EOC>")) == (2, 1)


def test_the_querys_answer_is_not_in_its_prompt():
  assert "secret" not in written(assemble([caption(0)], caption(1, "secret")))


def test_an_example_without_an_answer_is_no_shot():
  with pytest.raises(UserError, match="without an answer cannot be a shot: <image>Output:"):
    assemble([Shot(caption(0).given, "")], caption(1))


@pytest.mark.parametrize(
  ("generated", "expected"), [(" a cat Output: a dog", "a cat"), (" a cat ", "a cat"), ("Question: x", "")]
)
def test_answers_end_where_the_next_example_begins(generated, expected):
  assert trimmed(generated, ["Question:", "Output:"]) == expected


@given(st.lists(st.integers(0, 6), min_size=2, max_size=12), st.integers(0, 1000))
def test_shuffled_media_are_the_same_ones_elsewhere(numbers, seed):
  prompt = assemble(
    [caption(number, f"text {place}") for place, number in enumerate(numbers[:-1])], caption(numbers[-1])
  )
  before = media_of(prompt)
  most = max(numbers.count(number) for number in numbers)
  if 2 * most > len(numbers):
    with pytest.raises(UserError, match="cannot be shuffled"):
      with_shuffled_media(prompt, seed)
    return
  shuffled = with_shuffled_media(prompt, seed)
  after = media_of(shuffled)
  assert sorted(medium.path for medium in after) == sorted(medium.path for medium in before)
  assert all(one != other for one, other in zip(before, after, strict=True))
  assert without_media(shuffled) == without_media(prompt)
  assert shuffled == with_shuffled_media(prompt, seed)


def test_shuffled_media_come_out_in_many_ways():
  prompt = assemble([caption(number) for number in range(5)], caption(5))
  assert len({with_shuffled_media(prompt, seed) for seed in range(40)}) > 10


def test_shuffled_shots_are_whole_and_the_query_stays_last():
  shots = [caption(number, f"text {number}") for number in range(6)]
  prompt = assemble(shots, caption(9))
  shuffled = with_shuffled_shots(prompt, 3)
  assert shuffled[-2:] == prompt[-2:] and shuffled != prompt
  chunks = [shuffled[start : start + 3] for start in range(0, 18, 3)]
  assert sorted(map(written, chunks)) == sorted(map(written, [prompt[start : start + 3] for start in range(0, 18, 3)]))
  assert all(medium.path[0] == text.text[-1] for medium, text, _ in chunks)


def test_no_media_leave_the_text():
  prompt = assemble([caption(0)], caption(1))
  assert written(without_media(prompt)) == "Output: a cat<EOC>Output:"
  assert not media_of(without_media(prompt)) and len(np.unique([medium.path for medium in media_of(prompt)])) == 2
