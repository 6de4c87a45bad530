"""The bytes of an HTML page to the tree of its main content: navigation, banners and the like are cut away.

Written over lxml, and not over an extractor of articles (trafilatura, readability, resiliparse): those give text, and
lose the place of pictures or the pictures.
"""

import codecs
import dataclasses
import re
from collections.abc import Iterator

import lxml.etree
import lxml.html
import webencodings

# What a reader skips: it is not content, or the same on every page.
# fmt: off
SKIPPED_TAGS = frozenset([
  "aside", "button", "canvas", "dialog", "footer", "form", "head", "header", "iframe", "nav", "noscript", "object",
  "script", "select", "style", "svg", "template", "textarea",
])
SKIPPED_ROLES = frozenset([
  "alert", "alertdialog", "banner", "complementary", "contentinfo", "dialog", "menu", "menubar", "navigation", "search",
  "toolbar",
])
# Words of a class or an id, as people name what surrounds content (after Mozilla's Readability, `unlikelyCandidates`);
# and words by which they name what holds it too, as in "content-with-sidebar".
SKIPPED_WORDS = frozenset([
  "ad", "ads", "advert", "advertisement", "breadcrumb", "breadcrumbs", "comments", "consent", "cookie", "cookies",
  "disqus", "footer", "gdpr", "menu", "modal", "nav", "navbar", "navfooter", "navheader", "navigation", "newsletter",
  "pager", "pagination", "popup", "promo", "related", "share", "sharing", "shoutbox", "sidebar", "skyscraper", "social",
  "sponsor", "sponsored", "subscribe", "toc", "toolbar", "widget",
])
KEPT_WORDS = frozenset(["article", "body", "column", "container", "content", "has", "main", "no", "page", "with"])
CONTENT = frozenset(["article", "body", "html", "main"])
# fmt: on
LINKS = 3  # a list of fewer links may be content, whatever its share of them
DECLARED_WITHIN = 4096  # bytes in which a page must name its encoding
LARGEST_PAGE = 64 * 2**20  # bytes; parsed, a page takes some ten times as much
_DECLARED = re.compile(
  rb"""<\?xml[^>]*\bencoding\s*=\s*["']([\w.:-]+)|<meta[^>]*\bcharset\s*=\s*["']?([\w.:-]+)""", re.I
)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16le"), (codecs.BOM_UTF16_BE, "utf-16be"))


class BrokenPage(Exception):
  """The bytes are no text in the encoding that the page declares, or no page that can be read to its end."""


@dataclasses.dataclass(frozen=True)
class Page:
  """A page that was read.

  Attributes:
    content: the main content: its <main>, or else its only <article>, or else all of it, without boilerplate.
    base: what its <base> gives for relative addresses to start from, or an empty string.
    license: the address that it names with rel="license", among other words or not, or an empty string.
  """

  content: lxml.html.HtmlElement
  base: str = ""
  license: str = ""


def read_page(page: bytes, charset: str | None = None, most_linked: float = 1.0) -> Page:
  """Parses a page and cuts boilerplate away.

  Args:
    page: the file.
    charset: what the server said of its encoding; goes before what the page says.
    most_linked: blocks are cut away too in which links hold a larger share of the text (`cut_link_lists`).

  Raises BrokenPage when the bytes are not text, or over 64 MiB, or elements nest deeper than libxml2 follows (2,048).
  """
  if len(page) > LARGEST_PAGE:
    raise BrokenPage(f"{len(page)} bytes; at most {LARGEST_PAGE} are read")
  text = decode(page, charset)
  # Parsed as bytes of a known encoding: lxml refuses a str whose XML declaration names one.
  parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
  try:
    tree = lxml.html.document_fromstring(text.encode(errors="replace"), parser=parser)
  except lxml.etree.ParserError:  # nothing but space and comments
    return Page(lxml.html.Element("html"))
  fatal = next(iter(parser.error_log.filter_from_fatals()), None)
  if fatal is not None:  # what lies behind it is lost
    raise BrokenPage(fatal.message)
  for more in list(tree.itersiblings()):  # what comes after </html> is shown too
    tree.append(more)
  base, license = _base(tree), _license(tree)
  content = _root(tree)
  cut_boilerplate(content)
  if most_linked < 1:
    cut_link_lists(content, most_linked)
  return Page(content, base, license)


def decode(page: bytes, charset: str | None = None) -> str:
  """The text of a page in the encoding of its byte order mark, of `charset`, that it declares, or else UTF-8.

  Names of encodings mean what browsers take them for (WHATWG): iso-8859-1 is windows-1252, gb2312 is GBK.

  Raises BrokenPage when it is not text in that encoding.
  """
  for mark, encoding in _MARKS:
    if page.startswith(mark):
      page, charset = page[len(mark) :], encoding
  try:
    encoding = _encoding(charset) if charset else _declared_encoding(page)
    errors = _OPEN_BYTES if encoding.name.startswith("windows-") else "strict"
    text, _ = encoding.codec_info.decode(page, errors)
  except (ValueError, LookupError) as error:
    raise BrokenPage(str(error)) from error
  if "\0" in text:
    raise BrokenPage("a NUL byte: this is not text")
  return text


