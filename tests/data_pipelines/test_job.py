import base64
import dataclasses
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import socket
import time

import numpy as np
import pytest
from array_record.python import array_record_module as array_record
from PIL import Image

from data_pipelines.build import job, shard_files
from data_pipelines.build.job import build
from data_pipelines.build.plan import WORK, open_plan
from data_pipelines.build.progress import count_parts
from data_pipelines.build.settings import BuildSettings
from data_pipelines.build.texts import TextRules
from data_pipelines.shards import open_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError

ENGLISH = "The cat sat on the mat and looked out of the window at the rain that fell on the garden."
GERMAN = "Die Katze saß auf der Matte und sah aus dem Fenster in den Regen, der auf den Garten fiel."


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def patches(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
  soft = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  return Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
  """A folder of twelve pages of two pictures; the eighth is like the second, and all show one logo."""
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "logo.png").write_bytes(encoded(patches(99)))
  for number in range(12):
    (folder / f"{number}.jpg").write_bytes(encoded(patches(number), "JPEG"))
    shown = 2 if number == 8 else number
    (folder / f"{number:02d}.html").write_text(f'Page {shown}.<img src="{shown}.jpg">Text.<img src="logo.png">The end.')
  return folder


def settings_of(root, **settings) -> BuildSettings:
  return BuildSettings("pages", str(root), "mine", **{"documents_per_shard": 4, "most_repeats": 10, **settings})


def digests(folder: pathlib.Path) -> dict[str, str]:
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_any_number_of_workers_writes_the_same_bytes(root, tmp_path):
  manifests = [build(settings_of(root), tmp_path / f"{workers}", workers=workers) for workers in (1, 2)]
  assert manifests[0] == manifests[1]
  assert digests(tmp_path / "1") == digests(tmp_path / "2")
  assert len(manifests[0]["shards"]) == 3
  assert manifests[0]["dropped"] == {"documents": {"duplicate": 1}, "media": {"repeated": 11, "with_document": 2}}


def test_training_reads_what_was_built(built, root, tmp_path, tokenizer):
  manifest, examples = built("pages", root)
  config = StreamConfig(source="unused", layout="interleaved", batch_size=2, length=64, media=2)
  stream = Stream(config, Sources((open_shards(tmp_path / "out"),)), tokenizer, 16, 0, True)
  batch = next(iter(stream.batches(0)))
  assert manifest["records"] == len(examples) == 11
  assert batch["media"].shape == (2, 2, 1, 16, 16, 3) and batch["loss_weights"].any(axis=1).all()


# Filters


def test_every_filter_drops_its_own_and_counts_it(built, tmp_path):
  """Pairs: beside each one that is dropped stands one that is just good enough."""
  seeds = itertools.count(100)
  rows = []

  def pair(name: str, picture: bytes | None = None, text: str = ENGLISH, **more) -> None:
    data = encoded(patches(next(seeds))) if picture is None else picture
    rows.append({"image": f"data:;base64,{base64.b64encode(data).decode()}", "caption": f"{text} {name}", **more})

  def sized(width: int, height: int) -> bytes:
    return encoded(patches(next(seeds), (width, height)))

  (tmp_path / "evaluation").mkdir()
  patches(7, (400, 300)).save(tmp_path / "evaluation" / "seen.png")
  exact, once = encoded(patches(1)), sized(200, 150)
  pair("kept: the smallest side", sized(64, 100))
  pair("dropped: too_small", sized(63, 100))
  pair("kept: the longest", sized(192, 64))
  pair("dropped: aspect_ratio", sized(193, 64))
  pair("dropped: tracking_pixel", sized(3, 3))
  pair("dropped: single_colour", encoded(Image.new("RGB", (80, 80), "red")))
  pair("dropped: svg", b"<svg xmlns='x'/>")
  pair("dropped: broken", exact[:2000])
  pair("dropped: unsupported_format", encoded(patches(2), "PPM"))
  pair("dropped: too_large", encoded(Image.new("1", (30_000, 30_000))))
  pair("kept: as alike as asked", similarity=0.25)
  pair("dropped: similarity", similarity=0.24)
  pair("dropped: evaluation", encoded(patches(7, (200, 150)), "JPEG", quality=60))
  pair("dropped: language", text=GERMAN)
  pair("dropped: long_text", text=ENGLISH * 10)
  pair("the same text, kept", exact)
  pair("the same text, kept", encoded(patches(1, (320, 240)), "JPEG"))  # dropped: a near duplicate
  pair("the same text, kept", exact)  # dropped: an exact one
  pair("another text, kept", exact)
  pair("the same text, kept", once)
  rows.append({**rows[0], "caption": "No words"})  # short_text
  rows.append({**rows[0], "caption": ""})  # empty_text
  rows.append({**rows[0], "image": "gone.png"})  # missing
  rows.append({**rows[0], "image": "https://x.org/a.png"})  # remote
  path = tmp_path / "rows.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  manifest, examples = built(
    "pairs",
    path,
    text=TextRules(shortest=9, longest=500, fewest_words=3, languages=("en",)),
    minimum_similarity=0.25,
    evaluation_images=str(tmp_path / "evaluation"),
  )
  dropped = [row["caption"].split("dropped: ")[1] for row in rows if "dropped: " in row["caption"]]
  dropped += ["short_text", "empty_text", "missing", "remote", "duplicate", "duplicate"]
  assert manifest["dropped"]["documents"] == {cause: dropped.count(cause) for cause in dropped}
  kept = [example.texts[1].removeprefix(ENGLISH) for example in examples]
  assert kept[:3] == [" kept: the smallest side", " kept: the longest", " kept: as alike as asked"]
  assert kept[3:] == [" the same text, kept", " another text, kept", " the same text, kept"]


