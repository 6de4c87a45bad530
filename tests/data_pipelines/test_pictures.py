import base64
import errno
import pathlib

import pytest

from data_pipelines.build import pictures as pictures_module
from data_pipelines.build.interleaving import Lost, Medium
from data_pipelines.build.pictures import FolderPictures, Judge, UrlPictures, inline_picture


@pytest.fixture
def root(tmp_path, picture):
  (tmp_path / "secret.png").write_bytes(picture(9))
  (tmp_path / "www" / "images").mkdir(parents=True)
  (tmp_path / "www" / "images" / "a b.png").write_bytes(picture(1))
  (tmp_path / "www" / "images" / "link.png").symlink_to(tmp_path / "secret.png")
  (tmp_path / "www" / "pages").mkdir()
  return tmp_path / "www"


@pytest.mark.parametrize("source", ["../images/a%20b.png", "/images/a b.png", " ../images/a%20b.png?v=2#top\n"])
def test_addresses_resolve_as_in_a_browser(root, picture, source):
  found = FolderPictures(root).find(source, str(root / "pages"), "two words")
  assert found == Medium(picture(1), "images/a b.png", "two words")


@pytest.mark.parametrize(
  ("source", "cause"),
  [
    ("../../secret.png", "outside_folder"),
    ("..%2F..%2Fsecret.png", "outside_folder"),
    ("/../secret.png", "outside_folder"),
    ("../images/link.png", "outside_folder"),
    ("file:///etc/passwd", "missing"),  # a root of its own: there is no etc/passwd under it
    ("images/none.png", "missing"),
    ("", "missing"),
    ("a\0b.png", "missing"),
    ("x" * 5000, "missing"),
    ("../images", "missing"),
    ("http://[broken", "missing"),
    ("https://example.org/pixel.gif", "remote"),
    ("//example.org/pixel.gif", "remote"),
    ("ftp://example.org/x.png", "remote"),
    ("data:image/png;base64,!!!!", "broken"),
  ],
)
def test_what_cannot_be_had_is_told_by_cause(root, source, cause):
  found = FolderPictures(root).find(source, str(root / "pages"))
  assert isinstance(found, Lost) and found.cause == cause


def test_data_urls_are_read(root, picture):
  text = base64.encodebytes(picture(2)).decode()  # with line breaks, as they are found in the wild
  assert FolderPictures(root).find(f"data:image/png;base64,{text}", str(root)).data == picture(2)
  assert inline_picture("data:image/svg+xml,%3Csvg/%3E").data == b"<svg/>"


def test_known_urls_are_found_from_a_folder_too(root):
  known = {"https://a.org/x.png": b"x", "https://b.org/pages/y.png": b"y"}
  pictures = FolderPictures(root, known.get)
  assert pictures.find("//a.org/x.png", str(root)).data == b"x"
  assert pictures.find("y.png", "https://b.org/pages/index.html").data == b"y"  # a <base> that lies elsewhere
  assert pictures.find("z.png", "https://b.org/pages/") == Lost("remote", "https://b.org/pages/z.png")


def test_a_page_on_the_web_resolves_as_in_a_browser():
  pictures = UrlPictures({"https://a.org/b/x.png?v=2": b"x"}.get)
  for address in ("x.png?v=2", "/b/x.png?v=2#top", "../b/x.png?v=2", "//a.org/b/x.png?v=2"):
    assert pictures.find(address, "https://a.org/b/page.html").data == b"x"
  assert pictures.find("y.png", "https://a.org/b/page.html") == Lost("remote", "https://a.org/b/y.png")
  assert pictures.find("http://[broken", "https://a.org/").cause == "missing"


def test_a_picture_is_judged_once(monkeypatch):
  calls = []
  monkeypatch.setattr(pictures_module, "judge_picture", lambda data, *_: calls.append(data) or (None, 7))
  judge = Judge()
  assert judge.verdict(b"a") == judge.verdict(b"a") == judge.verdict(b"b") == (None, 7)
  assert calls == [b"a", b"b"]


def test_a_judge_forgets_the_oldest(monkeypatch):
  calls = []
  monkeypatch.setattr(pictures_module, "judge_picture", lambda data, *_: calls.append(data) or (None, 7))
  monkeypatch.setattr(pictures_module, "VERDICTS", 2)
  judge = Judge()
  for data in (b"a", b"b", b"c", b"c", b"a"):
    judge.verdict(data)
  assert calls == [b"a", b"b", b"c", b"a"]


def test_a_picture_that_cannot_be_read_is_not_taken_for_one_that_is_missing(tmp_path, picture, monkeypatch):
  (tmp_path / "a.png").write_bytes(picture(2))

  def fail(path):
    raise OSError(errno.EIO, "Input/output error", str(path))

  assert FolderPictures(tmp_path).find("b.png", str(tmp_path)) == Lost("missing", "b.png")
  assert FolderPictures(tmp_path).find("a.png/b.png", str(tmp_path)) == Lost("missing", "a.png/b.png")
  monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
  with pytest.raises(OSError, match="Input/output error"):
    FolderPictures(tmp_path).find("a.png", str(tmp_path))


def test_links_in_a_circle_lead_nowhere(tmp_path):
  (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
  (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
  assert FolderPictures(tmp_path).find("a.png", str(tmp_path)) == Lost("missing", "a.png")
