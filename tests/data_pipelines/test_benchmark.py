"""The benchmark out of captioned pictures, against the records themselves."""

import collections
import hashlib
import itertools
import json
import pathlib

import pytest

from data_pipelines.build.benchmark import write_benchmark
from data_pipelines.schema import Example, parse
from data_pipelines.shards import open_shards, write_shards
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.tasks import read_split

SPLITS = ("train", "heldout")
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tiff"}


@pytest.fixture
def captions(tmp_path, picture):
  """Shards of twelve pictures a split, in five formats, and of records that show one of them again."""

  def records(split: str, first: int):
    for number, format in zip(range(first, first + 12), itertools.cycle(FORMATS)):
      yield Example(("", f" Figure {number} "), (picture(number, 20, 20, format),), f"{split}/{number}", "CC0-1.0")
    for caption in ("Another name", "another NAME", f"Figure {first + 1}", f"Figure {first}"):
      yield Example((caption, ""), (picture(first, 20, 20, "PNG"),), f"{split}/again", "MIT")

  for split, first in (("train", 0), ("heldout", 100)):
    write_shards(tmp_path / "captions" / split, records(split, first), {}, records_per_shard=5)
  return tmp_path / "captions"


def annotations(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "captions.jsonl").read_text("utf-8").splitlines()]


def by_picture(captions: pathlib.Path, split: str) -> dict[bytes, list[str]]:
  """What the records of a split say of each picture, each caption once."""
  shards, found = open_shards(captions / split), collections.defaultdict(dict)
  for example in (parse(shards[index]) for index in range(len(shards))):
    found[example.media[0]][" ".join(example.texts).strip()] = None
  return {encoded: list(said) for encoded, said in found.items()}


