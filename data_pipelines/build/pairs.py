"""Captioned figures of HTML pages, as DocBook writes them, become caption pairs."""

import collections
import hashlib
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator

import lxml.html

from data_pipelines.build.html import BrokenPage, read_page
from data_pipelines.build.interleaving import Lost
from data_pipelines.build.pages import text_of
from data_pipelines.build.pictures import FolderPictures, Judge
from data_pipelines.schema import Example

FIGURES = frozenset(["figure", "informalfigure"])
_NUMBER = re.compile(r"^Figure\s+[\w.]*\d\.\s*")


def page_pairs(
  page: pathlib.Path,
  pictures: FolderPictures,
  judge: Judge,
  counts: collections.Counter,
  *,
  source: str,
  license: str,
  seen: Collection[str] = (),
) -> Iterator[tuple[str, Example]]:
  """The captioned pictures of a page, each with the digest of its picture.

  The caption is the figure's title, without its number, or "title: caption" where the picture has its own. `counts`
  grows by `empty_caption`, `broken_page`, `seen_in_training` (a digest in `seen`) and the causes of
  `FolderPictures.find` and `filters.judge_picture`.
  """
  try:
    content = read_page(page.read_bytes()).content
  except (OSError, BrokenPage):
    counts["broken_page"] += 1
    return
  for address, caption in captioned(content):
    picture = pictures.find(address, str(page.parent))
    cause = picture.cause if isinstance(picture, Lost) else judge.refusal(picture, seen)
    cause = cause or ("" if caption else "empty_caption")
    if cause:
      counts[cause] += 1
    else:
      digest = hashlib.sha256(picture.data).hexdigest()
      yield digest, Example(("", caption), (picture.data,), source, license)


def captioned(content: lxml.html.HtmlElement) -> Iterator[tuple[str, str]]:
  """(address, caption) of each picture in a figure of the page, in reading order; a caption may be empty."""
  for figure in content.iter("div"):
    if not FIGURES.isdisjoint(figure.classes):
      title = _NUMBER.sub(
        "", _text(next((child for child in figure.iterchildren("p") if "title" in child.classes), None))
      )
      for medium in _inside(figure, "mediaobject"):
        own = _text(next(_inside(medium, "caption"), None))
        for picture in medium.iter("img"):
          yield picture.get("src", ""), join_caption(title, own)


def join_caption(title: str, own: str) -> str:
  """Both parts of a caption, or the one that says something."""
  if own and title and own != title:
    return f"{title.rstrip('.:')}: {own}"
  return own or title


def without_duplicates(
  pairs: Iterable[tuple[str, Example]], counts: collections.Counter
) -> Iterator[tuple[str, Example]]:
  """Drops pairs whose picture and caption both came before, counted as `duplicate`; a picture may have two captions."""
  known = set()
  for digest, example in pairs:
    key = (digest, example.texts)
    if key in known:
      counts["duplicate"] += 1
    else:
      known.add(key)
      yield digest, example


def tidy_caption(text: str) -> str:
  """One line, with no space inside quotation marks and brackets, nor before the mark that ends a clause."""
  text = " ".join(text.split())
  text = re.sub(r"([“(\[])\s+", r"\1", text)
  text = re.sub(r"\s+([”)\]])", r"\1", text)
  return re.sub(r"\s+([.,;:!?])(?=\s|$)", r"\1", text)


def _inside(element: lxml.html.HtmlElement, name: str) -> Iterator[lxml.html.HtmlElement]:
  """The <div>s of a class under an element, in document order."""
  return (inner for inner in element.iterdescendants("div") if name in inner.classes)


def _text(element: lxml.html.HtmlElement | None) -> str:
  return "" if element is None else tidy_caption(text_of(element))
