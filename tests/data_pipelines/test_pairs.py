import collections
import hashlib

import pytest

from data_pipelines.build.pairs import page_pairs, tidy_caption, without_duplicates
from data_pipelines.build.pictures import FolderPictures, Judge


@pytest.fixture
def pairs(tmp_path, picture):
  """(file, caption) of the pairs of a page with the given body, and the counts; a.png to c.png lie beside it."""
  names = {}
  for seed, name in enumerate("abc"):
    (tmp_path / f"{name}.png").write_bytes(picture(seed))
    names[hashlib.sha256(picture(seed)).hexdigest()] = f"{name}.png"
  (tmp_path / "cut.png").write_bytes(picture(5)[:2000])

  def read_body(body: str, seen=()):
    path = tmp_path / "page.html"
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    counts = collections.Counter()
    found = page_pairs(path, FolderPictures(tmp_path), Judge(), counts, source="s/page", license="l", seen=seen)
    result = []
    for digest, example in without_duplicates(found, counts):
      assert hashlib.sha256(example.media[0]).hexdigest() == digest
      assert example.texts[0] == ""
      result.append((names[digest], example.texts[1]))
    return result, counts

  return read_body


def medium(address: str, caption: str = "") -> str:
  own = f'<div class="caption"><p>{caption}</p></div>' if caption else ""
  return f'<div class="mediaobject"><img src="{address}" alt="not this"/>{own}</div>'


def figure(title: str, *media: str, kind: str = "figure") -> str:
  head = f'<p class="title"><strong>{title}</strong></p>' if title else ""
  return f'<div class="{kind}"><a id="x"></a>{head}<div class="figure-contents">{"".join(media)}</div></div>'


def test_a_title_without_its_number_is_the_caption(pairs):
  body = figure('Figure 17.12. <span class="quote">“<span> Gaussian </span>”</span>\n parameters', medium("a.png"))
  assert pairs(body) == ([("a.png", "“Gaussian” parameters")], {})


def test_each_picture_of_a_figure_adds_its_own_caption(pairs):
  body = figure("Figure A.3. Blur:", medium("a.png", "Original"), medium("b.png", "Blur <em>applied</em>"))
  assert pairs(body)[0] == [("a.png", "Blur: Original"), ("b.png", "Blur: Blur applied")]


def test_a_figure_without_title_has_the_captions_of_its_pictures(pairs):
  body = figure("", medium("a.png", "Source image"), medium("b.png"), kind="informalfigure")
  assert pairs(body) == ([("a.png", "Source image")], {"empty_caption": 1})


def test_a_caption_of_space_is_empty(pairs):
  assert pairs(figure("Figure 1.1. &nbsp;", medium("a.png", " \n ")))[1] == {"empty_caption": 1}


def test_paragraphs_of_a_caption_are_set_apart(pairs):
  assert pairs(figure("T", medium("a.png", "Left: one</p><p>Right: 2<sup>nd</sup>")))[0] == [
    ("a.png", "T: Left: one Right: 2nd")
  ]


def test_numbers_that_are_not_the_figures_stay(pairs):
  body = figure("Figures of 3.5 inches", medium("a.png")) + figure("3.2. Options", medium("b.png"))
  assert [caption for _, caption in pairs(body)[0]] == ["Figures of 3.5 inches", "3.2. Options"]


def test_equal_pairs_are_kept_once(pairs):
  body = (
    figure("One", medium("a.png"), medium("a.png")) + figure("Two", medium("a.png")) + figure("One", medium("b.png"))
  )
  assert pairs(body) == ([("a.png", "One"), ("a.png", "Two"), ("b.png", "One")], {"duplicate": 1})


def test_dropped_pictures_are_counted_by_cause(pairs, picture):
  seen = {hashlib.sha256(picture(2)).hexdigest()}
  body = figure("F", medium("none.png"), medium("cut.png"), medium("c.png"), medium("a.png"))
  assert pairs(body, seen) == ([("a.png", "F")], {"missing": 1, "broken": 1, "seen_in_training": 1})


def test_pictures_outside_figures_or_in_boilerplate_have_no_caption(pairs):
  body = f'{medium("a.png", "loose")}<div class="navheader">{figure("Logo", medium("b.png"))}</div>'
  assert pairs(body) == ([], {})


def test_an_unreadable_page_is_counted(tmp_path):
  counts = collections.Counter()
  assert list(page_pairs(tmp_path / "none", FolderPictures(tmp_path), Judge(), counts, source="s", license="l")) == []
  assert counts == {"broken_page": 1}


@pytest.mark.parametrize(
  ("text", "tidy"),
  [
    ("“ Luminance ” applied", "“Luminance” applied"),
    ("a ( b ) , c .", "a (b), c."),
    ("the .gih format ; done", "the .gih format; done"),
    (" a\n\xa0 b ", "a b"),
  ],
)
def test_captions_are_tidied(text, tidy):
  assert tidy_caption(text) == tidy
