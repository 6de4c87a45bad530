import dataclasses
import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_pipelines.clips import decode_clip
from data_pipelines.faults import decode_faults
from data_pipelines.media import decode_image
from data_pipelines.mixtures import mixture, round_robin, turn
from data_pipelines.schema import Example, serialize
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig, check_stream
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import EndOfChunk, Medium, completed
from flamingo_jax.evaluation.tasks.example import Example as EvaluatedExample
from flamingo_jax.evaluation.tasks.shots import caption_shot, question_shot

SIZE = 16  # of pictures, pixels
FULL_COLOUR = dict(flip=True, colour=0.3, crop=0.7)  # all randomness of pixels at once


@pytest.fixture
def stream(tmp_path, tokenizer):
  """Writes examples to real shards and opens them as a stream; `spoil` may damage the files in between."""

  def make(*sources, seed=3, training=True, spoil=lambda folder: None, **settings):
    parts = []
    for examples in sources:
      folder = tmp_path / f"stream-{len(list(tmp_path.iterdir()))}"
      write_shards(folder, examples, {}, records_per_shard=4)
      spoil(folder)
      parts.append(open_shards(folder, tolerated=0.5))
    config = StreamConfig(**{**dict(source="unused", layout="pairs", length=24), **settings})
    return Stream(config, Sources(tuple(parts)), tokenizer, SIZE, seed, training)

  return make


@pytest.fixture(scope="session")
def pairs(picture):
  """Ten captioned pictures, PNG and JPEG by turns; the caption is the record's number."""
  formats = ("PNG", "JPEG")
  return [Example(("", str(i)), (picture(i, 24, 20, formats[i % 2]),), f"pairs/{i}", "CC0") for i in range(10)]


@pytest.fixture(scope="session")
def pages(picture):
  """Ten pages of two pictures, too long for a window of 24 tokens; every text holds the page's number."""
  return [
    Example(
      (f"{i} before {i}", f"{i} between {i}", f"{i} the end {i}"),
      (picture(2 * i, 24, 20), picture(2 * i + 1, 20, 24, "JPEG")),
      f"pages/{i}",
      "CC0",
    )
    for i in range(10)
  ]


