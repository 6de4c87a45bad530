"""From the address of a picture to its bytes, inside one folder and nowhere else; and which pictures are kept."""

import base64
import binascii
import collections
import errno
import hashlib
import pathlib
import stat
import urllib.parse
from collections.abc import Callable, Collection
from typing import Protocol

from PIL import Image

from data_pipelines.build.filters import PAPER, PictureRules, judge_picture
from data_pipelines.build.interleaving import Lost, Medium

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # of what a name may mean
LARGEST_MEDIUM = 2**30  # bytes of a file
VERDICTS = 100_000  # kept in memory at most; pictures that are shown again soon are decoded once


class Pictures(Protocol):
  """Where the pictures of a page are found."""

  def find(self, address: str, base: str, description: str = "") -> Medium | Lost:
    """The picture that a page at `base` shows as `address`, or why it cannot be had."""


class FolderPictures:
  """Pictures in a folder of pages, and those that a book knows by their URLs.

  The causes of what cannot be had are `missing`, `broken` (a data: address that is no base64), `remote` (nothing is
  fetched from the network) and `outside_folder` (the path leaves the root, by `..` or by a link).
  """

  def __init__(self, root: pathlib.Path, known: Callable[[str], bytes | None] = lambda url: None):
    self.root = root.resolve()
    self._known = known

  def find(self, address: str, base: str, description: str = "") -> Medium | Lost:
    address = address.strip()
    try:
      if "//" in base and not address.startswith("data:"):  # the page says that it lies elsewhere
        address = urllib.parse.urljoin(base, address)
      url = urllib.parse.urlsplit(address)
    except ValueError:
      return Lost("missing", address)
    if url.scheme == "data":
      return inline_picture(address, description)
    if url.netloc or (url.scheme and url.scheme != "file"):
      data = self._known(urllib.parse.urljoin("https:", address))
      return Lost("remote", address) if data is None else Medium(data, address, description)
    return self._file(urllib.parse.unquote(url.path), pathlib.Path(base), description)

  def _file(self, name: str, folder: pathlib.Path, description: str) -> Medium | Lost:
    # As on a web server, a leading slash means the root of the pages.
    start = self.root if name.startswith("/") else folder
    return file_medium(name.lstrip("/"), start, self.root, description)


def file_medium(name: str, folder: pathlib.Path, root: pathlib.Path, description: str = "") -> Medium | Lost:
  """A file that a name means in `folder`, if it lies under `root`.

  Raises:
    OSError: the file is there and cannot be read. A disk that fails must not look like a picture that is missing.
  """
  try:
    path, top = (folder / name).resolve(), root.resolve()
    if not path.is_relative_to(top):
      return Lost("outside_folder", name[:200])
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end
      return Lost("missing", name[:200])
    if found.st_size > LARGEST_MEDIUM:
      return Lost("too_large", name[:200])
    return Medium(path.read_bytes(), path.relative_to(top).as_posix(), description)
  except (ValueError, RuntimeError):  # a NUL in the name; links in a circle
    return Lost("missing", name[:200])
  except OSError as error:
    if error.errno not in ABSENT:
      raise
    return Lost("missing", name[:200])


class UrlPictures:
  """Pictures that are known by their URLs alone, for pages that have one; causes as in `FolderPictures`."""

  def __init__(self, known: Callable[[str], bytes | None]):
    self._known = known

  def find(self, address: str, base: str, description: str = "") -> Medium | Lost:
    if address.strip().startswith("data:"):
      return inline_picture(address.strip(), description)
    try:
      url = urllib.parse.urldefrag(urllib.parse.urljoin(base, address.strip())).url
    except ValueError:
      return Lost("missing", address)
    data = self._known(url)
    return Lost("remote", url) if data is None else Medium(data, url, description)


def inline_picture(address: str, description: str = "") -> Medium | Lost:
  """The picture that a data: address holds."""
  header, _, body = address.partition(",")
  try:
    encoded = urllib.parse.unquote_to_bytes(body)
    data = base64.b64decode(b"".join(encoded.split()), validate=True) if header.endswith(";base64") else encoded
  except binascii.Error:
    return Lost("broken", header)
  return Medium(data, header, description)


class Judge:
  """Decodes pictures and remembers the verdicts by content, however many pages show one."""

  def __init__(self, rules: PictureRules = PAPER, look: Callable[[Image.Image], int] | None = None):
    self._rules, self._look = rules, look
    self._verdicts: collections.OrderedDict[str, tuple[str | None, int | None]] = collections.OrderedDict()

  def verdict(self, data: bytes) -> tuple[str | None, int | None]:
    """Of `filters.judge_picture`."""
    digest = hashlib.sha256(data).hexdigest()
    if digest not in self._verdicts:
      self._verdicts[digest] = judge_picture(data, self._rules, self._look)
      if len(self._verdicts) > VERDICTS:
        self._verdicts.popitem(last=False)
    return self._verdicts[digest]

  def refusal(self, medium: Medium, seen: Collection[str] = ()) -> str | None:
    """Why a picture is not shown: the rules are against it, or its digest is in `seen`."""
    cause, _ = self.verdict(medium.data)
    if cause:
      return cause
    return "seen_in_training" if hashlib.sha256(medium.data).hexdigest() in seen else None