def few_words_are_alike(pairs: list[tuple[bytes, str]]) -> list[float]:
  """Stands for a model; at the top of a module, so that it can be sent to workers."""
  return [1 / len(text.split()) for _, text in pairs]


def test_a_model_may_say_how_alike_picture_and_text_are(tmp_path):
  texts = ["one two", "one two three four", "one two three four five"] * 15
  rows = [{"image": f"{number}.png", "caption": text} for number, text in enumerate(texts)]
  for number in range(len(texts)):
    patches(number).save(tmp_path / f"{number}.png")
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  settings = BuildSettings("pairs", str(tmp_path / "rows.jsonl"), "mine", minimum_similarity=0.25)
  manifest = build(settings, tmp_path / "out", score=few_words_are_alike)
  assert manifest["records"] == 30
  assert manifest["dropped"] == {"documents": {"similarity": 15}, "media": {"similarity": 15}}


def test_pages_go_for_too_few_or_too_many_pictures(built, tmp_path):
  root = tmp_path / "in"
  root.mkdir()
  for number in range(6):
    (root / f"{number}.png").write_bytes(encoded(patches(number)))
  (root / "dot.gif").write_bytes(encoded(Image.new("P", (1, 1)), "GIF"))

  def page(name: str, *pictures) -> None:
    (root / f"{name}.html").write_text("".join(f'Text.<img src="{picture}">' for picture in pictures) + "End.")

  page("one", "5.png")
  page("two", "0.png", "1.png")
  page("three", "2.png", "3.png", "4.png")
  page("four", "0.png", "1.png", "2.png", "3.png")
  page("none", "dot.gif", "missing.png")
  page("nothing")
  (root / "wordless.html").write_text('<img src="0.png"><img src="1.png">')
  manifest, examples = built("pages", root, fewest_pictures=2, most_pictures=3)
  assert [example.source for example in examples] == ["mine/three.html", "mine/two.html"]
  assert manifest["dropped"] == {
    "documents": {"no_picture": 2, "empty_text": 1, "few_pictures": 1, "many_pictures": 1},
    "media": {"with_document": 7, "missing": 1, "tracking_pixel": 1},
  }


def test_pages_that_lose_pictures_to_others_are_judged_again(built, root):
  (root / "two.html").write_text('Two pictures:<img src="10.jpg">and<img src="11.jpg">of its own.')
  manifest, [example] = built("pages", root, most_repeats=10, fewest_pictures=2)
  assert example.source == "mine/two.html"
  assert manifest["dropped"]["documents"] == {"few_pictures": 11, "duplicate": 1}


# Restart


