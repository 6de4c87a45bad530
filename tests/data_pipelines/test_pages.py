import collections
import hashlib
import warnings

import pytest

from data_pipelines.build.pages import parse_page
from data_pipelines.build.pictures import FolderPictures, Judge


@pytest.fixture
def read(tmp_path, picture):
  """Reads a page of the given body; pictures a.png, b.png and c.png lie beside it, and some that are not wanted."""
  for seed, name in enumerate("abc"):
    (tmp_path / f"{name}.png").write_bytes(picture(seed))
  (tmp_path / "tiny.png").write_bytes(picture(width=10, height=10))
  (tmp_path / "cut.png").write_bytes(picture(5)[:2000])

  def read_body(body: str, **options):
    page = f"<html><head><title>Title</title></head><body>{body}</body></html>"
    return parse(tmp_path, page.encode(), **options)

  return read_body


def parse(folder, page: bytes, **options):
  (folder / "page.html").write_bytes(page)
  pictures = FolderPictures(folder)
  return parse_page(folder / "page.html", pictures, Judge(), source="s/page", license="CC0-1.0", **options)


def texts(result) -> tuple[str, ...]:
  return result[0].texts


def test_text_and_pictures_come_in_reading_order(read, picture):
  example, counts = read('<p>one<p><img src="b.png"><p>two</p><img src="a.png"><h2>three</h2>')
  assert example.texts == ("one", "two", "three")
  assert example.media == (picture(1), picture(0))
  assert (example.source, example.license) == ("s/page", "CC0-1.0")
  assert counts == {}


@pytest.mark.parametrize(
  ("body", "expected"),
  [
    ('<img src="a.png"><p>after', ("", "after")),
    ('<p>before<img src="a.png">', ("before", "")),
    ('Click <img src="a.png"/> now', ("Click", "now")),
  ],
)
def test_a_picture_may_come_first_or_last_or_in_a_line(read, body, expected):
  assert texts(read(body)) == expected


def test_nested_tables_are_read_cell_by_cell(read):
  inner = '<table><tr><td>2<td><img src="a.png"></td><td>3</td></tr></table>'
  body = f"<table><caption>Head</caption><tr><td>1{inner}</td><td>4</td></tr><tr><th>5</th></tr></table>"
  assert texts(read(body)) == ("Head\n1\n2", "3\n4\n5")


def test_blocks_stand_on_lines_and_other_space_collapses(read):
  body = """<h1>A  <em>b</em>
    c</h1><p>x&nbsp;&nbsp;y<br>z</p><ul><li>1<li>2</ul><pre>def f():
      pass</pre><figure><img src=a.png><figcaption>cap<b>tion</b></figcaption></figure>d"""
  assert texts(read(body)) == ("A b c\nx y\nz\n1\n2\ndef f():\npass", "caption\nd")


@pytest.mark.parametrize(
  "skipped",
  [
    "<script>no</script>",
    "<style>no</style>",
    '<nav>no<img src="b.png"></nav>',
    "<header>no</header>",
    "<footer>no</footer>",
    "<aside>no</aside>",
    "<form>no<button>no</button></form>",
    '<noscript>no<img src="b.png"></noscript>',
    '<div class="big navheader"><p>no</p></div>',
    '<div class="navfooter">no</div>',
    '<div class="toc">no</div>',
    "<!-- no -->",
    "<svg><text>no</text></svg>",
  ],
)
def test_boilerplate_is_left_out(read, skipped):
  assert texts(read(f'<p>one</p>{skipped}<img src="a.png"><p>two</p>{skipped}')) == ("one", "two")


def test_a_main_element_is_all_there_is(read):
  assert texts(read('<p>menu</p><main>text<img src="a.png"></main><p>links</p>')) == ("text", "")


def test_what_comes_after_the_body_is_read(read):
  assert texts(read('one</body></html>two<img src="a.png">three')) == ("one\ntwo", "three")


