"""Rows of pages and pairs, against the paper's rules written out in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_rows import BOS, EOC, EOS, IMAGE, paper_row, windows

from data_pipelines.sequences import page_row, pair_row, prompted

CHUNKS = st.lists(st.lists(st.integers(1, 259), max_size=5), min_size=1, max_size=8)
LENGTHS, SLOTS = st.integers(4, 40), st.integers(1, 5)


def window(tokenizer, chunks, *, first=0, length=64, slots=5, see_next=False):
  """The row of the window that starts at token `first` of the page."""
  start = (first + 0.5) / windows(chunks, length)
  return page_row(chunks, tokenizer, length=length, slots=slots, start=start, see_next=see_next)


def readable(tokenizer, tokens):
  """Special tokens by name. Ordinary ones are never 0, so the one id of <BOS> and <EOS> is told by its place."""
  names = {tokenizer.image: IMAGE, tokenizer.end_of_chunk: EOC, tokenizer.eos: EOS}
  named = [names.get(token, token) for token in tokens.tolist()]
  return [BOS if named[0] == EOS else named[0], *named[1:]]


@given(st.data(), CHUNKS, LENGTHS, SLOTS, st.booleans())
@settings(deadline=None, max_examples=300)
def test_a_page_becomes_the_row_of_the_paper(tokenizer, data, chunks, length, slots, see_next):
  first = data.draw(st.integers(0, windows(chunks, length) - 1))
  row = window(tokenizer, chunks, first=first, length=length, slots=slots, see_next=see_next)
  tokens, weights, phi, images = paper_row(chunks, length, slots, first, see_next)
  assert readable(tokenizer, row.tokens) == tokens
  assert row.loss_weights.tolist() == weights
  assert row.media_index.tolist() == phi
  assert row.media == images
  assert [row.tokens.dtype, row.loss_weights.dtype, row.media_index.dtype] == [np.int32, np.float32, np.int32]


@given(st.data(), CHUNKS, LENGTHS, SLOTS, st.booleans())
@settings(deadline=None, max_examples=300)
def test_no_text_attends_to_an_image_that_it_should_not(tokenizer, data, chunks, length, slots, see_next):
  chunks = [[1 + number] * len(chunk) for number, chunk in enumerate(chunks)]  # each token tells its place on the page
  first = data.draw(st.integers(0, windows(chunks, length) - 1))
  row = window(tokenizer, chunks, first=first, length=length, slots=slots, see_next=see_next)
  for token, slot in zip(readable(tokenizer, row.tokens), row.media_index.tolist(), strict=True):
    if isinstance(token, str):
      continue
    before, after = token - 2, token - 1  # images of the page around this text
    own = after if see_next else before
    assert slot == (row.media.index(own) if own in row.media else -1)


@given(st.data(), CHUNKS, LENGTHS, SLOTS, st.booleans())
@settings(deadline=None, max_examples=300)
def test_every_marker_has_its_medium_in_reading_order(tokenizer, data, chunks, length, slots, see_next):
  first = data.draw(st.integers(0, windows(chunks, length) - 1))
  row = window(tokenizer, chunks, first=first, length=length, slots=slots, see_next=see_next)
  markers = np.flatnonzero(row.tokens == tokenizer.image)
  assert len(markers) == len(row.media) <= slots
  assert list(row.media) == sorted(set(row.media))
  assert row.media_index[markers].tolist() == list(range(len(markers)))
  assert set(row.media_index.tolist()) <= {-1, *range(len(markers))}
  assert row.loss_weights[markers].tolist() == [0] * len(markers)
  assert row.loss_weights[0] == 0
  assert len(row.tokens) <= length


@given(CHUNKS, LENGTHS)
@settings(deadline=None)
def test_every_window_of_a_page_is_as_likely_as_the_others(tokenizer, chunks, length):
  def row(start):
    return page_row(chunks, tokenizer, length=length, slots=8, start=start, see_next=False)

  number = windows(chunks, length)
  expected = [paper_row(chunks, length, 8, first, False)[0] for first in range(number)]
  assert [readable(tokenizer, row(place / number + 1e-9).tokens) for place in range(number)] == expected
  assert [readable(tokenizer, row((place + 1) / number - 1e-9).tokens) for place in range(number)] == expected


@pytest.mark.parametrize(
  ("chunks", "tokens", "previous", "following"),
  [
    (
      [[7], [8], [9]],
      [BOS, 7, EOC, IMAGE, 8, EOC, IMAGE, 9, EOC],
      [-1, -1, -1, 0, 0, 0, 1, 1, 1],
      [0, 0, 0, 0, 1, 1, 1, -1, -1],
    ),
    ([[], [8], [9]], [BOS, IMAGE, 8, EOC, IMAGE, 9, EOC], [-1, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, -1, -1]),
    ([[], [], [9]], [BOS, IMAGE, EOC, IMAGE, 9, EOC], [-1, 0, 0, 1, 1, 1], [0, 0, 1, 1, -1, -1]),
    ([[], [], []], [BOS, IMAGE, EOC, IMAGE, EOC], [-1, 0, 0, 1, 1], [0, 0, 1, 1, -1]),
    ([[7, 8]], [BOS, 7, 8, EOC], [-1] * 4, [-1] * 4),
    ([[]], [BOS, EOC], [-1, -1], [-1, -1]),
  ],
  ids=["text first", "image first", "adjacent images", "no text", "no image", "nothing"],
)
def test_pages_that_a_person_can_check(tokenizer, chunks, tokens, previous, following):
  row = window(tokenizer, chunks)
  assert readable(tokenizer, row.tokens) == tokens
  assert row.media_index.tolist() == previous
  assert window(tokenizer, chunks, see_next=True).media_index.tolist() == following


def test_a_window_that_cuts_a_marker_off_leaves_its_text_without_an_image(tokenizer):
  row = window(tokenizer, [[], [5, 6], [7, 8, 9]], first=1, length=6)  # of <image> 5 6 <EOC> <image> 7 8 9 <EOC>
  assert readable(tokenizer, row.tokens) == [BOS, 5, 6, EOC, IMAGE, 7]
  assert row.media == (1,)
  assert row.media_index.tolist() == [-1, -1, -1, -1, 0, 0]


@pytest.mark.parametrize(
  ("see_next", "phi"), [(True, [0, 0, 0, 0, 1, 1, 1, -1, -1, -1]), (False, [-1, -1, -1, 0, 0, 0, 1, 1, -1, -1])]
)
def test_images_beyond_the_slots_are_discarded_with_their_markers_and_nothing_takes_their_place(
  tokenizer, see_next, phi
):
  row = window(tokenizer, [[1], [2], [3], [], [4]], slots=2, see_next=see_next)
  assert readable(tokenizer, row.tokens) == [BOS, 1, EOC, IMAGE, 2, EOC, IMAGE, 3, 4, EOC]
  assert row.media == (0, 1)
  assert row.media_index.tolist() == phi


@given(st.lists(st.integers(1, 259), max_size=12), st.integers(4, 16))
@settings(deadline=None)
def test_a_pair_is_an_image_its_caption_and_both_ends(tokenizer, caption, length):
  row = pair_row(caption, tokenizer, length)
  whole = [BOS, IMAGE, *caption, EOC, EOS]
  assert readable(tokenizer, row.tokens) == whole[:length]
  assert row.loss_weights.tolist() == [0, 0, *[1] * (len(caption) + 2)][:length]
  assert row.media_index.tolist() == [-1, *[0] * (len(caption) + 3)][:length]
  assert row.media == (0,)


@given(st.lists(st.integers(1, 259), max_size=12), st.lists(st.integers(1, 259), max_size=12), st.integers(4, 16))
@settings(deadline=None)
def test_a_prompt_stands_before_the_caption_and_is_not_learnt(tokenizer, prompt, caption, length):
  row = pair_row(caption, tokenizer, length, prompt)
  whole = [BOS, IMAGE, *prompt, *caption, EOC, EOS]
  learnt = [0, 0, *[0] * len(prompt), *[1] * len(caption), 1, 1]
  assert readable(tokenizer, row.tokens) == whole[:length]
  assert row.loss_weights.tolist() == learnt[:length]
  assert row.media_index.tolist() == [-1, *[0] * (len(whole) - 1)][:length]


@pytest.mark.parametrize(
  ("texts", "prompt", "asked", "learnt"),
  [
    (("", " a cat "), "", "", "a cat"),
    (("a", "cat"), "", "", "a cat"),
    (("", " a cat "), "Output:", "Output:", "a cat"),
    (("a cat", ""), "Output:", "Output:", "a cat"),
    ((" what is it? ", " a cat "), "Question: {} Answer:", "Question: what is it? Answer:", "a cat"),
    (("is {} Python?", "yes"), "{}", "is {} Python?", "yes"),
  ],
)
def test_what_is_asked_and_what_is_learnt(texts, prompt, asked, learnt):
  assert prompted(texts, prompt) == (asked, learnt)


@pytest.mark.parametrize("texts", [("", "a cat"), ("what is it?", " "), ("a cat",)])
def test_nothing_is_learnt_without_both_question_and_answer(texts):
  assert prompted(texts, "Question: {} Answer:")[1] == ""
