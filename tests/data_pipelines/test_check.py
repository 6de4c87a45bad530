"""What is found in sets of records: faults that were planted, and dead pictures against every window there is."""

import io
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_rows import BOS, EOC, IMAGE, paper_row, windows
from PIL import Image, ImageDraw

from data_pipelines.build.fingerprints import folder_hashes
from data_pipelines.inspection.check import Tally, check_records, dead_media, telling_rows
from data_pipelines.inspection.resemblance import EvaluationImages
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig


def scene(seed: int, size: tuple[int, int] = (96, 80), format: str = "PNG") -> bytes:
  """A picture with large shapes, drawn at any size."""
  random = np.random.default_rng(seed)
  image = Image.new("RGB", size, tuple(random.integers(0, 255, 3).tolist()))
  pen = ImageDraw.Draw(image)
  for corners in random.random((6, 4)):
    left, right = sorted(corners[:2] * size[0])
    upper, lower = sorted(corners[2:] * size[1])
    pen.rectangle((left, upper, right, lower), fill=tuple(random.integers(0, 255, 3).tolist()))
  file = io.BytesIO()
  image.save(file, format)
  return file.getvalue()


def page(*texts: str, media: tuple[bytes, ...] | None = None) -> Example:
  pictures = media if media is not None else tuple(scene(seed) for seed in range(len(texts) - 1))
  return Example(texts, pictures, "pages/1", "CC0")


@pytest.fixture
def check(tmp_path, tokenizer):
  """Writes records to shards and checks them: the Tally, and {cause: (record, medium), ...} of all that was found."""

  def run(examples, *, spoil=lambda folder: None, training=True, resemblance=None, most=100, **changes):
    folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
    write_shards(folder, examples, {}, records_per_shard=4)
    spoil(folder)
    config = StreamConfig(**{**dict(source="unused", layout="interleaved", length=64, media=4), **changes})
    stream = Stream(config, Sources((open_shards(folder, 1.0),)), tokenizer, 16, 0, training)
    read = []
    with ThreadPoolExecutor(2) as pool:
      tally = check_records(stream, pool, resemblance, most, read.append)
    assert sum(read) == tally.records == len(examples)
    return tally, {cause: {(f.record, f.medium) for f in faults} for cause, faults in tally.named.items()}

  return run


def test_a_sound_set_has_no_findings(check):
  tally, found = check([page("a", "b", "c"), page("", "b")])
  assert (found, tally.media, tally.unusable) == ({}, 3, 0)


def test_every_planted_fault_is_found_where_it_is(check):
  good = scene(1)
  _, found = check(
    [
      page("a", "b", media=(good[:100],)),
      page("a", "b", "c", media=(good, b"")),
      page(" ", "", media=(good,)),
      page("a", "see <image> here", media=(good,)),
      page("only text", media=()),
      page("a", "b", media=(b"<html>no picture</html>",)),
    ]
  )
  assert found == {
    "broken_image": {(0, 0), (1, 0)},  # the second is record 5, number 1 of its shard
    "missing_medium": {(1, 1)},
    "empty_text": {(2, None)},
    "marker_as_text": {(3, None)},
    "no_media": {(0, None)},
  }


def test_lost_files_and_damaged_records_are_counted_one_by_one(check):
  def spoil(folder: pathlib.Path):
    first, second = sorted(folder.glob("*.array_record"))
    second.unlink()
    data = bytearray(first.read_bytes())
    place = data.index(b"pages/1")
    data[place] ^= 255
    first.write_bytes(data)

  tally, found = check([page("a", "b")] * 6, spoil=spoil)
  assert found["damaged_shard"] >= {(0, None), (1, None)}
  assert tally.unusable == tally.at_fault["damaged_shard"] == 3
  assert tally.hurts("damaged_shard", 0.01) and not tally.hurts("damaged_shard", 0.5)


def test_adjacent_pictures_are_dead_by_what_may_be_drawn(check):
  three = [page("a", "", "", "b")]
  assert check(three, p_next=0.5)[1] == {"dead_medium": {(0, 1)}}
  assert check(three, p_next=0.0)[1] == {"dead_medium": {(0, 0), (0, 1)}}
  assert check(three, p_next=1.0)[1] == {"dead_medium": {(0, 1), (0, 2)}}
  assert check(three, training=False)[1] == {"dead_medium": {(0, 0), (0, 1)}}
  assert check([page("ab", "c", "d", "e")], media=1, p_next=0.0)[1] == {"dead_medium": {(0, 1), (0, 2)}}  # one window


