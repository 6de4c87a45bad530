"""Every layout of pages, from files as they are found to shards and back."""

import base64
import gzip
import json
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.build.settings import Columns

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def data_url(data: bytes, type: str = "image/png") -> str:
  return f"data:{type};base64,{base64.b64encode(data).decode()}"


def page(body: str, head: str = "") -> bytes:
  return f"<!DOCTYPE html><html><head><title>T</title>{head}</head><body>{body}</body></html>".encode()


# HTML


def test_html_is_read_in_reading_order(built, tmp_path, picture):
  root = tmp_path / "in"
  (root / "deep" / "pictures").mkdir(parents=True)
  (root / "logo.jpg").write_bytes(picture(1, format="JPEG"))
  (root / "deep" / "pictures" / "a b.png").write_bytes(picture(2))
  (root / "drawing.svg").write_bytes(SVG)
  body = f"""
    <nav>Home <img src="logo.jpg"></nav>
    <h1>Cats</h1>
    <figure><img src="pictures/a%20b.png" alt="Seen by nobody else"><figcaption>A cat.</figcaption></figure>
    <img src="/logo.jpg" alt="A logo"><p>The end of <b>all</b> cats.</p>
    <img src="{data_url(picture(3))}" alt="logo.png">
    <img src="../drawing.svg"><img src="x.gif" width="1" height="1"><img src="../../outside.png"><img src="none.png">
    <img src="https://a.org/b.png">
    <footer>About us</footer>"""
  (root / "deep" / "page.html").write_bytes(page(body, '<link rel="license" href="https://c.org/by/4.0/">'))
  manifest, [example] = built("pages", root)
  assert example.texts == ("Cats", "Seen by nobody else\nA cat.", "A logo\nThe end of all cats.", "")
  assert example.media == (picture(2), picture(1, format="JPEG"), picture(3))
  assert (example.source, example.license) == ("mine/deep/page.html", "https://c.org/by/4.0/")
  assert manifest["dropped"]["media"] == dict.fromkeys(
    ["missing", "outside_folder", "remote", "svg", "tracking_pixel"], 1
  )
  assert manifest["read"]["media"] == 8


def test_a_caption_that_an_alt_text_repeats_is_kept_once(built, tmp_path, picture):
  root = tmp_path / "in"
  root.mkdir()
  (root / "a.png").write_bytes(picture())
  docbook = '<div class="figure"><p class="title">Figure 1. A cat</p><img src="a.png" alt="A cat"></div>'
  (root / "a.html").write_bytes(page(docbook))
  _, [example] = built("pages", root)
  assert example.texts == ("Figure 1. A cat", "")


def test_lazy_pictures_and_sets_of_sizes_are_found(built, tmp_path, picture):
  root = tmp_path / "in"
  root.mkdir()
  for number in range(3):
    (root / f"{number}.png").write_bytes(picture(number))
  blank = data_url(b"GIF89a")
  (root / "a.html").write_bytes(
    page(
      f'a<img src="{blank}" data-src="0.png">b<img srcset="2.png 100w, 1.png 800w">'
      'c<picture><source srcset="2.png 2x"><img></picture>d'
    )
  )
  _, [example] = built("pages", root)
  assert example.media == (picture(0), picture(1), picture(2))
  assert example.texts == ("a", "b", "c", "d")


LAZY = [
  '<img src="/blank.gif" data-src="0.png">',
  '<img src="/blank.gif" data-lazy-src="0.png">',
  '<img src="/blank.gif" data-srcset="1.png 300w, 0.png 900w">',
  '<img srcset="data:image/gif;base64,R0lGODlh 1x" data-srcset="0.png 1x">',
  '<picture><source data-srcset="0.png 2x"><img src="data:image/gif;base64,R0lGODlh"></picture>',
  '<img data-original="0.png">',
  '<img src="0.png" data-original="1.png" data-url="https://x.org/about-it">',
  '<img src="0.png" srcset="1.png 2x">',
]


@pytest.mark.parametrize("written", LAZY)
def test_a_picture_is_what_a_reader_sees_who_has_scrolled_to_it(built, tmp_path, picture, written):
  root = tmp_path / "in"
  root.mkdir()
  for number in range(2):
    (root / f"{number}.png").write_bytes(picture(number))
  (root / "blank.gif").write_bytes(picture(2, format="GIF"))
  (root / "a.html").write_bytes(page(f"Words before it.{written}Words behind it."))
  _, [example] = built("pages", root)
  assert example.media == (picture(0),)


