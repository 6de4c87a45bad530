"""An HTML page becomes texts and pictures in reading order."""

import collections
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Collection, Iterator

import lxml.html

from data_pipelines.build.html import LARGEST_PAGE, BrokenPage, read_page
from data_pipelines.build.interleaving import Lost, Medium, adjacent_media, interleave, judge_parts
from data_pipelines.build.pictures import FolderPictures, Judge, Pictures
from data_pipelines.build.texts import BREAK, tidy
from data_pipelines.schema import Example

# Elements that stand on lines of their own.
# fmt: off
BLOCK_TAGS = frozenset([
  "address", "article", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl", "dt", "fieldset",
  "figcaption", "figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre",
  "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
])
# fmt: on
TRACKING_PIXEL = 3  # pixels a side, as an <img> declares them
# What follows bounds what one picture costs: a hostile page has a hundred thousand of them in one figure.
CAPTION_PARTS = 1000  # of a figure, among which its caption is looked for
SOURCES = 100  # of a <picture>
# What holds a picture and its caption, in DocBook, MediaWiki and WordPress.
FIGURE_CLASSES = frozenset(["figure", "informalfigure", "thumb", "wp-caption"])
# Where scripts keep an address until a reader has scrolled to the picture; the later ones, beside a `src` that shows
# something, may be a larger picture or a page.
_LAZY = ("data-src", "data-lazy-src")
_PERHAPS_LAZY = ("data-original", "data-url")
_FILE_NAME = re.compile(r"\S+\.(avif|bmp|gif|jpe?g|png|svg|webp)", re.IGNORECASE)


def parse_page(
  page: pathlib.Path,
  pictures: FolderPictures,
  judge: Judge,
  *,
  source: str,
  license: str,
  seen: Collection[str] = (),
) -> tuple[Example | None, collections.Counter]:
  """The Example of a page in a folder, or None, and how often each thing worth knowing happened.

  Counted are the causes for which pictures were dropped (see `FolderPictures.find` and `filters.judge_picture`),
  `seen_in_training`, `adjacent_media` (two pictures with no text between them: no token attends to the first), and why
  there is no Example: `broken_page`, `empty_page` (no text) or `no_picture` (nothing that the layers around a frozen
  language model could learn from).

  Texts carry no space at either end; where a picture is dropped, the texts around it become one.

  Args:
    page: a file.
    pictures: where the page's pictures lie.
    judge: which of them are kept.
    source: the Example's.
    license: the Example's.
    seen: sha256 digests of pictures that must not be shown again.
  """
  counts: collections.Counter = collections.Counter()
  try:
    content = read_page(read_file(page)).content
  except (OSError, BrokenPage):
    return None, collections.Counter(broken_page=1)
  parts = page_parts(content, pictures, str(page.parent))
  texts, media = interleave(judge_parts(parts, lambda medium: judge.refusal(medium, seen), counts))
  if not any(texts):
    counts["empty_page"] += 1
    return None, counts
  if not media:
    counts["no_picture"] += 1
    return None, counts
  counts["adjacent_media"] += adjacent_media(texts)
  return Example(texts, tuple(medium.data for medium in media), source, license), +counts


def read_file(path: pathlib.Path) -> bytes:
  """A page, or as much of it as tells `read_page` that it is too large. Raises OSError."""
  with path.open("rb") as file:
    return file.read(LARGEST_PAGE + 1)


def page_parts(
  content: lxml.html.HtmlElement, pictures: Pictures, base: str, describe: bool = False
) -> Iterator[str | Medium | Lost]:
  """Texts and pictures in reading order.

  Args:
    content: of a `Page`.
    pictures: where pictures are found.
    base: what relative addresses start from, as `pictures` knows it.
    describe: whether pictures get their alt texts as descriptions.
  """
  caption = functools.cache(caption_of)
  for part in reading_order(content):
    if isinstance(part, str):
      yield part
    elif is_tracking_pixel(part):
      yield Lost("tracking_pixel", part.get("src", ""))
    else:
      yield pictures.find(picture_address(part), base, description_of(part, caption) if describe else "")


