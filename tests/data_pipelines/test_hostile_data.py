"""Data that was made to do harm: it opens no other file, leaves no folder, and takes no memory it does not have."""

import collections
import io
import itertools
import json
import os
import pathlib
import tarfile
import zipfile

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import fetch, html, pages, pictures
from data_pipelines.build.fetch import read_member, unpack_debian
from data_pipelines.build.html import BrokenPage, read_page
from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault, Medium
from data_pipelines.build.pages import page_parts, text_of
from data_pipelines.build.pictures import FolderPictures
from data_pipelines.build.readers import clips, coco, interleaved, rows, tables, warc, webdataset
from data_pipelines.build.settings import BuildSettings
from data_pipelines.build.videos import VideoError, examine_video
from data_pipelines.clips import read_clip
from data_pipelines.lengths import kept_lengths
from data_pipelines.media import MediaError
from data_pipelines.shards import MANIFEST, open_shards
from flamingo_jax.errors import UserError


def source(root: pathlib.Path, kind: str = "pairs") -> Source:
  return Source(root, BuildSettings(kind, str(root), "mine"), lambda address: None)


def read(reader, path: pathlib.Path, kind: str = "pairs") -> list[Document | Fault]:
  """All that a reader makes of one file."""
  parts = [Part(0, "", (path.name,), start, stop) for start, stop in reader.split(path, 100)]
  return list(itertools.chain.from_iterable(reader.read(part, source(path.parent, kind)) for part in parts))


def causes(found: list[Document | Fault]) -> list[str]:
  return [each.cause if isinstance(each, Fault) else "read" for each in found]


# Videos


def film(container: str) -> bytes:
  file = io.BytesIO()
  with av.open(file, "w", format=container) as output:
    stream = output.add_stream("mpeg4" if container == "mp4" else "mpeg2video", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    for number in range(40):
      output.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64), (5 * number, 100, 50)))))
    output.mux(stream.encode(None))
  return file.getvalue()


@pytest.mark.parametrize(
  "record",
  [
    b"ffconcat version 1.0\nfile private.ts\n",
    b"ffconcat version 1.0\nfile '{folder}/private.ts'\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{folder}/private.ts\n#EXT-X-ENDLIST\n",
  ],
)
def test_a_video_that_is_a_list_of_files_opens_none_of_them(tmp_path, monkeypatch, record):
  (tmp_path / "private.ts").write_bytes(film("mpegts"))
  monkeypatch.chdir(tmp_path)
  record = record.replace(b"{folder}", str(tmp_path).encode())
  with pytest.raises(MediaError, match="broken_video"):
    read_clip(record, 32, frames=2, per_second=0, span=(0.0, np.inf), start=0.0)
  with pytest.raises(VideoError, match="broken_video"):
    examine_video(record)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_films_that_hold_their_own_frames_are_read(container):
  data = film(container)
  assert read_clip(data, 32, frames=2, per_second=0, span=(0.0, np.inf), start=0.0).shape == (2, 32, 32, 3)
  assert examine_video(data).middle.size == (64, 64)


# Pages


@pytest.mark.parametrize("encoding", ["punycode", "idna", "PUNYCODE", "hex", "a\0b", "x" * 300])
def test_a_codec_that_is_none_of_pages_is_refused(encoding):
  with pytest.raises(BrokenPage):
    read_page(b"<p>text</p>", encoding)


def test_a_page_of_absurd_size_is_not_parsed(tmp_path, monkeypatch):
  for module in (html, pages):
    monkeypatch.setattr(module, "LARGEST_PAGE", 100)
  (tmp_path / "a.html").write_bytes(b"<p>text</p>" * 10)
  assert len(pages.read_file(tmp_path / "a.html")) == 101
  with pytest.raises(BrokenPage, match="at most 100 are read"):
    read_page(pages.read_file(tmp_path / "a.html"))


@pytest.mark.parametrize("after", [b"a\x0eb", b"a&#14;b", b"a\x01b", b"a\xef\xbf\xbeb"])
def test_control_characters_after_what_is_cut_away_stay_text(after):
  assert text_of(read_page(b"<p>one <nav>x</nav> " + after + b"</p>").content).startswith("one")