def test_a_pair_with_a_second_picture_never_shows_it(check):
  assert check([page("", "a", ""), page("", "a")], layout="pairs", media=1)[1] == {"dead_medium": {(0, 1)}}


def test_rows_without_loss(check):
  examples = [page("some text", media=()), page("a" * 70, "b"), page("", "b")]
  _, found = check(examples, labels="chunks", length=20)
  assert found["no_loss"] == {(0, None)}
  assert found["some_no_loss"] == {(1, None)}
  assert "no_loss" not in check(examples, length=20)[1]


def test_likes_of_evaluation_images_are_found_at_any_size_and_in_any_format(check, tmp_path):
  pictures = tmp_path / "evaluation"
  pictures.mkdir()
  (pictures / "one.jpg").write_bytes(scene(7, (400, 333), "JPEG"))
  (pictures / "two.png").write_bytes(scene(8))
  resemblance = EvaluationImages(folder_hashes(pictures), near_bits=4).resemblance
  examples = [page("a", "b", "c", media=(scene(1), scene(7, (96, 80)))), page("", "b", media=(scene(9),))]
  tally, found = check(examples, resemblance=resemblance)
  assert found == {"evaluation": {(0, 1)}}
  assert tally.hurts("evaluation", 1.0)


def test_only_the_first_of_each_finding_are_named(check):
  tally, found = check([page("a", "b", media=(b"",))] * 9, most=2)
  assert len(found["missing_medium"]) == 2 and tally.found["missing_medium"] == 9


def test_what_hurts_is_more_than_what_is_tolerated():
  tally = Tally(most=1, records=100, media=200, unusable=3)
  tally.found.update(broken_image=2, empty_text=1, dead_medium=20, marker_as_text=5, no_media=100)
  tally.at_fault.update(broken_image=2, empty_text=1, dead_medium=20, marker_as_text=1, no_media=100)
  assert [cause for cause in tally.found if tally.hurts(cause, 0.01)] == ["broken_image", "empty_text"]
  assert [cause for cause in tally.found if tally.hurts(cause, 0.03)] == []
  tally.found["dead_medium"] = 21
  assert tally.hurts("dead_medium", 0.03)


def learnt(tokens: list, labels: str) -> list[bool]:
  """Which tokens of a row are text that is learnt, in plain Python."""
  text = [token not in (BOS, IMAGE, EOC) for token in tokens]
  if labels == "text":
    return text
  inside, flags = False, []
  for token, is_text in zip(tokens, text, strict=True):
    flags.append(inside and is_text)
    inside = (inside or token == IMAGE) and token != EOC
  return flags


@given(
  st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any),
  st.integers(4, 14),
  st.integers(1, 4),
  st.sampled_from([0.0, 0.5, 1.0]),
  st.sampled_from(["text", "chunks"]),
)
@settings(deadline=None, max_examples=150)
def test_dead_pictures_are_those_that_no_window_shows_to_any_text(tokenizer, lengths, length, slots, p_next, labels):
  """Against all windows of a page under both draws, by the paper's rules."""
  chunks = [["a"] * count for count in lengths]
  config = StreamConfig("unused", "interleaved", length=length, media=slots, p_next=p_next, labels=labels)
  stream = Stream(config, Sources(()), tokenizer, 16, 0, training=True)
  example = Example(tuple("a" * count for count in lengths), (b"x",) * (len(lengths) - 1), "pages/1", "CC0")
  alive = set()
  for first in range(windows(chunks, length)):
    for see_next in [False] * (p_next < 1) + [True] * (p_next > 0):
      tokens, _, phi, kept = paper_row(chunks, length, slots, first, see_next)
      alive |= {kept[slot] for slot, text in zip(phi, learnt(tokens, labels), strict=True) if text and slot >= 0}
  expected = [medium for medium in range(len(lengths) - 1) if medium not in alive]
  assert dead_media(stream, example, list(telling_rows(stream, example))) == expected
