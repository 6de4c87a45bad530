"""An HTML page becomes one Example: the text and the pictures of its main content, in reading order."""

import collections
import pathlib
import re
from collections.abc import Collection, Iterator

import bs4
from bs4.dammit import EncodingDetector

from data_pipelines.build.pictures import Picture, Pictures
from data_pipelines.schema import Example

# What a reader skips: it is not content, or the same on every page.
# fmt: off
SKIPPED_TAGS = frozenset([
  "aside", "button", "footer", "form", "head", "header", "iframe", "nav", "noscript", "object", "script", "select",
  "style", "svg", "template",
])
SKIPPED_CLASSES = frozenset(["navheader", "navfooter", "toc"])
# Elements that stand on lines of their own.
BLOCK_TAGS = frozenset([
  "address", "article", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl", "dt", "fieldset",
  "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section",
  "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
])
# fmt: on
BREAK = "\n"


class BrokenPage(Exception):
  """The bytes are no text in the encoding that the page declares."""


def parse_page(
  page: pathlib.Path | bytes,
  pictures: Pictures,
  *,
  source: str,
  license: str,
  folder: pathlib.Path | None = None,
  seen: Collection[str] = (),
) -> tuple[Example | None, collections.Counter]:
  """The Example of a page, or None, and how often each thing worth knowing happened.

  Counted are the causes for which pictures were dropped (see `Pictures.load`), `seen_in_training`, `adjacent_media`
  (two pictures with no text between them: no token attends to the first), and why there is no Example: `broken_page`,
  `empty_page` (no text) or `no_picture` (nothing that the layers around a frozen language model could learn from).

  Texts carry no space at either end; where a picture is dropped, the texts around it become one.

  Args:
    page: a file, or the bytes of one.
    pictures: where the page's pictures lie.
    source: the Example's.
    license: the Example's.
    folder: what relative addresses start from; by default the folder of `page`, or the root of `pictures`.
    seen: sha256 digests of pictures that must not be shown again.
  """
  counts: collections.Counter = collections.Counter()
  try:
    content = read_content(page)
  except (OSError, BrokenPage):
    return None, collections.Counter(broken_page=1)
  texts, media = [[]], []
  for part in _parts(content):
    if isinstance(part, str):
      texts[-1].append(part)
      continue
    picture = pictures.load(part.get("src", ""), folder or page_folder(page, pictures))
    cause = refusal(picture, seen)
    if cause:
      counts[cause] += 1
    else:
      media.append(picture.data)
      texts.append([])
  texts = [tidy("".join(parts)) for parts in texts]
  if not any(texts):
    counts["empty_page"] += 1
    return None, counts
  if not media:
    counts["no_picture"] += 1
    return None, counts
  counts["adjacent_media"] += texts[1:-1].count("")
  return Example(tuple(texts), tuple(media), source, license), +counts


def read_content(page: pathlib.Path | bytes) -> bs4.Tag:
  """The main content of a page: its <main> if there is one, else all of it.

  Raises BrokenPage when the bytes are not text, and OSError when the file cannot be read.
  """
  soup = bs4.BeautifulSoup(_decode(page if isinstance(page, bytes) else page.read_bytes()), "lxml")
  return soup.find("main") or soup  # not its <body>: text that comes after </body> is shown too


def page_folder(page: pathlib.Path | bytes, pictures: Pictures) -> pathlib.Path:
  return pictures.root if isinstance(page, bytes) else page.parent


def refusal(picture: Picture | str, seen: Collection[str]) -> str | None:
  """Why a picture is not shown: it has been in the training set already, or `Pictures.load` gave a cause for it."""
  if isinstance(picture, str):
    return picture
  return "seen_in_training" if picture.digest in seen else None


def is_skipped(tag: bs4.Tag) -> bool:
  return tag.name in SKIPPED_TAGS or not SKIPPED_CLASSES.isdisjoint(tag.get("class", ()))


def text_of(content: bs4.Tag) -> str:
  """The text alone, as `parse_page` would read it."""
  return tidy("".join(part for part in _parts(content) if isinstance(part, str)))


def tidy(text: str) -> str:
  """Lines without space around them and without empty ones among them; runs of space, of any kind, become one."""
  lines = (" ".join(line.split()) for line in text.split(BREAK))
  return BREAK.join(line for line in lines if line)


def _decode(data: bytes) -> str:
  stripped, encoding = EncodingDetector.strip_byte_order_mark(data)
  encoding = encoding or EncodingDetector.find_declared_encoding(stripped, is_html=True, search_entire_document=False)
  try:
    text = stripped.decode(encoding or "utf-8")
  except (UnicodeDecodeError, LookupError) as error:
    raise BrokenPage(str(error)) from error
  if "\0" in text:
    raise BrokenPage("a NUL byte: this is not text")
  # XHTML too is read as HTML, which knows &nbsp; and forgives; the XML declaration would only raise a warning.
  return re.sub(r"^\s*<\?xml[^>]*\?>", "", text)


def _parts(content: bs4.Tag) -> Iterator[str | bs4.Tag]:
  """Pieces of text, with BREAK where a line ends, and <img> elements, in document order.

  Written with a stack: a hostile page may nest deeper than Python's own reaches.
  """
  stack: list[bs4.PageElement | str] = [content]
  while stack:
    node = stack.pop()
    if type(node) is str:
      yield node
    elif isinstance(node, bs4.Tag):
      if is_skipped(node):
        continue
      if node.name == "img":
        yield node
        continue
      around = [BREAK] if node.name in BLOCK_TAGS else []
      stack += around
      stack += reversed(node.contents)
      yield from around
    elif type(node) is bs4.NavigableString:  # comments and the like are its subclasses
      yield _lines(node) if node.find_parent("pre") else re.sub(r"\s+", " ", node)


def _lines(text: str) -> str:
  return str(text).replace("\r\n", BREAK).replace("\r", BREAK)
