import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.training.rewind import (
  Rewind,
  add_rewind,
  batch_number,
  check_rewind,
  in_force,
  read_rewinds,
  segments,
)


def numbers(start: int, stop: int, rewinds: tuple[Rewind, ...]) -> list[int]:
  return [first + place for first, count in segments(start, stop, rewinds) for place in range(count)]


def plainly(start: int, stop: int, rewinds: tuple[Rewind, ...]) -> list[int]:
  """One batch after another, each left out that a rewind names."""
  kept = [n for n in range(1, 200) if not any(rewind.first <= n < rewind.last for rewind in rewinds)]
  return kept[start:stop]


SPANS = [
  (),
  (Rewind(2, 4, 6),),
  (Rewind(0, 1, 3),),
  (Rewind(9, 12, 15), Rewind(3, 5, 7)),
  (Rewind(3, 5, 9), Rewind(2, 7, 12)),
  (Rewind(3, 5, 12), Rewind(2, 7, 9), Rewind(2, 12, 13)),
]


@pytest.mark.parametrize("rewinds", SPANS)
def test_the_batches_are_all_but_those_left_out_wherever_a_start_begins(rewinds):
  for start in range(0, 20):
    for stop in (start, start + 1, start + 5, 25):
      assert numbers(start, stop, rewinds) == plainly(start, stop, rewinds)
    assert batch_number(start + 1, rewinds) == plainly(start, start + 1, rewinds)[0]


def test_it_takes_no_longer_far_from_the_start():
  assert list(segments(10**12, 10**12 + 3, (Rewind(1, 5, 8),))) == [(10**12 + 4, 3)]


def test_the_same_rewind_is_made_once_and_others_follow_it(tmp_path):
  first, second = Rewind(10, 12, 14), Rewind(20, 25, 30)
  for rewind in (first, first, second):
    check_rewind(tmp_path, rewind, [10, 20])
    add_rewind(tmp_path, rewind)
  check_rewind(tmp_path, first, [])
  assert read_rewinds(tmp_path) == (first, second)


@pytest.mark.parametrize(
  ("rewind", "message"),
  [
    (Rewind(15, 17, 18), "no checkpoint of that step. It has: 10, 20."),
    (Rewind(10, 10, 18), "above 10"),
    (Rewind(10, 18, 18), "A below B"),
    (Rewind(10, 18, 11), "A below B"),
  ],
)
def test_what_cannot_be_gone_back_to_is_refused(tmp_path, rewind, message):
  with pytest.raises(UserError, match=message):
    check_rewind(tmp_path, rewind, [10, 20])


def test_a_second_span_counts_in_batches_not_in_steps(tmp_path):
  """After 12 and 13 are left out, step 20 has learnt from batch 22."""
  add_rewind(tmp_path, Rewind(10, 12, 14))
  with pytest.raises(UserError, match="above 22"):
    check_rewind(tmp_path, Rewind(20, 22, 24), [10, 20])


def test_what_was_saved_before_a_rewind_holds_up_to_where_it_went_back():
  one, two = Rewind(10, 12, 14), Rewind(6, 8, 9)
  assert in_force((), ()) == in_force((one,), (one,)) > 10**9
  assert in_force((), (one,)) == 10
  assert in_force((), (one, two)) == in_force((one,), (one, two)) == 6
  assert in_force((two,), (one, two)) is None
