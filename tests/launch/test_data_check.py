import json
import re
import shutil

import pytest
from colours import plain

from data_pipelines.schema import Example, parse
from data_pipelines.shards import open_shards, write_shards
from flamingo_jax.errors import USER_FAULT
from launch.cli import main


@pytest.fixture
def check(capsys):
  """Runs the command: its exit status, and what it prints."""

  def run(*arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["data", "check", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


def findings(printed: str) -> dict[str, dict[str, tuple[int, bool]]]:
  """{set: {cause: (count, whether it hurts)}}."""
  return {
    each["name"]: {cause: (found["count"], found["hurts"]) for cause, found in each["findings"].items()}
    for each in json.loads(printed)["sets"]
  }


def test_a_config_is_checked_as_its_streams_read_it(check, small_data):
  status, printed, error = check(f"--config={small_data.config}", "--json")
  found = findings(printed)
  assert found.pop("pages/train") == dict(broken_image=(1, False), dead_medium=(1, True))  # half may be broken
  assert found.pop("pages/heldout") == dict(broken_image=(1, False), dead_medium=(2, True))  # where p_next is 0
  assert found == {f"{name}/{split}": {} for name in ("captions", "videos") for split in ("train", "heldout")}
  assert status == USER_FAULT
  assert "pages/train: dead pictures: no learnt text ever sees them: 1, 11.11% of media" in error


def test_a_folder_is_checked_without_a_config(check, small_data):
  status, printed, error = check(small_data.folder, "--json")
  assert status == USER_FAULT
  found = findings(printed)
  assert list(found) == ["captions/heldout", "captions/train", "pages/heldout", "pages/train"]
  assert found["pages/train"]["broken_image"] == (1, True)
  assert "pages/train: markers without a picture: corrupt pictures: 1, 25.00% of records" in error


def test_real_videos_are_told_from_pictures(check, quickstart_data):
  status, printed, _ = check(quickstart_data / "streams" / "videos" / "train", "--json")
  [checked] = json.loads(printed)["sets"]
  assert (status, checked["records"], checked["findings"]) == (0, 4, {})


def test_pictures_are_told_from_videos_even_where_the_first_is_broken(check, tmp_path):
  good = plain("red")
  examples = [Example(("", "a"), (medium,), "x/1", "CC0") for medium in (b"", good[:50], b"\xff\xd8\xff\xe0", good)]
  write_shards(tmp_path / "set", examples, {})
  _, printed, _ = check(tmp_path / "set", "--json")
  assert findings(printed)["."] == dict(missing_medium=(1, True), broken_image=(2, True))


def test_the_table_names_records_as_explain_takes_them(check, small_data, capsys):
  _, printed, _ = check(f"--config={small_data.config}", "--stream=pages")
  named = re.findall(r"^  (\S+array_record:\d+), medium (\d)", printed, re.MULTILINE)
  train = small_data.shard("pages")
  assert [(record, medium) for record, medium in named if "train" in record] == [
    (f"{train}:1", "1"),
    (f"{train}:2", "1"),
  ]
  for record, _ in named:
    assert main(["data", "explain", record, f"--config={small_data.config}"]) == 0
  assert "captions" not in printed


def test_what_is_tolerated_can_be_said(check, small_data):
  assert check(small_data.folder / "pages" / "train", "--tolerate=0.5")[0] == USER_FAULT  # dead pictures
  assert check(small_data.folder / "captions", "--tolerate=0")[0] == 0


def test_pictures_of_an_evaluation_are_found(check, quickstart_data, tmp_path):
  shards = open_shards(quickstart_data / "streams" / "captions" / "train")
  examples = [parse(shards[index]) for index in (3, 400, 900)]
  write_shards(tmp_path / "set", examples, {})
  folder = tmp_path / "evaluation"
  folder.mkdir()
  (folder / "seen.png").write_bytes(examples[1].media[0])
  status, printed, error = check(tmp_path / "set", f"--evaluation-images={folder}", "--json")
  [found] = json.loads(printed)["sets"][0]["findings"]["evaluation"]["first"]
  assert (status, found["record"]) == (USER_FAULT, 1)
  assert "near-duplicates of evaluation images" in error


def test_a_lost_shard_is_a_finding_and_not_the_end(check, small_data, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(small_data.folder / "captions", copy)
  [lost] = (copy / "train").glob("*.array_record")
  lost.unlink()
  status, printed, _ = check(copy, "--json")
  assert status == USER_FAULT
  assert findings(printed) == {"heldout": {}, "train": {"damaged_shard": (3, True)}}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give a folder of shards or --config=FILE, and not both"),
    (["{folder}", "--config={config}"], "and not both"),
    (["{folder}/nothing"], "nothing holds no manifest.json"),
    (["{folder}", "--stream=pages"], "--stream goes with --config"),
    (["--config={config}", "--stream=sounds"], "--stream is 'sounds'"),
    (["--config={config}", "--tolerate=2"], "--tolerate is 2.0; it is a share"),
    (["{folder}/pages", "--evaluation-images={folder}/pages"], "holds no picture"),
  ],
)
def test_what_is_asked_wrongly_is_said_in_one_message(check, small_data, arguments, message):
  names = dict(folder=small_data.folder, config=small_data.config)
  status, printed, error = check(*(argument.format(**names) for argument in arguments))
  assert (status, printed) == (USER_FAULT, "")
  assert re.search(message, error)