def reading_order(content: lxml.html.HtmlElement) -> Iterator[str | lxml.html.HtmlElement]:
  """Pieces of text, with BREAK where a line ends, and <img> elements, in document order.

  Written with a stack: a hostile page may nest deeper than Python's own reaches.
  """
  stack: list[tuple[lxml.html.HtmlElement | str, bool]] = [(content, False)]
  while stack:
    node, preformatted = stack.pop()
    if isinstance(node, str) or node.tag == "img":
      yield node
    elif isinstance(node.tag, str):
      around = [(BREAK, False)] if node.tag in BLOCK_TAGS else []
      inside = preformatted or node.tag == "pre"
      stack += around
      for child in reversed(node):
        stack += [(_piece(child.tail, inside), False), (child, inside)]
      stack += [(_piece(node.text, inside), False), *around]


def text_of(content: lxml.html.HtmlElement) -> str:
  """The text alone, as `parse_page` would read it."""
  return tidy("".join(part for part in reading_order(content) if isinstance(part, str)))


def caption_of(figure: lxml.html.HtmlElement) -> str:
  """The text of the first parts of a figure."""
  parts = itertools.islice(reading_order(figure), CAPTION_PARTS)
  return tidy("".join(part for part in parts if isinstance(part, str)))


def picture_address(picture: lxml.html.HtmlElement) -> str:
  """Where the file of an <img> is: what a script would load later, else `src`, or else the largest of `srcset`."""
  source = picture.get("src", "").strip()
  names = _LAZY if source and not source.startswith("data:") else (*_LAZY, *_PERHAPS_LAZY)
  lazy = next((picture.get(name) for name in names if picture.get(name)), "")
  return lazy or _largest_of(picture, "data-srcset") or source or _largest_of(picture, "srcset")


def _largest_of(picture: lxml.html.HtmlElement, name: str) -> str:
  """The largest of the first set that an <img>, or a <source> of the <picture> around it, has under a name."""
  around = next(picture.iterancestors("picture"), None)  # not the parent: libxml2 takes <source> for a container
  sets = [picture, *(() if around is None else itertools.islice(around.iter("source"), SOURCES))]
  return next((_largest(element.get(name)) for element in sets if element.get(name)), "")


def is_tracking_pixel(picture: lxml.html.HtmlElement) -> bool:
  """Whether an <img> declares a size that nobody could see."""
  sides = (picture.get(name, "").strip().removesuffix("px") for name in ("width", "height"))
  return any(re.fullmatch(r"[0-9]{1,9}", side) and int(side) <= TRACKING_PIXEL for side in sides)


def description_of(picture: lxml.html.HtmlElement, caption: Callable[[lxml.html.HtmlElement], str]) -> str:
  """The alt text of an <img>, unless it is a file's name or the caption of its figure says it already."""
  text = tidy(picture.get("alt", ""))
  if _FILE_NAME.fullmatch(text):
    return ""
  figure = next((parent for parent in picture.iterancestors() if _is_figure(parent)), None)
  return "" if figure is not None and text in caption(figure) else text


def _is_figure(element: lxml.html.HtmlElement) -> bool:
  return element.tag == "figure" or not FIGURE_CLASSES.isdisjoint(element.classes)


def _largest(srcset: str) -> str:
  """The address of `srcset` with the largest width or density. An address may hold commas, but no space."""

  def size(candidate: list[str]) -> float:
    number = re.fullmatch(r"(\d+(?:\.\d+)?)[wx],?", candidate[1]) if len(candidate) > 1 else None
    return float(number[1]) if number else 1.0

  candidates = [candidate.split() for candidate in re.split(r",\s+|(?<=[wx]),", srcset.strip()) if candidate.strip()]
  return max(candidates, key=size)[0] if candidates else ""


def _piece(text: str | None, preformatted: bool) -> str:
  if not text:
    return ""
  return text.replace("\r\n", BREAK).replace("\r", BREAK) if preformatted else re.sub(r"\s+", " ", text)
