"""Captioned figures of HTML pages, as DocBook writes them, become caption pairs."""

import collections
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator

import bs4

from data_pipelines.build.pages import BrokenPage, is_skipped, page_folder, read_content, refusal, text_of
from data_pipelines.build.pictures import Pictures
from data_pipelines.schema import Example

FIGURES = ("figure", "informalfigure")
_NUMBER = re.compile(r"^Figure\s+[\w.]*\d\.\s*")


def page_pairs(
  page: pathlib.Path,
  pictures: Pictures,
  counts: collections.Counter,
  *,
  source: str,
  license: str,
  seen: Collection[str] = (),
) -> Iterator[tuple[str, Example]]:
  """The captioned pictures of a page, each with the digest of its picture.

  The caption is the figure's title, without its number, or "title: caption" where the picture has its own. `counts`
  grows by `empty_caption`, `broken_page`, `seen_in_training` (a digest in `seen`) and the causes of `Pictures.load`.
  """
  try:
    content = read_content(page)
  except (OSError, BrokenPage):
    counts["broken_page"] += 1
    return
  for address, caption in captioned(content):
    picture = pictures.load(address, page_folder(page, pictures))
    cause = refusal(picture, seen) or ("" if caption else "empty_caption")
    if cause:
      counts[cause] += 1
    else:
      yield picture.digest, Example(("", caption), (picture.data,), source, license)


def captioned(content: bs4.Tag) -> Iterator[tuple[str, str]]:
  """(address, caption) of each picture in a figure of the page, in reading order; a caption may be empty."""
  for figure in content.find_all("div", class_=FIGURES):
    if any(is_skipped(parent) for parent in figure.parents):
      continue
    title = _NUMBER.sub("", _text(figure.find("p", class_="title", recursive=False)))
    for medium in figure.find_all("div", class_="mediaobject"):
      own = _text(medium.find("div", class_="caption"))
      for picture in medium.find_all("img"):
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


def _text(tag: bs4.Tag | None) -> str:
  return tidy_caption(text_of(tag)) if tag else ""