def test_pictures_of_the_web_are_looked_up_where_they_were_kept(built, tmp_path, picture):
  """As wget keeps them, and under what a page's <base> says."""
  root, kept = tmp_path / "in", tmp_path / "kept" / "a.org" / "pictures"
  root.mkdir()
  kept.mkdir(parents=True)
  (kept / "1.png").write_bytes(picture(1))
  (kept / "2.png").write_bytes(picture(2))
  body = 'x<img src="1.png">y<img src="https://a.org/pictures/2.png">z'
  (root / "a.html").write_bytes(page(body, '<base href="https://a.org/pictures/">'))
  _, [example] = built("pages", root, pictures=str(tmp_path / "kept"))
  assert example.media == (picture(1), picture(2))


# WARC


def warc_record(url: str, type: str, body: bytes, kind: str = "response", status: str = "200 OK") -> bytes:
  if kind == "response":
    head = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n\r\n"
    content, type = head.encode() + body, "application/http; msgtype=response"
  else:
    content = body
  lines = (
    "WARC/1.0",
    f"WARC-Type: {kind}",
    f"WARC-Target-URI: {url}",
    "WARC-Date: 2024-01-01T00:00:00Z",
    "WARC-Record-ID: <urn:uuid:6f0d0e5a-0000-4000-8000-000000000000>",
    f"Content-Type: {type}",
    f"Content-Length: {len(content)}",
  )
  return "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


def records(picture) -> list[bytes]:
  body = 'é one<img src="/a.jpg" alt="A cat">two<img src="b.png#top">three<img src="gone.png">'
  return [
    warc_record("https://x.org/d/", "text/html; charset=latin-1", page(body).decode().encode("latin-1")),
    warc_record("https://x.org/a.jpg", "image/jpeg", picture(1, format="JPEG")),
    warc_record("https://x.org/d/b.png", "image/png", picture(2), kind="resource"),
    warc_record("https://x.org/d/gone.png", "image/png", picture(3), status="404 Not Found"),
    warc_record("https://x.org/style.css", "text/css", b"p {}"),
    warc_record("https://x.org/error", "text/html", page("no<img src=a.jpg>"), status="500 Oops"),
  ]


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_warc_file_has_pages_and_their_pictures(built, tmp_path, picture, name):
  root = tmp_path / "in"
  root.mkdir()
  pack = gzip.compress if name.endswith("gz") else bytes
  (root / name).write_bytes(b"".join(pack(record) for record in records(picture)))
  manifest, [example] = built("pages", root)
  assert example.texts == ("é one", "A cat\ntwo", "three")
  assert example.media == (picture(1, format="JPEG"), picture(2))
  assert example.source == "mine/https://x.org/d/"
  assert manifest["dropped"]["media"] == {"remote": 1}


def test_pictures_of_a_warc_file_are_found_however_a_page_spells_their_address(built, tmp_path, picture):
  spellings = {  # as a page has it: as a browser asks for it
    "a b.png": "a%20b.png",
    "Käse.png": "K%C3%A4se.png",
    "c%20d.png": "c%20d.png",
    "e.png?size=1 000|ü&amp;x=[1]": "e.png?size=1%20000|%C3%BC&x=[1]",
  }
  (tmp_path / "in").mkdir()
  body = "".join(f'Text.<img src="{written}">' for written in spellings) + "The end of it all, in ten words or more."
  crawl = [warc_record("https://x.org/d/", "text/html; charset=utf-8", page(body))] + [
    warc_record(f"https://x.org/d/{asked}", "image/png", picture(number))
    for number, asked in enumerate(spellings.values())
  ]
  (tmp_path / "in" / "crawl.warc").write_bytes(b"".join(crawl))
  manifest, [example] = built("pages", tmp_path / "in")
  assert example.media == tuple(picture(number) for number in range(len(spellings)))
  assert manifest["dropped"]["media"] == {}


def test_pictures_may_lie_in_another_warc_file(built, tmp_path, picture):
  (tmp_path / "in").mkdir()
  (tmp_path / "kept").mkdir()
  first, *others = records(picture)
  (tmp_path / "in" / "pages.warc").write_bytes(first)
  (tmp_path / "kept" / "pictures.warc.gz").write_bytes(b"".join(map(gzip.compress, others)))
  _, [example] = built("pages", tmp_path / "in" / "pages.warc", pictures=str(tmp_path / "kept"))
  assert example.media == (picture(1, format="JPEG"), picture(2))


def test_a_warc_file_that_ends_early_is_named(built, tmp_path, picture):
  (tmp_path / "in").mkdir()
  data = b"".join(
    [*records(picture)[1:3], records(picture)[0], warc_record("https://x.org/2", "text/html", page("end"))]
  )
  (tmp_path / "in" / "cut.warc").write_bytes(data[:-60])
  manifest, [example] = built("pages", tmp_path / "in")
  assert example.source == "mine/https://x.org/d/"
  [error] = manifest["errors"]["broken_file"]["records"]
  assert error["record"] == "cut.warc" and "ends early" in error["detail"]


# MMC4


