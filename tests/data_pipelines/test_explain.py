"""What is explained of a record, against the paper's rules in plain Python and against the training batches."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_rows import BOS, EOC, EOS, IMAGE, paper_page, paper_row, windows

from data_pipelines.features import FeaturesInfo, encode_fault, encode_features
from data_pipelines.inspection.explain import NEXT, PREVIOUS, explain_all, explain_place, places
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError

TEXTS = st.lists(st.text("abcd", max_size=5), min_size=1, max_size=6).filter(any)


@pytest.fixture
def stream(tmp_path, tokenizer):
  """Examples on disk as a stream."""

  def make(examples, training=True, **changes):
    folder = tmp_path / f"stream-{len(list(tmp_path.iterdir()))}"
    write_shards(folder, examples, {}, records_per_shard=3)
    config = StreamConfig(**{**dict(source="unused", layout="interleaved", length=12, media=2), **changes})
    return Stream(config, Sources((open_shards(folder),)), tokenizer, 16, 5, training)

  return make


def page(texts, picture):
  return Example(tuple(texts), tuple(picture(seed, 20, 18) for seed in range(len(texts) - 1)), "pages/1", "CC0")


@given(st.data(), TEXTS, st.integers(4, 16), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_a_page_is_explained_by_the_rules_of_the_paper(
  tmp_path_factory, tokenizer, picture, data, texts, length, slots
):
  folder = tmp_path_factory.mktemp("page")
  write_shards(folder, [page(texts, picture)], {})
  config = StreamConfig("unused", "interleaved", length=length, media=slots, p_next=0.25)
  stream = Stream(config, Sources((open_shards(folder),)), tokenizer, 16, 5, training=True)
  chunks = [list(text) for text in texts]  # one token a letter
  first = data.draw(st.integers(0, windows(chunks, length) - 1))
  explained = explain_all(stream, 0, (first + 0.5) / windows(chunks, length))

  assert explained.chances == {PREVIOUS: 0.75, NEXT: 0.25}
  assert (explained.first, explained.whole) == (first, len(paper_page(chunks)))
  for name, see_next in ((PREVIOUS, False), (NEXT, True)):
    tokens, weights, phi, kept = paper_row(chunks, length, slots, first, see_next)
    assert list(explained.pieces) == tokens
    assert explained.weights.tolist() == weights
    assert explained.sees[name].tolist() == phi
    assert [medium.number for medium in explained.media if medium.slot is not None] == list(kept)
    for medium in explained.media:
      readers = [slot for token, slot in zip(tokens, phi, strict=True) if token not in (BOS, IMAGE, EOC)]
      assert medium.readers[name] == (0 if medium.slot is None else readers.count(medium.slot))


def test_a_jpeg_with_a_second_picture_behind_it_is_called_a_jpeg(stream, phone_picture):
  [medium] = explain_all(stream([Example(("a", "b"), (phone_picture,), "x", "")]), 0, 0.0).media
  assert medium.format.startswith("JPEG 80 x 70, ") and not medium.broken


def test_a_page_that_a_person_can_check(stream, picture):
  explained = explain_all(stream([page(["ab", "c", "", "d"], picture)], length=20), 0, 0.0)
  assert explained.pieces == (BOS, "a", "b", EOC, IMAGE, "c", EOC, IMAGE, "d", EOC)
  assert explained.weights.tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1]
  assert explained.sees[PREVIOUS].tolist() == [-1, -1, -1, -1, 0, 0, 0, 1, -1, -1]
  assert explained.sees[NEXT].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, -1, -1]
  assert [medium.slot for medium in explained.media] == [0, 1, None]
  assert [list(medium.readers.values()) for medium in explained.media] == [[1, 2], [0, 1], [0, 0]]
  assert explained.media[2].absent == "beyond the first 2 of the window"
  assert explained.media[0].format.startswith("PNG 20 x 18, ") and "read as 16 x 14" in explained.media[0].format
  assert json.loads(json.dumps(explained.as_json()))["tokens"][5] == dict(
    id=int(explained.tokens[5]), text="c", loss_weight=1.0, sees={PREVIOUS: 0, NEXT: 1}
  )


@pytest.mark.parametrize(
  ("training", "p_next", "draws"),
  [(True, 0.0, [PREVIOUS]), (True, 1.0, [NEXT]), (True, 0.5, [PREVIOUS, NEXT]), (False, 0.5, [PREVIOUS])],
)
def test_only_draws_that_the_stream_makes_are_explained(stream, picture, training, p_next, draws):
  explained = explain_all(stream([page(["a", "b"], picture)], training, p_next=p_next), 0, 0.0)
  assert list(explained.sees) == draws


def test_media_outside_the_window_are_told_from_those_beyond_the_slots(stream, picture):
  made = stream([page(["", "a", "b", "c", "d" * 30], picture)], length=10, media=1)
  assert [medium.absent for medium in explain_all(made, 0, 0.0).media] == [
    "",
    "beyond the first 1 of the window",
    "beyond the first 1 of the window",
    "outside the window",
  ]
  assert [medium.absent for medium in explain_all(made, 0, 0.99).media] == ["outside the window"] * 4


def test_a_prompt_is_explained_as_it_is_read(stream, picture):
  example = Example(("", "ab"), (picture(0),), "pairs/1", "CC0")
  made = stream([example], layout="pairs", media=1, batch_size=8, prompt="x:")
  explained = [explain_all(made, 0, 0.0), *(explain_place(made, 0, place) for place in places(made, 0, 1))]
  assert {one.pieces for one in explained} == {(BOS, IMAGE, "x", ":", " ", "a", "b", EOC, EOS)}
  assert {tuple(one.weights) for one in explained} == {(0, 0, 0, 0, 1, 1, 1, 1, 1)}
  assert {one.whole for one in explained} == {8}


@pytest.mark.parametrize("layout", ["interleaved", "pairs", "packed"])
def test_a_step_is_explained_as_its_batch_has_it(stream, picture, layout):
  if layout == "interleaved":
    examples = [page(["abcd" * number, "ba" * 5, "c" * number], picture) for number in range(1, 6)]
    made = stream(examples, length=14, batch_size=4)
  else:
    examples = [Example(("", "dcba"[:number]), (picture(number, 20, 18),), "pairs/1", "CC0") for number in (1, 2, 3, 4)]
    made = stream(examples, layout="pairs", length=20, media=3, batch_size=2, pack=layout == "packed")
  explained = []
  with ThreadPoolExecutor(2) as pool:
    for step in (1, 2, 7):
      size = made.config.batch_size
      batch = made.batch(np.arange((step - 1) * size, step * size), pool)
      covered = np.zeros_like(batch["segments"], bool)
      for index in range(len(examples)):
        for place in places(made, index, step):
          one = explain_place(made, index, place)
          [index_of_media] = one.sees.values()
          part = (place.row, slice(place.start, place.start + len(one.tokens)))
          np.testing.assert_array_equal(batch["tokens"][part], one.tokens)
          np.testing.assert_array_equal(batch["loss_weights"][part], one.weights)
          np.testing.assert_array_equal(batch["media_index"][part], index_of_media)
          assert set(batch["segments"][part]) == {place.slot + 1}
          covered[part] = True
          explained.append(one)
      np.testing.assert_array_equal(covered, batch["segments"] > 0)
  kinds = {name for one in explained for name in one.draws}
  assert kinds == ({PREVIOUS, NEXT} if layout == "interleaved" else {PREVIOUS})


def test_a_medium_that_cannot_be_read_is_named_with_its_cause(stream, picture):
  broken = Example(("", "a", "b"), (picture(0)[:200], picture(1)), "pages/1", "CC0")
  first, second = explain_all(stream([broken]), 0, 0.0).media
  assert first.broken and "broken_image" in first.format
  assert not second.broken


def test_features_stand_for_the_media_that_they_are_of(tmp_path, tokenizer):
  info = FeaturesInfo("0" * 64, "float32", frames=4, positions=3, width=2)
  media = (encode_features(np.ones((2, 3, 2), np.float32)), encode_fault("broken_video"))
  write_shards(tmp_path, [Example(("", "a", "b"), media, "x/1", "CC0")], {}, build=dict(features=vars(info)))
  config = StreamConfig("unused", "interleaved", medium="features", length=12, media=2, frames=4)
  first, second = explain_all(Stream(config, Sources((open_shards(tmp_path),)), tokenizer, 0, 5, True), 0, 0.0).media
  assert (first.format, first.broken) == ("features of 2 of 4 frames", False)
  assert second.broken and "broken_video" in second.format


def test_a_record_that_the_stream_leaves_out_is_an_error(stream, picture):
  with pytest.raises(UserError, match=r"array_record:1 is left out of the stream: empty_text"):
    explain_all(stream([page(["a"], picture), page([" ", ""], picture)]), 1, 0.0)


def test_a_pair_is_explained_with_the_space_that_was_drawn(stream, picture):
  made = stream([Example(("", "ab"), (picture(0),), "pairs/1", "CC0")], layout="pairs", media=1, batch_size=8)
  assert explain_all(made, 0, 0.0).pieces == (BOS, IMAGE, "a", "b", EOC, EOS)
  explained = [explain_place(made, 0, place) for place in places(made, 0, 1)]
  assert len(explained) == 8
  assert {("a" if one.pieces[2] == "a" else " ", one.draws[PREVIOUS].space) for one in explained} == {
    ("a", False),
    (" ", True),
  }