def visible(output: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Shards as they lie there, whole: their inodes and times. Whatever looks complete is read to its end."""
  found = {}
  for path in output.glob("*.array_record"):
    reader = array_record.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    records = reader.read_all()
    lines = (output / "index" / f"{path.stem}.jsonl").read_text().splitlines()
    assert len(records) == len(lines) > 0
    found[path.name] = path.stat().st_ino, path.stat().st_mtime_ns
  return found


def finished(output: pathlib.Path) -> dict[str, tuple[int, int]]:
  numbers = {path.stem for path in (output / WORK / "shards").glob("[0-9]*.json")}
  return {name: state for name, state in visible(output).items() if name.split("-")[1] in numbers}


@pytest.fixture(scope="module")
def processes():
  """Starts processes that have all imports behind them."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["data_pipelines.build.job", "data_pipelines.build.readers.html"])
  return context


def test_a_build_stopped_between_any_two_files_goes_on(root, tmp_path, monkeypatch):
  """What a kill would leave is copied before every rename, and once within each shard; a build goes on from there."""
  settings, output, copies = settings_of(root, documents_per_shard=6), tmp_path / "whole", []

  def with_copy(function, every: int):
    calls = itertools.count(1)

    def copy_and_call(*arguments):
      if next(calls) % every == 0:
        copies.append(shutil.copytree(output, tmp_path / f"copy{len(copies)}"))
      return function(*arguments)

    return copy_and_call

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "replace", with_copy(pathlib.Path.replace, every=1))
    patched.setattr(shard_files, "adjacent_media", with_copy(shard_files.adjacent_media, every=4))
    whole = build(settings, output)
  assert len(copies) == 1 + 2 * 2 + 2 * 3 + 1 + 2  # plan; candidates; shards, each with index; manifest; records
  for copy in copies:
    done = finished(copy)
    assert not (copy / "manifest.json").exists()
    assert build(settings, copy) == whole
    assert done.items() <= visible(copy).items()  # what was finished was not written again
    assert digests(copy) == digests(output)


def test_a_build_killed_at_any_moment_goes_on(root, tmp_path, processes):
  settings, output = settings_of(root, documents_per_shard=1), tmp_path / "killed"
  began = time.monotonic()
  whole = build(settings, tmp_path / "whole")
  seconds, moments = time.monotonic() - began, random.Random(time.time_ns())
  done = {}
  for _ in range(3):
    process = processes.Process(target=build, args=(settings, output))
    process.start()
    process.join(moments.uniform(0.2, 1) * seconds)
    process.kill()
    process.join()
    assert done.items() <= visible(output).items()
    done = finished(output)
  build(settings, output)
  assert done.items() <= visible(output).items()
  assert digests(output) == digests(tmp_path / "whole")
  assert whole["records"] == 11


def test_a_complete_build_is_left_alone(root, tmp_path):
  settings = settings_of(root)
  first = build(settings, tmp_path / "out")
  before = visible(tmp_path / "out")
  assert build(settings, tmp_path / "out") == first
  assert visible(tmp_path / "out") == before
  with pytest.raises(UserError, match=r"holds a build of something else:\n  settings.fewest_pictures: 1 there, 2 now"):
    build(settings_of(root, fewest_pictures=2), tmp_path / "out")
  (tmp_path / "out" / "pages-00001-of-00003.array_record").unlink()
  with pytest.raises(UserError, match=r"pages-00001-of-00003.array_record is not as it was built"):
    build(settings, tmp_path / "out")


# Bad input


def test_a_complete_build_whose_manifest_is_damaged_is_named(root, tmp_path):
  manifest = build(settings_of(root), tmp_path / "out")
  del manifest["shards"][1]["file"]
  (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=r"out/manifest.json: shard 1 lacks 'file'"):
    build(settings_of(root), tmp_path / "out")


@pytest.mark.parametrize("text", ['{"build": ', "[]", "{}", '{"build": 5, "files": [], "parts": []}', '{"files": [5]}'])
def test_a_damaged_plan_is_named(root, tmp_path, text):
  path = tmp_path / "out" / WORK / "plan.json"
  path.parent.mkdir(parents=True)
  path.write_text(text)
  with pytest.raises(UserError, match=r"out/.build/plan.json is damaged .*Remove .*out and build again"):
    open_plan(settings_of(root), tmp_path / "out")
  assert count_parts(tmp_path / "out") is None


