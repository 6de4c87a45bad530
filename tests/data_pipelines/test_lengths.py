"""Lengths that could not be counted: nothing is planned from them, and nothing of them stays."""

import itertools

import numpy as np
import pytest

from data_pipelines import lengths
from data_pipelines.schema import Example
from data_pipelines.shards import Shards, open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError

LAYOUTS = ("pairs", "text")


@pytest.fixture
def folder(tmp_path, picture):
  """Three shards of eight, eight and four captioned pictures."""
  examples = [Example(("", f"{i}: " + "the " * (i % 7)), (picture(i, 12, 10),), f"pairs/{i}", "CC0") for i in range(20)]
  write_shards(tmp_path / "shards", examples, {}, records_per_shard=8)
  return tmp_path / "shards"


def packed(folder, tokenizer, layout) -> Stream:
  """The stream as a start finds it, which tolerates that a shard is lost."""
  sources = Sources((open_shards(folder, tolerated=0.5),))
  config = StreamConfig("unused", layout, length=48, media=4, pack=True, batch_size=4)
  return Stream(config, sources, tokenizer, 8, seed=3, training=True)


def tokens(stream, count=6):
  """Of the first batches."""
  return [batch["tokens"] for batch in itertools.islice(stream.batches(), count)]


def lose(folder, number):
  path = sorted(folder.glob("*.array_record"))[number]
  path.rename(path.with_suffix(".away"))
  return path


def flip_a_bit(folder):
  path = min(folder.glob("*.array_record"))
  data = bytearray(path.read_bytes())
  data[data.index(b"3: the ")] ^= 1
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("harm", [lambda folder: lose(folder, 1), flip_a_bit])
def test_nothing_is_planned_before_all_records_could_be_read(folder, tokenizer, layout, harm):
  path = harm(folder)
  stream = packed(folder, tokenizer, layout)
  with pytest.raises(UserError) as error:  # and not what TensorFlow would make of it
    stream.batches()
  assert str(path) in str(error.value) and "pack=False" in str(error.value)
  assert not list(folder.glob("*lengths-*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_an_error_that_passes_rows_are_those_of_a_run_that_saw_none(folder, tokenizer, layout, monkeypatch):
  read, refused = Shards.__getitem__, []

  def refuse_once(shards, index):
    if index == 11 and not refused:
      refused.append(index)
      raise UserError("Input/output error")
    return read(shards, index)

  stream = packed(folder, tokenizer, layout)
  monkeypatch.setattr(Shards, "__getitem__", refuse_once)
  with pytest.raises(UserError, match="Input/output error"):
    stream.batches()
  found = tokens(packed(folder, tokenizer, layout))
  monkeypatch.undo()
  [path] = folder.glob("lengths-*.npy")
  path.unlink()
  np.testing.assert_array_equal(found, tokens(packed(folder, tokenizer, layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_is_lost_after_they_were_counted_changes_no_other_row(folder, tokenizer, layout):
  whole = tokens(packed(folder, tokenizer, layout))
  lose(folder, 2)
  found = tokens(packed(folder, tokenizer, layout))
  gone = np.equal(found, 0) & np.not_equal(whole, 0)
  assert gone.any() and np.any(found)
  np.testing.assert_array_equal(np.where(gone, 0, whole), found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_record_that_was_read_and_is_bad_is_counted_as_none(folder, tokenizer, layout, monkeypatch):
  read = Shards.__getitem__
  monkeypatch.setattr(Shards, "__getitem__", lambda shards, index: b"bad" if index == 5 else read(shards, index))
  found = packed(folder, tokenizer, layout).lengths(open_shards(folder))
  assert np.flatnonzero(found == 0).tolist() == [5]
  [path] = folder.glob("lengths-*.npy")
  np.testing.assert_array_equal(lengths.kept_lengths(path, 20), found)