def test_an_absurd_width_of_a_picture_is_no_number(tmp_path):
  page = read_page(f'<p>text <img src="a.png" width="{"1" * 5000}" height="\u0663"></p>'.encode())
  [lost] = [
    part for part in page_parts(page.content, FolderPictures(tmp_path), str(tmp_path)) if not isinstance(part, str)
  ]
  assert lost.cause == "missing"


def test_a_figure_of_thousands_of_pictures_is_looked_through_once(tmp_path, monkeypatch):
  looked = collections.Counter()
  monkeypatch.setattr(pages, "reading_order", counting(pages.reading_order, looked))
  many = 3000
  page = read_page(f"<figure>{'<img src=a alt=x>' * many}<figcaption>late</figcaption></figure>".encode())
  assert len([p for p in page_parts(page.content, FolderPictures(tmp_path), str(tmp_path), describe=True)]) >= many
  assert looked["parts"] < 10 * many  # the square would be nine millions


def test_what_is_no_plain_file_or_too_large_is_no_picture(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "a.png").write_bytes(bytes(101))
  (tmp_path / "link.png").symlink_to("/dev/zero")
  monkeypatch.setattr(pictures, "LARGEST_MEDIUM", 100)
  names = ("pipe.png", "a.png", "link.png")
  found = [FolderPictures(tmp_path).find(name, str(tmp_path)) for name in names]
  assert [lost.cause for lost in found] == ["missing", "too_large", "outside_folder"]


def counting(order, looked: collections.Counter):
  def counted(content):
    for part in order(content):
      looked["parts"] += 1
      yield part

  return counted


# Archives


def test_a_debian_member_of_negative_size_ends_the_reading(tmp_path):
  """It would lead back to its own header, for ever."""
  header = f"{'x':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{-60:<10}`\n".encode()
  (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + header)
  with pytest.raises(UserError, match="a member of -60 bytes"):
    unpack_debian(tmp_path / "a.deb", tmp_path / "root")


def test_a_debian_package_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(fetch, "LARGEST_PACKAGE", 10_000)
  tar = io.BytesIO()
  with tarfile.open(fileobj=tar, mode="w:xz") as archive:
    for name in ("a", "b"):
      member = tarfile.TarInfo(name)
      member.size = 6000
      archive.addfile(member, io.BytesIO(bytes(6000)))
    for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE):
      member = tarfile.TarInfo(f"special{kind.decode()}")
      member.type, member.linkname = kind, "/etc/passwd"
      archive.addfile(member)
  data = tar.getvalue()
  header = f"{'data.tar.xz':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
  (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + header + data)
  with pytest.raises(UserError, match="more than 10000 bytes"):
    unpack_debian(tmp_path / "a.deb", tmp_path / "root")
  monkeypatch.setattr(fetch, "LARGEST_PACKAGE", 20_000)
  unpack_debian(tmp_path / "a.deb", tmp_path / "other")
  assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["a", "b"]


def test_a_wheel_that_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(fetch, "LARGEST_MEMBER", 1000)
  with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("bomb", bytes(1001))
    archive.writestr("sound", bytes(1000))
  with zipfile.ZipFile(tmp_path / "a.whl") as archive:
    assert read_member(archive, "sound") == bytes(1000)
    with pytest.raises(ValueError, match="claims 1001 bytes"):
      read_member(archive, "bomb")


def test_a_sample_of_a_compressed_tar_is_bounded_as_a_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(webdataset, "LARGEST_SAMPLE", 1000)
  with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
    for name, size in (("a.txt", 400), ("a.x", 400), ("a.y", 400), ("b.txt", 1001), ("c.txt", 3), ("c.png", 4)):
      member = tarfile.TarInfo(name)
      member.size = size
      tar.addfile(member, io.BytesIO(b"x" * size))
  assert causes(read(webdataset, tmp_path / "a.tar")) == ["too_large", "too_large", "bad_document", "read"]


def test_a_warc_record_of_absurd_size_is_named_and_passed_over(tmp_path, monkeypatch):
  monkeypatch.setattr(warc, "LARGEST_BODY", 500)
  records = b"".join(
    b"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: https://a.org/%s\r\nContent-Type: text/html\r\n"
    b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (name, len(body), body)
    for name, body in ((b"large", b"<p>" + b"x" * 600), (b"small", b"<p>text</p>"))
  )
  (tmp_path / "a.warc").write_bytes(records)
  assert causes(read(warc, tmp_path / "a.warc", "pages")) == ["too_large", "read"]