def test_a_literal_marker_is_text(read):
  example, _ = read('&lt;image&gt; means a picture: <img src="a.png">&lt;image&gt;')
  assert example.texts == ("<image> means a picture:", "<image>")
  assert len(example.media) == 1


@pytest.mark.parametrize(
  ("image", "cause"),
  [
    ("none.png", "missing"),
    ("cut.png", "broken"),
    ("tiny.png", "too_small"),
    ("../x.png", "outside_folder"),
    ("https://example.org/x.png", "remote"),
  ],
)
def test_around_a_dropped_picture_the_texts_join(read, image, cause):
  example, counts = read(f'<p>one</p><img src="{image}"><p>two</p><img src="a.png">three <img src="{image}">four')
  assert example.texts == ("one\ntwo", "three four")
  assert counts == {cause: 2}


def test_an_image_without_address_is_missing(read):
  assert read('x<img alt="nothing"><img src="a.png">')[1] == {"missing": 1}


def test_pictures_without_text_between_them_are_counted(read):
  body = '<img src="a.png"><p>&nbsp;</p><img src="b.png"><img src="none.png"><img src="c.png">text<img src="a.png">'
  assert read(body)[1] == {"adjacent_media": 2, "missing": 1}


def test_a_picture_seen_in_training_is_dropped_and_its_text_stays(read, picture):
  digest = hashlib.sha256(picture(0)).hexdigest()
  example, counts = read('one <img src="a.png"> two<img src="b.png">', seen={digest})
  assert (example.texts, example.media) == (("one two", ""), (picture(1),))
  assert counts == {"seen_in_training": 1}


@pytest.mark.parametrize(
  ("body", "causes"),
  [
    ("<p>&nbsp;</p>", {"empty_page": 1}),
    ('<img src="a.png">', {"empty_page": 1}),
    ("<p>text alone</p>", {"no_picture": 1}),
    ('text<img src="cut.png">', {"no_picture": 1, "broken": 1}),
  ],
)
def test_pages_that_teach_nothing_are_skipped(read, body, causes):
  assert read(body) == (None, collections.Counter(causes))


@pytest.mark.parametrize(
  "data",
  [
    b'<html><head><meta charset="utf-8"></head><body>caf\xe9</body></html>',
    b'<html><head><meta charset="no-such-encoding"></head><body>x</body></html>',
    b"\x7fELF\0\0\0\0binary",
  ],
)
def test_bytes_that_are_not_text_are_a_broken_page(tmp_path, data):
  result = parse(tmp_path, data)
  assert result == (None, collections.Counter(broken_page=1))


def test_an_unreadable_file_is_a_broken_page(tmp_path):
  result = parse_page(tmp_path / "none.html", FolderPictures(tmp_path), Judge(), source="s", license="l")
  assert result == (None, collections.Counter(broken_page=1))


def test_declared_encodings_are_obeyed(tmp_path, picture):
  (tmp_path / "a.png").write_bytes(picture())
  page = '<html><head><meta charset="iso-8859-1"></head><body>café<img src="a.png"></body></html>'.encode("latin-1")
  assert texts(parse(tmp_path, page)) == ("café", "")


def test_xhtml_is_read_whole_and_in_silence(tmp_path, picture):
  (tmp_path / "a.png").write_bytes(picture())
  page = (
    """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
    <!-- a long preface """
    + "x" * 600
    + """ -->
    <html xmlns="http://www.w3.org/1999/xhtml"><head><script src="x.js"/><title/></head><body>
    <p>“a”&nbsp;b <a id="here"/>c<span/></p><img src="a.png"/><p>d</p></body></html>"""
  )
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    result = parse(tmp_path, page.encode())
  assert texts(result) == ("“a” b c", "d")


def test_a_hostile_depth_is_no_trouble(read):
  deep = '{}deep<img src="a.png">{}end'
  assert texts(read(deep.format("<div>" * 2000, "</div>" * 2000))) == ("deep", "end")
  assert read(deep.format("<div>" * 5000, "</div>" * 5000)) == (None, collections.Counter(broken_page=1))
