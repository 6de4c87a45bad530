"""Streams of text: whole documents or windows of them, side by side in rows."""

import itertools

import numpy as np
import pytest

from data_pipelines.inspection.check import check_records
from data_pipelines.inspection.explain import explain_all
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream, decoding_pool
from data_pipelines.stream_config import StreamConfig, check_stream

BATCH_SIZE, LENGTH, SLOTS = 4, 32, 5


def document(number: int) -> Example:
  """Its number and some words, around a picture that nobody may try to read."""
  words = f" {number}: " + "the th " * (number % 6)
  texts, media = (("", words, "end\n"), (b"no picture", b"")) if number % 2 else ((words + "\nend",), ())
  return Example(texts, media, f"books/{number}", "CC0")


@pytest.fixture
def stream(tmp_path, tokenizer):
  def make(examples, *, seed=3, training=True, **changes) -> Stream:
    folder = tmp_path / f"stream-{len(list(tmp_path.iterdir()))}"
    write_shards(folder, examples, {}, records_per_shard=8)
    fields = dict(source="unused", layout="text", length=LENGTH, media=SLOTS, pack=True, batch_size=BATCH_SIZE)
    return Stream(StreamConfig(**fields | changes), Sources((open_shards(folder),)), tokenizer, 0, seed, training)

  return make


def take(stream, count, start=0, **hosts):
  batches = list(itertools.islice(stream.batches(start, **hosts), count))
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def documents_of(rows, numbers) -> list[tuple[int, ...]]:
  """The tokens of every document in rows, which stand side by side from the first token on."""
  found = []
  for row in numbers:
    segments = rows["segments"][row]
    count = segments.max()
    filled = int((segments > 0).sum())
    assert (np.diff(segments[:filled]) >= 0).all()
    assert not rows["tokens"][row][filled:].any()
    found += [tuple(rows["tokens"][row][segments == number].tolist()) for number in range(1, count + 1)]
  return found


def expected(example: Example, tokenizer) -> tuple[int, ...]:
  text = "\n".join(piece.strip() for piece in example.texts if piece.strip())
  return (tokenizer.bos, *tokenizer.encode(text), tokenizer.eos)


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_holds_every_document_once_and_whole(stream, tokenizer, pack):
  examples = [document(number) for number in range(23)]
  text = stream(examples, pack=pack, length=48)
  rows = take(text, -(-text.epoch_rows // BATCH_SIZE))
  found = documents_of(rows, range(text.epoch_rows))
  assert sorted(found) == sorted(expected(example, tokenizer) for example in examples)
  assert (text.epoch_rows < len(examples)) == pack


def test_all_is_learnt_but_where_a_document_begins(stream):
  rows = take(stream([document(number) for number in range(23)]), 3)
  present = rows["segments"] > 0
  begins = present & (np.diff(rows["segments"], axis=1, prepend=0) > 0)
  np.testing.assert_array_equal(rows["loss_weights"], present & ~begins)


def test_there_are_no_media_and_none_is_read(stream, faults_of):
  rows = take(stream([document(number) for number in range(23)]), 3)
  assert rows["media"].shape == (12, 0, 1, 0, 0, 3)
  assert rows["media_mask"].shape == (12, 0, 1)
  assert (rows["media_index"] == -1).all()
  assert not faults_of(rows)


def test_a_document_that_is_longer_than_a_row_is_cut_to_a_window_of_its_own(stream, tokenizer):
  long = Example(("".join(map(chr, range(0x4E00, 0x4E00 + 15))),), (), "books/long", "CC0")  # three tokens a letter
  whole = expected(long, tokenizer)
  rows = take(stream([long]), 100)
  firsts = set()
  for row in rows["tokens"]:
    assert row[0] == tokenizer.bos
    places = [at for at in range(1, len(whole)) if whole[at : at + LENGTH - 1] == tuple(row[1:].tolist())]
    assert len(places) == 1
    firsts.update(places)
  assert firsts == set(range(1, len(whole) - LENGTH + 2))  # the last window ends with <EOS>


def test_a_batch_is_a_function_of_its_number_for_any_number_of_hosts(stream):
  text = stream([document(number) for number in range(23)])
  whole = take(text, 6)
  later = take(text, 2, start=4)
  for name, array in later.items():
    np.testing.assert_array_equal(array, whole[name][4 * BATCH_SIZE :], err_msg=name)
  halves = [take(text, 6, own=[host], parts=2) for host in range(2)]
  for name, array in whole.items():
    parts = [half[name].reshape(6, BATCH_SIZE // 2, *array.shape[1:]) for half in halves]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(array.shape), array, err_msg=name)


def test_a_record_without_text_leaves_its_place_empty_and_is_counted(stream, faults_of, tokenizer):
  examples = [document(0), Example((" ", "\n"), (b"x",), "books/empty", "CC0"), document(3)]
  rows = take(stream(examples, batch_size=1), 1)
  assert faults_of(rows) == {"empty_text": 1}
  assert sorted(documents_of(rows, [0])) == sorted(expected(examples[number], tokenizer) for number in (0, 2))


def test_the_checks_of_data_look_at_text_alone(stream, tokenizer):
  text = stream([document(number) for number in range(5)])
  tally = check_records(text, decoding_pool(), None, 5, lambda count: None)
  assert (tally.records, tally.media, dict(tally.found)) == (5, 0, {})
  explained = explain_all(text, 1, 0.0)
  assert tuple(explained.tokens.tolist()) == expected(document(1), tokenizer)
  assert explained.media == ()


def test_settings_of_media_have_no_meaning_and_are_refused_together():
  wrong = StreamConfig("books", "text", medium="features", frames=2, labels="chunks", flip=True, crop=0.5, prompt="a")
  named = {fault.split(" is ")[0].removeprefix("streams.books.") for fault in check_stream("books", wrong)}
  assert named == {"medium", "frames", "labels", "flip", "crop", "prompt"}
  assert not check_stream("books", StreamConfig("books", "text", pack=True, media=9))