# Tables


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "LONGEST_LINE", 100)
  (tmp_path / "a.jsonl").write_bytes(b'{"caption": "x"}\n' + b"x" * 101 + b"\n")
  assert causes(read(tables, tmp_path / "a.jsonl")) == ["bad_document", "broken_file"]
  (tmp_path / "a.csv").write_bytes(b"caption\n" + b"x" * 101 + b"\n")
  assert causes(read(tables, tmp_path / "a.csv"))[-1] == "broken_file"


@pytest.mark.parametrize("damage", ["empty", "password", "method"])
def test_a_zip_that_cannot_be_read_is_named(tmp_path, damage):
  with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
    if damage != "empty":
      archive.writestr("a.jsonl", b"{}")
  data = bytearray((tmp_path / "a.jsonl.zip").read_bytes())
  if damage != "empty":
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    for place in (local + 6, central + 8) if damage == "password" else (local + 8, central + 10):
      data[place] = 1 if damage == "password" else 99
  (tmp_path / "a.jsonl.zip").write_bytes(data)
  assert causes(read(tables, tmp_path / "a.jsonl.zip")) == ["broken_file"]


def test_numbers_that_no_float_can_be_are_no_numbers(tmp_path):
  (tmp_path / "a.png").write_bytes(b"x")
  row = f'{{"image": "a.png", "caption": "c", "video": "a.png", "similarity": 1{"0" * 400}, "start": 1{"0" * 400}}}'
  (tmp_path / "a.jsonl").write_text(row)
  [document] = read(tables, tmp_path / "a.jsonl")
  assert isinstance(document.parts[0], Medium) and document.parts[0].similarity is None
  assert causes(read(clips, tmp_path / "a.jsonl", "videos")) == ["bad_document"]


@pytest.mark.parametrize(
  "row",
  [
    {"text_list": ["a"], "image_info": [{"matched_text_index": float("inf"), "image_name": "a.png"}]},
    {"texts": ["a", None], "images": [None, "a.png"], "metadata": "[" * 100_000},
  ],
)
def test_a_damaged_interleaved_document_is_named(tmp_path, row):
  (tmp_path / "a.jsonl").write_text(json.dumps(row))
  assert causes(read(interleaved, tmp_path / "a.jsonl", "pages")) == ["bad_document"]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("[" * 100_000, ["broken_file"]),
    ('{"images": [], "annotations": {"a": 1}}', ["broken_file"]),
    ('{"images": [{"id": 1, "file_name": "a", "license": []}], "annotations": [{"image_id": 1, "caption": "c"}]}',
     ["bad_document"]),
  ],
)  # fmt: skip
def test_damaged_coco_captions_are_named(tmp_path, text, expected):
  (tmp_path / "a.json").write_text(text)
  assert causes(read(coco, tmp_path / "a.json")) == expected


# Shards


@pytest.mark.parametrize("name", ["../a.array_record", "/etc/passwd", "..", "a/b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path, name):
  shard = dict(file=name, records=1, bytes=1, sha256="")
  (tmp_path / MANIFEST).write_text(json.dumps(dict(schema_version=1, records=1, shards=[shard])))
  with pytest.raises(UserError, match="not the name of a file beside it"):
    open_shards(tmp_path, tolerated=1.0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 1, "records": 0, "shards": []}'])
def test_a_manifest_without_shards_or_end_is_refused(tmp_path, text):
  (tmp_path / MANIFEST).write_text(text)
  with pytest.raises(UserError, match="Build the stream again"):
    open_shards(tmp_path)


def test_lengths_that_claim_terabytes_are_counted_anew(tmp_path):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, dict(descr="<i4", fortran_order=False, shape=(2**40,)))
  (tmp_path / "a.npy").write_bytes(file.getvalue() + bytes(100))
  assert kept_lengths(tmp_path / "a.npy", 2**40) is None
  np.save(tmp_path / "a.npy", np.arange(3, dtype=np.int32))
  assert kept_lengths(tmp_path / "a.npy", 3).tolist() == [0, 1, 2]
  np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
  assert kept_lengths(tmp_path / "a.npy", 1) is None
