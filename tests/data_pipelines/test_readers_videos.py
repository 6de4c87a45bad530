"""Every layout of captioned videos, from files as they are found to shards and back."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.build.candidates import Judgement
from data_pipelines.build.inputs import Part, Source, read_part
from data_pipelines.build.interleaving import Fault
from data_pipelines.build.readers.clips import clip
from data_pipelines.build.settings import BuildSettings, Columns


@pytest.fixture(scope="session")
def video(encode_film):
  """Makes the bytes of an MP4 of a second, of soft patches; another seed, another video."""

  def make(seed: int = 0, size: tuple[int, int] = (96, 80)) -> bytes:
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return encode_film([Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)] * 10)

  return make


@pytest.fixture
def root(tmp_path):
  (tmp_path / "in" / "films").mkdir(parents=True)
  return tmp_path / "in"


def test_rows_name_videos_and_clips(built, root, video):
  (root / "films" / "a.mp4").write_bytes(video(1))
  (root / "b.mp4").write_bytes(video(2))
  rows = [
    {"video": "films/a.mp4", "caption": "The first half.", "start": 0, "end": 0.5, "license": "CC-BY-4.0"},
    {"video": "films/a.mp4", "caption": "The second half.", "start": 0.5},
    {"path": "b.mp4", "text": "All of it.", "start": None, "end": ""},
  ]
  (root / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
  manifest, examples = built("videos", root)
  assert [example.texts for example in examples] == [("", row.get("caption") or row["text"]) for row in rows]
  assert [example.media[0] for example in examples] == [video(1), video(1), video(2)]
  assert [(e.clip_start, e.clip_end) for e in examples] == [(0.0, 0.5), (0.5, None), (0.0, None)]
  assert [example.license for example in examples] == ["CC-BY-4.0", "unknown", "unknown"]
  assert manifest["media"] == 3


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_of_videos_may_call_their_fields_anything(built, root, video, form):
  (root / "films" / "a.mp4").write_bytes(video(1))
  if form == "csv":
    (root / "films.csv").write_text("film,says,end\nfilms/a.mp4,A cat,0.5\n")
  else:
    table = pyarrow.Table.from_pylist([{"film": video(1), "says": "A cat", "end": 0.5}])
    pyarrow.parquet.write_table(table, root / "films.parquet")
  _, [example] = built("videos", root, columns=Columns(video="film", text="says"))
  assert (example.texts[1], example.clip_end, example.media[0]) == ("A cat", 0.5, video(1))


def test_videos_are_read_as_hugging_face_writes_them(built, root, video):
  (root / "films" / "a.mp4").write_bytes(video(1))
  rows = [
    {"video": {"bytes": None, "path": "films/a.mp4"}, "caption": "A cat"},
    {"video": {"bytes": video(2), "path": "elsewhere.mp4"}, "caption": "A dog"},
  ]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "films.parquet")
  _, examples = built("videos", root)
  assert [(example.texts[1], example.media[0]) for example in examples] == [("A cat", video(1)), ("A dog", video(2))]


@pytest.mark.parametrize(
  ("row", "wanted"),
  [
    ({"video": {"path": None}, "caption": "A film"}, "video"),
    ({"video": 3, "caption": "A film"}, "video"),
    ({"video": {"path": "a.mp4"}, "caption": 3}, "caption"),
  ],
)
def test_the_field_that_is_lacking_is_named(root, row, wanted):
  source = Source(root, BuildSettings("videos", str(root), "mine"), lambda name: None)
  assert clip("row 0", row, source, root) == Fault(
    "bad_document", "row 0", f"no {wanted} among its fields video, caption"
  )


def test_a_webdataset_sample_is_a_video(built, root, video):
  with tarfile.open(root / "00000.tar", "w") as tar:
    for name, data in {
      "a.mp4": video(1),
      "a.txt": b"A cat.",
      "b.webm": video(2),
      "b.json": b'{"caption": "B"}',
    }.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  _, examples = built("videos", root)
  assert [example.texts[1] for example in examples] == ["A cat.", "B"]
  assert [example.media[0] for example in examples] == [video(1), video(2)]


def test_like_videos_with_the_same_text_are_kept_once(built, root, video):
  rows = []
  for name, seed, size in (("a", 1, (96, 80)), ("b", 1, (128, 96)), ("c", 2, (96, 80))):
    (root / f"{name}.mp4").write_bytes(video(seed, size))
    rows.append({"video": f"{name}.mp4", "caption": "A film"})
  (root / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
  manifest, examples = built("videos", root)
  assert [example.media[0] for example in examples] == [video(1), video(2)]
  assert manifest["dropped"]["documents"] == {"duplicate": 1}


@pytest.mark.parametrize(
  ("row", "cause"),
  [
    ({"video": "a.mp4", "caption": "A film", "start": 5}, "empty_video"),
    ({"video": "a.mp4", "caption": "A film", "start": 0.5, "end": 0.2}, "bad_document"),
    ({"video": "a.mp4", "caption": "A film", "start": -1}, "bad_document"),
    ({"video": "a.mp4", "caption": "A film", "end": "soon"}, "bad_document"),
    ({"video": "a.mp4", "caption": "A film", "end": float("nan")}, "bad_document"),
    ({"video": "a.mp4"}, "bad_document"),
    ({"caption": "A film"}, "bad_document"),
    ({"video": "cut.mp4", "caption": "A film"}, "broken_video"),
    ({"video": "text.mp4", "caption": "A film"}, "broken_video"),
    ({"video": "../../etc/passwd", "caption": "A film"}, "outside_folder"),
  ],
)
def test_what_is_wrong_with_a_video_is_named(root, video, row, cause):

  (root / "a.mp4").write_bytes(video())
  (root / "cut.mp4").write_bytes(video()[:2000])
  (root / "text.mp4").write_text("no film")
  (root / "videos.jsonl").write_text(json.dumps(row))
  settings = BuildSettings("videos", str(root), "mine")
  judgement = Judgement(settings, np.zeros(0, np.uint64))
  part = Part(0, "clips", ("videos.jsonl",), 0, (root / "videos.jsonl").stat().st_size)
  assert list(judgement.candidates(read_part(part, Source(root, settings, lambda name: None)))) == []
  [(found, record, _)] = judgement.tally.errors
  assert found == cause and record == "videos.jsonl, byte 0"