@pytest.fixture(scope="session")
def half_and_half():
  """A picture that is not its own mirror image, of colours that jitter does not clip."""
  image = Image.new("RGB", (SIZE, SIZE), (170, 90, 90))
  image.paste((90, 90, 170), (0, 0, SIZE // 2, SIZE))
  return image


def png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def take(stream, count, start=0, **hosts):
  return list(itertools.islice(stream.batches(start, **hosts), count))


def joined(batches):
  """Batches one below the other, as one."""
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def texts(stream, batch):
  """The text of each row, without special tokens."""
  return [stream.tokenizer.decode(tokens).strip() for tokens in batch["tokens"]]


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("layout", ["pairs", "interleaved"])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(stream, pairs, pages, layout, hosts):
  examples = pairs if layout == "pairs" else pages
  read = stream(examples, layout=layout, media=2, batch_size=8, **FULL_COLOUR)
  alone = take(read, 3)
  shares = [take(read, 3, own=[host], parts=hosts) for host in range(hosts)]
  for step in range(3):
    assert_equal(joined([share[step] for share in shares]), alone[step])


def test_the_rows_of_parts_that_lie_apart_follow_each_other(stream, pairs):
  read = stream(pairs, batch_size=8, **FULL_COLOUR)
  for part, whole in zip(take(read, 3, own=(1, 3), parts=4), take(read, 3), strict=True):
    assert_equal(part, {name: array[[2, 3, 6, 7]] for name, array in whole.items()})


def test_a_batch_that_does_not_divide_by_the_hosts_is_refused(stream, pairs):
  with pytest.raises(UserError, match="8 rows does not divide into 3 parts"):
    stream(pairs, batch_size=8).batches(0, own=[0], parts=3)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(stream, pages, threads):
  settings = dict(layout="interleaved", media=2, batch_size=9, **FULL_COLOUR)
  read = stream(pages, **settings)
  with ThreadPoolExecutor(threads) as some, ThreadPoolExecutor(3) as three:
    for left, right in zip(take(read, 4, pool=some), take(read, 4, pool=three), strict=True):
      assert_equal(left, right)


def test_a_far_step_reads_no_more_than_the_first_one(stream, pairs, monkeypatch):
  """Some batches are read ahead, and those that lie before the step never."""
  read = stream(pairs, batch_size=4)
  indices = []
  monkeypatch.setattr(Sources, "__getitem__", lambda self, index: indices.append(index) or self.parts[0][index])
  for step in (0, 10**6, 10**12):
    indices.clear()
    [batch] = take(read, 1, step)
    assert set(texts(read, batch)) <= {str(i) for i in range(10)}
    assert 4 <= len(indices) <= 100


@pytest.mark.parametrize("start", [1, 4])
def test_a_run_that_starts_at_a_step_reads_what_the_whole_run_read_there(stream, pages, start):
  read = stream(pages, layout="interleaved", media=2, batch_size=3, **FULL_COLOUR)
  for resumed, whole in zip(take(read, 3, start), take(read, start + 3)[start:], strict=True):
    assert_equal(resumed, whole)


def test_two_readings_are_bitwise_equal(stream, pages):
  settings = dict(layout="interleaved", media=2, batch_size=4, **FULL_COLOUR)
  first, second = stream(pages, **settings), stream(pages, **settings)
  for left, right in zip(take(first, 6), take(second, 6), strict=True):
    assert_equal(left, right)


def test_another_seed_gives_another_order_and_other_pixels(stream, pairs):
  first, second = (stream(pairs, batch_size=10, seed=seed, **FULL_COLOUR) for seed in (3, 4))
  [left], [right] = take(first, 1), take(second, 1)
  assert texts(first, left) != texts(second, right)
  images = [dict(zip(texts(first, batch), batch["media"], strict=True)) for batch in (left, right)]
  assert all((images[0][number] != images[1][number]).any() for number in images[0])


def test_every_epoch_holds_each_record_once_in_another_order(stream, pairs):
  read = stream(pairs, batch_size=4)  # an epoch ends in the middle of a batch
  numbers = texts(read, joined(take(read, 10)))
  epochs = [numbers[at : at + 10] for at in range(0, 40, 10)]
  assert [sorted(epoch) for epoch in epochs] == [[str(i) for i in range(10)]] * 4
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_pixels_of_a_record_differ_between_epochs(stream, pairs):
  read = stream(pairs, batch_size=10, **FULL_COLOUR)
  first, second = (dict(zip(texts(read, batch), batch["media"], strict=True)) for batch in take(read, 2))
  assert all((first[number] != second[number]).any() for number in first)


def test_a_stream_of_one_record_repeats_it(stream, pairs):
  read = stream(pairs[:1], batch_size=2)
  assert texts(read, joined(take(read, 2))) == ["0"] * 4


def test_rows_are_all_records_once_in_plain_order(stream, pairs):
  read = stream(pairs, training=False)
  assert [texts(read, {"tokens": [row["tokens"]]}) for row in read.rows()] == [[str(i)] for i in range(10)]


def test_rows_have_the_shapes_that_were_promised_and_padding_is_nothing(stream, pairs):
  read = stream(pairs, batch_size=2, length=24, media=3)
  [batch] = take(read, 1)
  expected = {name: (np.dtype(dtype), (2, *shape)) for name, (dtype, shape) in read.shapes().items()}
  assert {name: (array.dtype, array.shape) for name, array in batch.items()} == expected
  padding = batch["segments"] == 0
  assert padding[:, -1].all()
  assert not batch["tokens"][padding].any()
  assert not batch["loss_weights"][padding].any()
  assert (batch["media_index"][padding] == -1).all()
  assert batch["media_mask"][:, :, 0].tolist() == [[True, False, False]] * 2
  assert not batch["media"][:, 1:].any()


def bad_picture(examples):
  return [*examples[:3], Example(examples[3].texts, (examples[3].media[0][:300],), "pairs/3", "CC0"), *examples[4:]]


def text_for_a_picture(examples):
  return [*examples[:3], Example(examples[3].texts, (b"\x89PNG\r\n\x1a\n no",), "pairs/3", "CC0"), *examples[4:]]


def empty_caption(examples):
  return [*examples[:3], Example(("", " \n"), examples[3].media, "pairs/3", "CC0"), *examples[4:]]


def no_medium(examples):
  return [*examples[:3], Example(("3",), (), "pairs/3", "CC0"), *examples[4:]]


def affected(clean, stream):
  """Which rows of two epochs hold record 3."""
  places = [number == "3" for number in texts(stream, clean)]
  assert sum(places) == 2
  return np.array(places)


def assert_other_rows_are_equal(found, clean, places):
  assert_equal({name: array[~places] for name, array in found.items()}, {n: a[~places] for n, a in clean.items()})


@pytest.mark.parametrize("change", [bad_picture, text_for_a_picture])
def test_a_broken_picture_is_a_masked_slot_and_changes_no_other_row(stream, pairs, change, faults_of):
  whole = stream(pairs, batch_size=5, **FULL_COLOUR)
  clean, found = joined(take(whole, 4)), joined(take(stream(change(pairs), batch_size=5, **FULL_COLOUR), 4))
  places = affected(clean, whole)
  assert_other_rows_are_equal(found, clean, places)
  for name in ("tokens", "loss_weights", "segments", "media_index"):
    np.testing.assert_array_equal(found[name], clean[name])
  assert not found["media"][places].any()
  assert not found["media_mask"][places].any()
  assert faults_of(found) == {"broken_image": 2}
  assert [len(row) for row in decode_faults(found["faults"])] == places.tolist()


def assert_empty_rows(found, places):
  for name in ("tokens", "loss_weights", "segments", "media", "media_mask"):
    assert not found[name][places].any(), name
  assert (found["media_index"][places] == -1).all()


@pytest.mark.parametrize(("change", "cause"), [(empty_caption, "empty_text"), (no_medium, "bad_record")])
def test_a_record_that_cannot_be_used_is_an_empty_row_and_changes_no_other(stream, pairs, change, cause, faults_of):
  whole = stream(pairs, batch_size=5, **FULL_COLOUR)
  clean, found = joined(take(whole, 4)), joined(take(stream(change(pairs), batch_size=5, **FULL_COLOUR), 4))
  places = affected(clean, whole)
  assert_other_rows_are_equal(found, clean, places)
  assert_empty_rows(found, places)
  assert faults_of(found) == {cause: 2}


def test_a_damaged_record_is_an_empty_row_and_changes_no_other(stream, pairs, faults_of):
  def flip_a_bit(folder):
    path = min(folder.glob("*.array_record"))
    data = bytearray(path.read_bytes())
    data[data.index(pairs[3].media[0]) + 100] ^= 1
    path.write_bytes(data)

  whole = stream(pairs, batch_size=5, **FULL_COLOUR)
  clean, found = joined(take(whole, 4)), joined(take(stream(pairs, batch_size=5, spoil=flip_a_bit, **FULL_COLOUR), 4))
  places = affected(clean, whole)
  assert_other_rows_are_equal(found, clean, places)
  assert_empty_rows(found, places)
  assert faults_of(found) == {"damaged_shard": 2}


def test_a_broken_picture_of_a_page_leaves_the_other_slots(stream, pages):
  settings = dict(layout="interleaved", media=2, length=200, training=False)
  broken = [
    Example(page.texts, (page.media[0][:300], page.media[1]), page.source, page.license) if i == 3 else page
    for i, page in enumerate(pages)
  ]
  clean, found = list(stream(pages, **settings).rows())[3], list(stream(broken, **settings).rows())[3]
  np.testing.assert_array_equal(found["media"][1], clean["media"][1])
  np.testing.assert_array_equal(found["media_index"], clean["media_index"])
  assert found["media_mask"].tolist() == [[False], [True]]
  assert not found["media"][0].any()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_picture_of_a_page_changes_nothing_of_the_others(stream, picture, broken):
  """What is drawn for a picture does not depend on what became of those before it."""
  media = [picture(i, 24, 20, "JPEG") for i in range(4)]
  page = Example(("a", "b", "c", "d", "e"), tuple(media), "pages/0", "CC0")
  media[broken] = media[broken][:200]
  settings = dict(layout="interleaved", media=4, batch_size=12, **FULL_COLOUR)
  [clean] = take(stream([page], **settings), 1)
  [found] = take(stream([Example(page.texts, tuple(media), "pages/0", "CC0")], **settings), 1)
  others = [slot for slot in range(4) if slot != broken]
  np.testing.assert_array_equal(found["media"][:, others], clean["media"][:, others])
  np.testing.assert_array_equal(found["tokens"], clean["tokens"])
  assert not found["media_mask"][:, broken].any()


def test_shard_and_record_are_named_in_every_fault(stream, pairs):
  read = stream(bad_picture(pairs), batch_size=10)
  [fault] = [fault for row in decode_faults(take(read, 1)[0]["faults"]) for fault in row]
  assert (fault.cause, fault.record, fault.medium) == ("broken_image", 3, 0)
  assert fault.shard == str(next(read.sources.parts[0].directory.glob("examples-00000-of-00003*")))
  assert "Truncated" in fault.detail


def cut_last_shard(folder):
  path = max(folder.glob("*.array_record"))
  path.write_bytes(path.read_bytes()[:-5000])


def test_records_of_a_shard_that_was_cut_short_are_empty_rows_and_change_no_other(stream, pairs, faults_of):
  whole = stream(pairs, batch_size=5, **FULL_COLOUR)
  read = stream(pairs, batch_size=5, spoil=cut_last_shard, **FULL_COLOUR)
  clean, found = joined(take(whole, 4)), joined(take(read, 4))
  places = np.array([number in ("8", "9") for number in texts(whole, clean)])
  assert_other_rows_are_equal(found, clean, places)
  assert_empty_rows(found, places)
  assert faults_of(found) == {"damaged_shard": 4}
  [named, *_] = [fault for row in decode_faults(found["faults"]) for fault in row]
  assert named.shard.endswith("examples-00002-of-00003.array_record")
  assert "bytes; the manifest says" in named.detail


def test_more_lost_shards_than_are_tolerated_are_refused_at_the_door(tmp_path, pairs):
  write_shards(tmp_path / "stream", pairs, {}, records_per_shard=4)
  cut_last_shard(tmp_path / "stream")
  assert len(open_shards(tmp_path / "stream", tolerated=0.2)) == 10
  with pytest.raises(UserError, match=r"examples-00002-of-00003\.array_record has"):
    open_shards(tmp_path / "stream", tolerated=0.19)


ABSURD = {
  "a line of a megabyte": "the cat " * 125_000,
  "a word of a megabyte": "a" * 1_000_000,
  "control characters": "\0\x01\x07\x1b[31m\u202e\ufeff\x7f the cat",
  "markers": "<image><EOC><BOS><|endoftext|>" * 10,
  "no letters": "\U0001f600 \u0301\u200d" * 5,
}


@pytest.mark.parametrize("text", ABSURD.values(), ids=ABSURD)
@pytest.mark.parametrize("layout", ["pairs", "interleaved"])
def test_absurd_text_is_text(stream, picture, text, layout):
  texts_ = ("", text) if layout == "pairs" else (text, text)
  read = stream([Example(texts_, (picture(0),), "x/0", "CC0")], layout=layout, length=64, training=False)
  [row] = read.rows()
  tokens = row["tokens"][row["segments"] == 1].tolist()
  assert row["faults"].item() == b""
  markers = [place for place, token in enumerate(tokens) if token == read.tokenizer.image]
  assert len(markers) == row["media_mask"].any(axis=1).sum() <= 1
  found = read.tokenizer.decode(tokens)
  assert found.replace("\ufffd", "") in text.strip() * 2  # a window may cut a letter in two


def test_text_that_is_not_unicode_is_a_bad_record(stream, pairs, monkeypatch, faults_of):
  example = dataclasses.replace(pairs[3], texts=("", "to be replaced"))
  record = serialize(example).replace(b"to be", b"to \xff\xfe")
  monkeypatch.setattr(Sources, "__getitem__", lambda self, index: record if index == 3 else self.parts[0][index])
  read = stream(pairs, batch_size=10)
  [found] = take(read, 1)
  assert faults_of(found) == {"bad_record": 1}
  assert sorted(texts(read, found)) == sorted(["", *(str(i) for i in range(10) if i != 3)])


@pytest.fixture(scope="session")
def letters(picture):
  """Six captioned pictures more; their captions are letters."""
  return [Example(("", "abcdef"[i]), (picture(20 + i, 20, 20),), f"letters/{i}", "CC0") for i in range(6)]


def test_sources_take_turns_by_their_shares_and_each_has_epochs_of_its_own(stream, pairs, letters):
  read = stream(pairs, letters, shares=(3, 1), batch_size=4)
  found = texts(read, joined(take(read, 30)))
  assert [text.isalpha() for text in found] == [False, False, True, False] * 30
  numbers, named = [text for text in found if text.isdigit()], [text for text in found if text.isalpha()]
  for own, size in ((numbers, 10), (named, 6)):
    epochs = [own[at : at + size] for at in range(0, len(own), size)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(own[:size]))}
    assert len(set(own[:size])) == size
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_sources_of_equal_size_have_orders_of_their_own(stream, pairs):
  read = stream(pairs, pairs, batch_size=20)
  [batch] = take(read, 1)
  found = texts(read, batch)
  assert sorted(found[::2]) == sorted(found[1::2])
  assert found[::2] != found[1::2]


@pytest.mark.parametrize("batch_size", [4, 8, 32])
def test_once_means_every_record_of_every_source_once_and_then_empty_rows(stream, pairs, letters, batch_size):
  """Of unequal shares, so that one source is read long before the other; and of more rows than there are."""
  read = stream(pairs, letters, shares=(1, 3), batch_size=batch_size, training=False)
  batches = list(read.once(1000))
  assert [len(batch["tokens"]) for batch in batches] == [batch_size] * -(-16 // batch_size)
  whole = joined(batches)
  assert sorted(texts(read, whole)) == sorted(
    [*(str(i) for i in range(10)), *"abcdef", *[""] * (len(whole["tokens"]) - 16)]
  )
  assert whole["media_mask"].sum() == 16
  assert not any(whole[name][16:].any() for name in ("tokens", "segments", "loss_weights", "media", "media_mask"))


def test_once_begins_as_training_does_for_as_long_as_no_row_comes_twice(stream, pairs):
  read = stream(pairs, batch_size=4, training=False)
  for found, expected in zip(read.once(2), take(read, 2), strict=True):
    assert_equal(found, expected)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("pack", [False, True])
def test_once_does_not_depend_on_the_number_of_hosts(stream, pairs, letters, hosts, pack):
  """Some hosts have nothing but empty rows in the last batch."""
  read = stream(pairs, letters, batch_size=12, pack=pack, media=3 if pack else 1, training=False)
  shares = [list(read.once(9, own=[host], parts=hosts)) for host in range(hosts)]
  alone = list(read.once(9))
  for step, whole in enumerate(alone):
    assert_equal(joined([share[step] for share in shares]), whole)
  assert not shares[-1][-1]["segments"].any()


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("pack", [False, True])
def test_several_sources_keep_hosts_and_resuming(stream, pairs, letters, hosts, pack):
  settings = dict(shares=(2, 1), batch_size=8, pack=pack, media=3 if pack else 1, length=24, **FULL_COLOUR)
  read = stream(pairs, letters, **settings)
  alone = take(read, 6)
  for host in range(hosts):
    rows = slice(host * 8 // hosts, (host + 1) * 8 // hosts)
    for share, whole in zip(take(read, 2, 4, own=[host], parts=hosts), alone[4:], strict=True):
      assert_equal(share, {name: array[rows] for name, array in whole.items()})


def test_rows_of_several_packed_sources_hold_pairs_of_one_alone(stream, pairs, letters):
  read = stream(pairs, letters, shares=(1, 1), batch_size=1, pack=True, media=4, length=24)
  rows = take(read, 2 * max(read.source_rows))
  captions = [
    [read.tokenizer.decode(batch["tokens"][batch["segments"] == pair]).strip() for pair in range(1, 5)]
    for batch in rows
  ]
  assert all(caption.isdigit() for row in captions[::2] for caption in row if caption)
  assert all(caption.isalpha() for row in captions[1::2] for caption in row if caption)
  first_epoch = [caption for row in captions[::2][: read.source_rows[0]] for caption in row if caption]
  assert sorted(first_epoch) == [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def films(encode_film):
  """Ten films of half a second that grow brighter; the caption is the record's number."""
  stairs = [[Image.new("RGB", (32, 32), (20 * i + 8 * at,) * 3) for at in range(5)] for i in range(10)]
  return [Example(("", str(i)), (encode_film(grays),), f"films/{i}", "CC0") for i, grays in enumerate(stairs)]


VIDEO = dict(medium="video", frames=4, frames_per_second=10.0, batch_size=5, flip=True)


def test_a_truncated_film_is_a_masked_slot_and_changes_no_other_row(stream, films, faults_of):
  cut = [*films[:3], Example(films[3].texts, (films[3].media[0][:-50],), "films/3", "CC0"), *films[4:]]
  whole = stream(films, **VIDEO)
  clean, found = joined(take(whole, 4)), joined(take(stream(cut, **VIDEO), 4))
  places = affected(clean, whole)
  assert clean["media_mask"].all()
  assert_other_rows_are_equal(found, clean, places)
  np.testing.assert_array_equal(found["tokens"], clean["tokens"])
  assert not found["media_mask"][places].any()
  assert not found["media"][places].any()
  assert faults_of(found) == {"broken_video": 2}


def test_only_the_clip_of_a_film_is_read(stream, encode_film, faults_of):
  stairs = encode_film([Image.new("RGB", (32, 32), (8 * i,) * 3) for i in range(30)])
  halves = [
    Example(("", "0"), (stairs,), "films/0", "CC0", clip_start=0.0, clip_end=2.0),
    Example(("", "1"), (stairs,), "films/0", "CC0", clip_start=2.0),
    Example(("", "2"), (stairs,), "films/0", "CC0", clip_start=3.5),
  ]
  read = stream(halves, **{**VIDEO, "batch_size": 30, "frames_per_second": 2.0})
  [batch] = take(read, 1)
  frames = batch["media"].mean(axis=(1, 3, 4, 5)) / 8
  numbers, exists = np.array(texts(read, batch)), batch["media_mask"][:, 0]
  assert frames[numbers == "0"][exists[numbers == "0"]].max() < 19.5
  assert frames[numbers == "1"][exists[numbers == "1"]].min() > 19.5
  assert len(np.unique(np.rint(frames[numbers == "0"][:, 0]))) > 1  # the clip starts at random places
  assert faults_of(batch) == {"empty_video": 10}


def test_images_of_one_page_are_flipped_each_for_itself(stream, half_and_half):
  page = Example(("a", *["b"] * 5), (png(half_and_half),) * 5, "pages/0", "CC0")
  read = stream([page], layout="interleaved", media=5, batch_size=20, flip=True)
  [batch] = take(read, 1)
  plain = decode_image(page.media[0], SIZE)
  flipped = (batch["media"][:, :, 0] == plain[:, ::-1]).all(axis=(2, 3, 4))
  assert (flipped | (batch["media"][:, :, 0] == plain).all(axis=(2, 3, 4))).all()
  assert 30 <= flipped.sum() <= 70  # of 100, half of them
  assert sum(len(set(row)) == 2 for row in flipped.tolist()) >= 10  # one flip for a whole page would give 0


def test_images_of_one_page_are_coloured_each_for_itself(stream, half_and_half):
  page = Example(("a", *["b"] * 5), (png(half_and_half),) * 5, "pages/0", "CC0")
  [batch] = take(stream([page], layout="interleaved", media=5, batch_size=4, colour=0.3), 1)
  assert len({image.tobytes() for image in batch["media"].reshape(20, -1)}) == 20


def test_frames_of_a_clip_are_flipped_and_coloured_alike(stream, encode_film, half_and_half):
  still = Example(("", "0"), (encode_film([half_and_half] * 4),), "films/0", "CC0")
  plain, _ = decode_clip(still.media[0], SIZE, frames=4, per_second=10, span=(0, np.inf), start=0)
  np.testing.assert_array_equal(plain, np.repeat(plain[:1], 4, axis=0))
  [flips] = take(stream([still], **{**VIDEO, "batch_size": 30}), 1)
  flipped = (flips["media"][:, 0] == plain[:, :, ::-1]).all(axis=(1, 2, 3, 4))
  assert (flipped | (flips["media"][:, 0] == plain).all(axis=(1, 2, 3, 4))).all()
  assert 6 <= flipped.sum() <= 24
  [coloured] = take(stream([still], **VIDEO, colour=0.3), 1)
  np.testing.assert_array_equal(coloured["media"], np.repeat(coloured["media"][:, :, :1], 4, axis=2))
  assert len({clip.tobytes() for clip in coloured["media"]}) == 5


def test_crops_are_parts_of_the_picture_of_its_shape(stream):
  x, y = np.meshgrid(np.arange(64, dtype=np.uint8), np.arange(64, dtype=np.uint8))
  ramps = Image.fromarray(np.stack([4 * x, 4 * y, 0 * x], axis=-1))  # red tells the column, green the row
  example = Example(("", "0"), (png(ramps),), "pairs/0", "CC0")
  [batch] = take(stream([example], batch_size=40, crop=0.5), 1)
  image = batch["media"][:, 0, 0].astype(int)
  assert (np.diff(image[..., 0], axis=2) > 0).all()
  assert (np.diff(image[..., 1], axis=1) > 0).all()
  widths, heights = (np.ptp(image[..., channel], axis=(1, 2)) / 252 for channel in (0, 1))
  np.testing.assert_allclose(widths, heights, atol=0.05)
  assert 0.42 < widths.min() < 0.6  # half the picture, less what scaling blurs at its edges
  assert 0.8 < widths.max() <= 1
  small = widths < 0.8
  for channel in (0, 1):  # how much of what is left over lies before the crop
    before = image[small, 0, 0, channel] / 252 / (1 - widths[small])
    assert before.min() < 0.3
    assert before.max() > 0.7


def phis(tokens, image, segments):
  """The previous and the next image of each token of a row, in plain Python."""
  places = [place for place, token in enumerate(tokens) if token == image]
  previous, following = [-1] * len(tokens), [-1] * len(tokens)
  for place in np.flatnonzero(segments):
    before, after = [m for m in places if m <= place], [m for m in places if m >= place]
    previous[place] = places.index(before[-1]) if before else -1
    following[place] = places.index(after[0]) if after else -1
  return previous, following


@pytest.mark.parametrize(
  ("training", "p_next", "least", "most"), [(True, 0.0, 0, 0), (True, 0.5, 30, 70), (True, 1.0, 100, 100)]
)
def test_the_next_image_is_seen_by_a_share_of_whole_pages(stream, pages, training, p_next, least, most):
  read = stream(pages, layout="interleaved", media=2, length=80, batch_size=100, p_next=p_next)
  [batch] = take(read, 1)
  nexts = 0
  for tokens, index, segments in zip(batch["tokens"], batch["media_index"], batch["segments"], strict=True):
    previous, following = phis(tokens.tolist(), read.tokenizer.image, segments)
    assert index.tolist() in (previous, following)
    nexts += index.tolist() == following
  assert least <= nexts <= most


def test_a_literal_marker_in_text_never_becomes_one(stream, picture):
  literal = "<image> is not <EOC> but <BOS> or <|endoftext|>"
  page = Example((literal, literal), (picture(0),), "pages/0", "CC0")
  pair = Example(("", literal), (picture(0),), "pairs/0", "CC0")
  for layout, example, count in (("interleaved", page, 2), ("pairs", pair, 1)):
    read = stream([example], layout=layout, length=200, media=2, training=False)
    [row] = read.rows()
    tokens = row["tokens"][row["segments"] == 1].tolist()
    assert tokens.count(read.tokenizer.image) == 1
    assert tokens.count(read.tokenizer.end_of_chunk) == count
    assert read.tokenizer.decode(tokens) == literal * count
    assert row["media_mask"][:, 0].tolist() == [True, False]


def test_half_of_the_captions_have_a_space_before_them(stream, pairs):
  read = stream(pairs, batch_size=100)
  [batch] = take(read, 1)
  starts = [read.tokenizer.decode(tokens)[0] for tokens in batch["tokens"]]
  assert 30 <= starts.count(" ") <= 70


QUESTION = "Question: {} Answer:"


def evaluated(shot, tokenizer):
  """The tokens of a shot as evaluation has it, a document of its own."""
  special = {Medium: [tokenizer.image], EndOfChunk: [tokenizer.end_of_chunk]}
  pieces = [special.get(type(piece)) or tokenizer.encode(piece.text) for piece in completed(shot)]
  return [tokenizer.bos, *itertools.chain.from_iterable(pieces), tokenizer.eos]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("prompt", "shot"), [("Output:", caption_shot), (QUESTION, question_shot)])
def test_a_prompted_pair_is_the_shot_of_an_evaluation_and_its_answer_alone_is_learnt(
  stream, picture, tokenizer, prompt, shot, training
):
  question, answer = (" what is the thing?", "the cat on the mat. ") if prompt == QUESTION else ("", " The theme ")
  read = stream([Example((question, answer), (picture(0),), "x/0", "CC0")], prompt=prompt, length=80, training=training)
  expected = evaluated(shot(EvaluatedExample("0", Medium(""), (answer.strip(),), question=question.strip())), tokenizer)
  rows = joined(take(read, 1))
  for tokens, weights, segments in zip(rows["tokens"], rows["loss_weights"], rows["segments"], strict=True):
    assert tokens[segments == 1].tolist() == expected
    assert tokenizer.decode(tokens[weights > 0]) == f" {answer.strip()}"
    assert weights.sum() == len(tokenizer.encode(f" {answer.strip()}")) + 2  # <EOC> and <EOS>


def test_a_question_without_an_answer_is_an_empty_row(stream, picture, faults_of):
  whole = Example(("what?", "it"), (picture(0),), "x/0", "CC0")
  lacking = [dataclasses.replace(whole, texts=texts) for texts in (("what?", " "), ("", "it"))]
  read = stream([whole, *lacking], prompt=QUESTION, batch_size=3, length=80)
  [batch] = take(read, 1)
  assert faults_of(batch) == {"empty_text": 2}
  assert (batch["segments"] > 0).any(axis=1).sum() == 1


def test_held_out_pairs_do_not_depend_on_the_seed(stream, pairs):
  settings = dict(training=False, **FULL_COLOUR)
  first, second = (list(stream(pairs, seed=seed, **settings).rows()) for seed in (3, 4))
  for left, right, example in zip(first, second, pairs, strict=True):
    assert_equal(left, right)
    np.testing.assert_array_equal(left["media"][0, 0], decode_image(example.media[0], SIZE))


def test_held_out_films_are_read_from_their_beginning(stream, films):
  settings = dict(VIDEO, frames=2, colour=0.3, training=False)
  first, second = (list(stream(films, seed=seed, **settings).rows()) for seed in (3, 4))
  for left, right, film in zip(first, second, films, strict=True):
    assert_equal(left, right)
    expected, _ = decode_clip(film.media[0], SIZE, frames=2, per_second=10, span=(0, np.inf), start=0)
    np.testing.assert_array_equal(left["media"][0], expected)


def test_held_out_pages_are_random_in_their_window_alone(stream, pages):
  def rows(length, seed):
    settings = dict(layout="interleaved", media=2, p_next=1.0, training=False, **FULL_COLOUR)
    return list(stream(pages, length=length, seed=seed, **settings).rows())

  for left, right, page in zip(rows(200, 3), rows(200, 4), pages, strict=True):  # the whole page is the only window
    assert_equal(left, right)
    np.testing.assert_array_equal(left["media"][:, 0], [decode_image(medium, SIZE) for medium in page.media])
    previous, _ = phis(left["tokens"].tolist(), 260, left["segments"])
    assert left["media_index"].tolist() == previous
  short = zip(rows(24, 3), rows(24, 4), strict=True)
  assert any((left["tokens"] != right["tokens"]).any() for left, right in short)


def test_a_mixture_is_the_same_batch_of_every_stream(stream, pairs, pages):
  streams = dict(pairs=stream(pairs, batch_size=4), pages=stream(pages, layout="interleaved", batch_size=2))
  for host in range(2):
    mixed = list(itertools.islice(mixture(streams, 3, own=[host], parts=2), 2))
    for name, one in streams.items():
      for step, batch in enumerate(take(one, 2, 3, own=[host], parts=2)):
        assert_equal(mixed[step][name], batch)


@pytest.mark.parametrize("start", [0, 1, 2, 5])
def test_a_round_robin_has_every_batch_of_every_stream_in_turns(stream, pairs, pages, start):
  page_stream = stream(pages, layout="interleaved", batch_size=2)
  streams = dict(pairs=stream(pairs, batch_size=4), pages=page_stream, again=stream(pairs, batch_size=2))
  read = list(itertools.islice(round_robin(streams, start), 4))
  for number, batches in enumerate(read, start):
    name, own = ("pairs", "pages", "again")[number % 3], number // 3
    assert list(batches) == [name] and turn(tuple(streams), number) == (name, own)
    assert_equal(batches[name], take(streams[name], 1, own)[0])


@pytest.mark.parametrize(
  ("settings", "faults"),
  [
    (dict(), []),
    (dict(medium="video", frames=8), []),
    (dict(layout="packed"), ["streams.web.layout is 'packed'"]),
    (dict(medium="sound"), ["streams.web.medium is 'sound'"]),
    (dict(frames=2), ["streams.web.frames is 2, but images have 1"]),
    (dict(batch_size=0, media=0), ["streams.web.batch_size is 0", "streams.web.media is 0"]),
    (dict(length=3), ["streams.web.length is 3"]),
    (dict(crop=0.0), ["streams.web.crop is 0.0"]),
    (dict(medium="video", crop=0.5), ["streams.web.crop is 0.5"]),
    (dict(weight=-1.0), ["streams.web.weight is -1.0"]),
    (dict(frames_per_second=-1.0), ["streams.web.frames_per_second is -1.0"]),
    (dict(maximum_skipped=1.5), ["streams.web.maximum_skipped is 1.5"]),
    (dict(prompt="Output:"), []),
    (dict(prompt="Output: "), ["streams.web.prompt is 'Output: '; leave out the spaces"]),
    (dict(prompt="Output:", layout="interleaved"), ["streams.web.prompt is 'Output:', but layout is 'interleaved'"]),
    (dict(source=("a", "b"), shares=(3, 1)), []),
    (dict(source=("a", "b")), []),
    (dict(source=()), ["streams.web.source is empty"]),
    (dict(source=("a", "b"), shares=(3,)), ["streams.web.shares has 1 numbers for 2 sources"]),
    (dict(source=("a", "b"), shares=(3, 0)), ["streams.web.shares is (3, 0)"]),
    (dict(source=("a", "b"), shares=(9999, 2)), ["streams.web.shares is (9999, 2)"]),
  ],
)
def test_all_faults_of_a_stream_are_told_at_once(settings, faults):
  found = check_stream("web", StreamConfig(**{**dict(source="data", layout="pairs"), **settings}))
  assert len(found) == len(faults)
  assert all(line.startswith(fault) for line, fault in zip(found, faults, strict=True))