def cut_boilerplate(content: lxml.html.HtmlElement) -> None:
  """Removes what surrounds content: by tag, by role, by the words of class and id, and what is hidden."""
  _cut(element for element in content.iterdescendants() if isinstance(element.tag, str) and _is_boilerplate(element))


def cut_link_lists(content: lxml.html.HtmlElement, most_linked: float) -> None:
  """Removes blocks of at least three links, in which these hold more than a share of the text."""
  text, linked, links = {}, {}, {}
  for element in reversed(list(content.iter())):  # children before their parents
    children = list(element)
    own = _visible(element.text) + sum(text[child] + _visible(child.tail) for child in children)
    text[element] = own
    is_link = element.tag == "a"
    linked[element] = own if is_link else sum(linked[child] for child in children)
    links[element] = 1 if is_link else sum(links[child] for child in children)
  _cut(
    element
    for element in content.iterdescendants()
    if element.tag in _LISTS and links[element] >= LINKS and linked[element] > most_linked * text[element]
  )


_LISTS = frozenset(["dl", "div", "ol", "p", "section", "table", "tr", "ul"])


def _declared_encoding(page: bytes) -> webencodings.Encoding:
  declared = _DECLARED.search(page[:DECLARED_WITHIN])
  encoding = _encoding((declared[1] or declared[2]).decode() if declared else "utf-8")
  # Whoever could read that it is UTF-16 has read ASCII.
  return webencodings.UTF8 if encoding.name.startswith("utf-16") else encoding


def _encoding(label: str) -> webencodings.Encoding:
  """What a label means, in a browser's spelling or Python's. Raises LookupError when it names no encoding of pages."""
  encoding = webencodings.lookup(label) or webencodings.lookup(codecs.lookup(label).name)
  if encoding is None or encoding.name == "replacement":  # which browsers refuse to read
    raise LookupError(f"{label} is no encoding of pages")
  return encoding


def _as_control(error: UnicodeError) -> tuple[str, int]:
  """A byte that a code page leaves open is the control character of its number, to browsers, and later dropped."""
  if not isinstance(error, UnicodeDecodeError) or error.object[error.start] > 0x9F:
    raise error
  return chr(error.object[error.start]), error.start + 1


_OPEN_BYTES = "flamingo_jax.open_bytes"
codecs.register_error(_OPEN_BYTES, _as_control)


def _base(tree: lxml.html.HtmlElement) -> str:
  return next(iter(tree.xpath("//base/@href")), "").strip()


def _license(tree: lxml.html.HtmlElement) -> str:
  links = tree.iterfind(".//*[@rel][@href]")
  return next((link.get("href") for link in links if "license" in link.get("rel").lower().split()), "").strip()


def _root(tree: lxml.html.HtmlElement) -> lxml.html.HtmlElement:
  main = tree.xpath("(//main | //*[@role='main'])[1]")
  articles = tree.xpath("//article[not(ancestor::article)]")
  return main[0] if main else articles[0] if len(articles) == 1 else tree


def _is_boilerplate(element: lxml.html.HtmlElement) -> bool:
  tag, attributes = element.tag, element.attrib
  if tag in CONTENT:
    return False
  if tag in SKIPPED_TAGS:
    return not _is_content(element)
  if not attributes:
    return False
  if attributes.get("role") in SKIPPED_ROLES or "hidden" in attributes or attributes.get("aria-hidden") == "true":
    return True
  if re.search(r"display\s*:\s*none", attributes.get("style", "")):
    return True
  names = f"{attributes.get('class', '')} {attributes.get('id', '')}"
  words = set(re.split(r"[\s_-]+", names.lower()))
  return bool(words & SKIPPED_WORDS) and not words & KEPT_WORDS and not _holds_content(element)


def _is_content(element: lxml.html.HtmlElement) -> bool:
  """Whether a tag that is boilerplate as a rule is none: the head of an article, a form around a whole page."""
  if element.tag == "header":
    return any(parent.tag in ("article", "main") for parent in element.iterancestors())
  return element.tag == "form" and next(element.iter("article", "main", "p", "h1", "h2"), None) is not None


def _holds_content(element: lxml.html.HtmlElement) -> bool:
  return next(element.iter("article", "h1", "main"), None) is not None


def _visible(text: str | None) -> int:
  return len(text.strip()) if text else 0


def _cut(elements: Iterator[lxml.html.HtmlElement]) -> None:
  for element in list(elements):
    if element.getparent() is not None:  # emptied, not removed: lxml moves no text that has control characters
      element.clear(keep_tail=True)
      element.tag = "span"
