import base64
import hashlib

import pytest

from data_pipelines.build import pictures as pictures_module
from data_pipelines.build.pictures import Picture, Pictures


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
  loaded = Pictures(root).load(source, root / "pages")
  assert loaded == Picture(picture(1), hashlib.sha256(picture(1)).hexdigest())


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
    ("data:image/png;base64,aGFsbG8=", "broken"),
    ("data:image/svg+xml,%3Csvg%20xmlns='x'%3E%3C/svg%3E", "unsupported_format"),
  ],
)
def test_what_cannot_be_had_is_told_by_cause(root, source, cause):
  assert Pictures(root).load(source, root / "pages") == cause


def test_data_urls_are_read(root, picture):
  text = base64.encodebytes(picture(2)).decode()  # with line breaks, as they are found in the wild
  assert Pictures(root).load(f"data:image/png;base64,{text}", root).data == picture(2)


def test_a_file_is_judged_once(root, monkeypatch):
  calls = []
  monkeypatch.setattr(pictures_module, "check_picture", calls.append)
  pictures = Pictures(root)
  assert pictures.load("images/a b.png", root) == pictures.load("../images/a b.png", root / "pages")
  assert len(calls) == 1