def everything(folder: pathlib.Path) -> dict[str, tuple]:
  """Each file with what it holds, and what changes when it is written anew."""
  return {
    str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_every_picture_is_there_once_with_all_that_the_records_say_of_it(captions, tmp_path):
  assert write_benchmark(captions, tmp_path / "out", SPLITS) == dict(train=12, heldout=12)
  rows = annotations(tmp_path / "out")
  assert len({row["id"] for row in rows}) == len(rows) == 24
  for split in SPLITS:
    found = {(tmp_path / "out" / row["image"]).read_bytes(): row for row in rows if row["split"] == split}
    assert {encoded: row["captions"] for encoded, row in found.items()} == by_picture(captions, split)
    assert [row["source"] for row in found.values()] == [f"{split}/{row['captions'][0][7:]}" for row in found.values()]
    assert {row["license"] for row in found.values()} == {"CC0-1.0"}
  files = {path for path in (tmp_path / "out").rglob("*.*") if path.name != "captions.jsonl"}
  assert files == {tmp_path / "out" / row["image"] for row in rows}


def test_a_file_is_called_by_what_it_is(captions, tmp_path, picture):
  write_benchmark(captions, tmp_path / "out", SPLITS)
  suffixes = {row["captions"][0]: pathlib.Path(row["image"]).suffix for row in annotations(tmp_path / "out")}
  assert [suffixes[f"Figure {number}"] for number in range(5)] == list(FORMATS.values())


def test_a_jpeg_with_a_second_picture_behind_it_is_called_a_jpeg(tmp_path, phone_picture):
  write_shards(tmp_path / "captions" / "train", [Example(("", "A phone's"), (phone_picture,), "x", "")], {})
  write_benchmark(tmp_path / "captions", tmp_path / "out", ["train"])
  [row] = annotations(tmp_path / "out")
  assert pathlib.Path(row["image"]).suffix == ".jpg"


def test_of_eight_candidates_the_pictures_own_stands_at_its_label_and_none_of_the_others_is_its_own(captions, tmp_path):
  write_benchmark(captions, tmp_path / "out", SPLITS)
  rows = annotations(tmp_path / "out")
  said = {split: {text for texts in by_picture(captions, split).values() for text in texts} for split in SPLITS}
  for row in rows:
    others = [text for place, text in enumerate(row["candidates"]) if place != row["label"]]
    assert row["candidates"][row["label"]] == row["captions"][0]
    assert len({text.lower() for text in row["candidates"]}) == 8
    assert not {text.lower() for text in others} & {text.lower() for text in row["captions"]}
    assert set(others) <= said[row["split"]]
  assert len({row["label"] for row in rows}) > 4  # its place tells nothing
  assert len({frozenset(row["candidates"]) for row in rows}) == 24


def test_the_same_shards_give_the_same_files_and_whole_ones_are_left_alone(captions, tmp_path):
  write_benchmark(captions, tmp_path / "first", SPLITS)
  write_benchmark(captions, tmp_path / "second", SPLITS)
  before = everything(tmp_path / "first")
  assert {name: held[0] for name, held in before.items()} == {
    name: held[0] for name, held in everything(tmp_path / "second").items()
  }
  write_benchmark(captions, tmp_path / "first", SPLITS)
  assert everything(tmp_path / "first") == before


def test_what_is_lost_or_damaged_is_written_again_and_nothing_else(captions, tmp_path):
  folder = tmp_path / "out"
  write_benchmark(captions, folder, SPLITS)
  (folder / "mine.txt").write_text("mine")
  before = everything(folder)
  first, second = sorted((folder / "train").iterdir())[:2]
  first.unlink()
  second.write_bytes(second.read_bytes()[:-1])
  (folder / "captions.jsonl").unlink()
  write_benchmark(captions, folder, SPLITS)
  after = everything(folder)
  assert {name: held[0] for name, held in after.items()} == {name: held[0] for name, held in before.items()}
  written = {name for name in after if after[name] != before[name]}
  assert written == {"captions.jsonl", f"train/{first.name}", f"train/{second.name}"}


def test_a_writing_that_is_stopped_leaves_no_annotations_that_name_what_is_not_there(captions, tmp_path, monkeypatch):
  calls = itertools.count()

  def stopped(path, write, partial=None):
    if next(calls) == 15:
      raise KeyboardInterrupt
    return write_whole(path, write, partial)

  from data_pipelines.build import benchmark

  write_whole = benchmark.write_whole
  monkeypatch.setattr(benchmark, "write_whole", stopped)
  with pytest.raises(KeyboardInterrupt):
    write_benchmark(captions, tmp_path / "out", SPLITS)
  assert not (tmp_path / "out" / "captions.jsonl").exists()
  before = everything(tmp_path / "out")
  assert len(before) == 15
  write_benchmark(captions, tmp_path / "out", SPLITS)
  assert before.items() <= everything(tmp_path / "out").items()
  assert len(annotations(tmp_path / "out")) == 24


@pytest.mark.parametrize("task", ["pictures", "matching"])
def test_what_is_written_is_read_as_a_benchmark(captions, tmp_path, task):
  write_benchmark(captions, tmp_path / "out", SPLITS)
  for split in SPLITS:
    examples = read_split(task, tmp_path / "out", split).examples
    expected = {hashlib.sha256(encoded).hexdigest(): texts for encoded, texts in by_picture(captions, split).items()}
    found = {
      hashlib.sha256(pathlib.Path(each.medium.path).read_bytes()).hexdigest(): list(each.references)
      for each in examples
    }
    assert found == expected
    assert task == "pictures" or all(each.options[each.label] == each.references[0] for each in examples)


def test_a_split_of_few_pictures_has_few_candidates_and_of_one_none(tmp_path, picture):
  for split, count in (("train", 3), ("heldout", 1)):
    pairs = [Example(("", f"Figure {number}"), (picture(number),), "s/x", "l") for number in range(count)]
    write_shards(tmp_path / "captions" / split, pairs, {})
  write_benchmark(tmp_path / "captions", tmp_path / "out", SPLITS)
  *several, alone = annotations(tmp_path / "out")
  assert [sorted(row["candidates"]) for row in several] == [["Figure 0", "Figure 1", "Figure 2"]] * 3
  assert "candidates" not in alone and "label" not in alone


def test_a_record_that_shows_no_picture_is_named(tmp_path, picture):
  pairs = [Example(("", f"{number}"), (media,), "s/x", "l") for number, media in enumerate((picture(0), b"no picture"))]
  write_shards(tmp_path / "captions" / "train", pairs, {})
  with pytest.raises(UserError, match=r"array_record:1 shows no picture"):
    write_benchmark(tmp_path / "captions", tmp_path / "out", ("train",))


def test_a_disk_that_refuses_is_a_user_error(captions, tmp_path):
  (tmp_path / "out").write_text("a file, where the folder should be")
  with pytest.raises(UserError, match=r"out: the benchmark could not be written"):
    write_benchmark(captions, tmp_path / "out", SPLITS)