def test_a_build_goes_on_only_as_it_was_begun(root, tmp_path):
  open_plan(settings_of(root), tmp_path / "out")
  assert len(open_plan(settings_of(root), tmp_path / "out").parts) == 3
  with pytest.raises(UserError, match=r"settings.near_bits: 4 there, 5 now"):
    open_plan(settings_of(root, near_bits=5), tmp_path / "out")
  os.utime(root / "03.html")
  with pytest.raises(UserError, match=r"was begun before 03.html was changed last"):
    open_plan(settings_of(root), tmp_path / "out")
  (root / "more.html").write_text("more")
  with pytest.raises(UserError, match=r"input_files: 25 there, 26 now"):
    open_plan(settings_of(root), tmp_path / "out")


def test_broken_input_stops_a_build_before_any_shard_is_written(root, tmp_path):
  (root / "bad.html").write_bytes(b"\xff\xff")
  (root / "3.jpg").write_bytes((root / "3.jpg").read_bytes()[:900])
  output = tmp_path / "out"
  message = (
    r"2 of 37 documents and media are broken, 5.4%; --most-errors=0.05 allows 5.0%:\n"
    r"  broken: 1, such as 03.html \(3.jpg\)\n  broken_page: 1, such as bad.html \('utf-8' codec"
  )
  with pytest.raises(UserError, match=message):
    build(settings_of(root), output, most_errors=0.05)
  assert visible(output) == {} and not (output / "manifest.json").exists()
  read = {path: path.stat().st_ino for path in (output / WORK / "candidates").glob("*.json")}
  os.link(min(read), tmp_path / "kept")  # so that no other file can have its inode
  manifest = build(settings_of(root), output, most_errors=0.06)
  assert manifest["errors"]["broken"]["records"] == [{"record": "03.html", "detail": "3.jpg"}]
  errors = [json.loads(line) for line in (output / "errors.jsonl").read_text().splitlines()]
  assert {(error["cause"], error["record"]) for error in errors} == {("broken", "03.html"), ("broken_page", "bad.html")}
  assert len(read) == 4


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(input="none"), r"--input: .*none does not exist"),
    (dict(input="empty"), r"holds nothing to build pages from; read are .html, .htm"),
    (dict(input="notes.txt"), r"notes.txt holds nothing to build pages from"),
    (dict(pictures="none"), r"--pictures: .*none is no folder"),
    (dict(evaluation_images="none"), r"--evaluation-images: .*none is no folder"),
    (dict(evaluation_images="empty"), r"empty holds no picture"),
    (dict(text=TextRules(languages=("english",))), r"--languages: english cannot be told"),
    (dict(output="in/out"), r"--output: .* is inside the input"),
    (dict(output="full"), r"--output: .*full holds files, but no build that was begun"),
    (dict(output="notes.txt"), r"notes.txt"),
    (dict(text=TextRules(shortest=100)), r"nothing is kept of 12 pages.\nDropped, by cause: documents short_text 12"),
  ],
)
def test_what_is_wrong_is_said(root, tmp_path, change, message):
  for folder in ("empty", "full"):
    (tmp_path / folder).mkdir()
  (tmp_path / "full" / "file").touch()
  (tmp_path / "notes.txt").touch()
  change = {name: str(tmp_path / value) if isinstance(value, str) else value for name, value in change.items()}
  output = pathlib.Path(change.pop("output", tmp_path / "out"))
  with pytest.raises(UserError, match=message):
    build(dataclasses.replace(settings_of(root), **change), output)


def test_a_runner_that_does_not_exist_is_named(root, tmp_path):
  with pytest.raises(UserError, match=r"--runner=Nobody: .*DirectRunner"):
    build(settings_of(root), tmp_path / "out", runner="Nobody")


def test_a_job_server_that_does_not_answer_is_named_before_anything_is_written(root, tmp_path, monkeypatch):
  monkeypatch.setattr(job, "LONGEST_CALL", 0.2)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  options = [f"--job_endpoint={address}", "--environment_type=LOOPBACK"]
  with pytest.raises(UserError, match=f"--job_endpoint={address}: no job server answers there"):
    build(settings_of(root), tmp_path / "out", runner="PortableRunner", pipeline_options=options)
  assert not (tmp_path / "out").exists()