def mmc4(picture, **more) -> dict:
  """Three pictures, listed out of order; two of them belong to the second sentence."""
  return {
    "url": "https://x.org/cats",
    "text_list": ["First sentence.", "Second sentence.", "Third sentence."],
    "image_info": [
      {"image_name": "three.png", "raw_url": "https://x.org/3.png", "matched_text_index": 2, "matched_sim": 0.3},
      {"image_name": "two.jpg", "raw_url": "https://x.org/2.jpg", "matched_text_index": 1, "matched_sim": 0.2},
      {"image_base64": base64.b64encode(picture(4, format="JPEG")).decode(), "matched_text_index": 1},
    ],
    **more,
  }


@pytest.fixture
def mmc4_folder(tmp_path, picture):
  root = tmp_path / "in"
  root.mkdir()
  (root / "three.png").write_bytes(picture(3))
  (root / "two.jpg").write_bytes(picture(2, format="JPEG"))
  return root


def test_mmc4_pictures_stand_before_their_sentence(built, mmc4_folder, picture):
  (mmc4_folder / "docs.jsonl").write_text(json.dumps(mmc4(picture)) + "\n")
  manifest, [example] = built("pages", mmc4_folder)
  assert example.texts == ("First sentence.", "", "Second sentence.", "Third sentence.")
  assert example.media == (picture(2, format="JPEG"), picture(4, format="JPEG"), picture(3))
  assert example.source == "mine/https://x.org/cats"
  assert manifest["statistics"]["adjacent_media"] == 1  # two pictures on one sentence are kept apart, and reported


def test_mmc4_similarity_is_a_filter(built, mmc4_folder, picture):
  with zipfile.ZipFile(mmc4_folder / "docs_shard_0_v2.jsonl.zip", "w") as archive:
    archive.writestr("docs_shard_0_v2.jsonl", json.dumps(mmc4(picture)))
  manifest, [example] = built("pages", mmc4_folder, minimum_similarity=0.25)
  assert example.media == (picture(4, format="JPEG"), picture(3))  # of one, nothing is said
  assert example.texts == ("First sentence.", "Second sentence.", "Third sentence.")
  assert manifest["dropped"]["media"] == {"similarity": 1}


@pytest.mark.parametrize(
  "document",
  [
    {"text_list": ["a"], "image_info": [{"image_name": "three.png", "matched_text_index": 1}]},
    {"text_list": ["a"], "image_info": [{"image_name": "three.png", "matched_text_index": -1}]},
    {"text_list": ["a"], "image_info": [{"image_name": "three.png"}]},
    {"text_list": ["a"]},
    {"some": "thing"},
    ["a list"],
  ],
)
def test_a_document_of_another_form_is_named(built, mmc4_folder, picture, document):
  (mmc4_folder / "docs.jsonl").write_text(f"{json.dumps(document)}\n{json.dumps(mmc4(picture))}\n")
  manifest, examples = built("pages", mmc4_folder)
  assert len(examples) == 1
  [error] = manifest["errors"]["bad_document"]["records"]
  assert error["record"] == "docs.jsonl, byte 0"


# OBELICS


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz"])
def test_obelics_keeps_its_order(built, tmp_path, picture, form):
  root, kept = tmp_path / "in", tmp_path / "kept" / "x.org"
  root.mkdir()
  kept.mkdir(parents=True)
  (kept / "1.png").write_bytes(picture(1))
  (kept / "2.jpg").write_bytes(picture(2, format="JPEG"))
  row = {
    "images": [None, "https://x.org/1.png", "https://x.org/gone.png", "https://x.org/2.jpg", None],
    "texts": ["First\n\nparagraph.", None, None, None, "The end."],
    "metadata": json.dumps([None, {"alt_text": "A cat", "src": "x"}, {"src": "x"}, {"alt_text": None}, None]),
    "general_metadata": json.dumps({"url": "https://x.org/cats.html"}),
    "terms": "CC-BY-4.0",
  }
  if form == "parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), root / "train.parquet")
  else:
    (root / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
  manifest, [example] = built("pages", root, pictures=str(tmp_path / "kept"), columns=Columns(license="terms"))
  assert example.texts == ("First\nparagraph.", "A cat", "The end.")
  assert example.media == (picture(1), picture(2, format="JPEG"))
  assert (example.source, example.license) == ("mine/https://x.org/cats.html", "CC-BY-4.0")
  assert manifest["dropped"]["media"] == {"remote": 1}


def test_obelics_rows_that_do_not_fit_are_named(built, tmp_path, picture):
  (tmp_path / "in").mkdir()
  image = data_url(picture())
  rows = [
    {"images": [image, None], "texts": [None]},
    {"images": [image, None], "texts": ["a", "b"]},
    {"images": [None, None], "texts": [None, "b"]},
    {"images": [image, None], "texts": [None, "good"]},
  ]
  (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  manifest, [example] = built("pages", tmp_path / "in")
  assert example.texts == ("", "good")
  assert manifest["errors"]["bad_document"]["count"] == 3
