"""From the `src` of an <img> to the bytes of a picture, inside one folder and nowhere else."""

import base64
import binascii
import dataclasses
import hashlib
import pathlib
import urllib.parse

from data_pipelines.build.filters import check_picture


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture that passed the filters. `digest` is the sha256 of `data`, in hex."""

  data: bytes
  digest: str


class Pictures:
  """Pictures under a root folder. A file is decoded once, however many pages show it; only the verdict is kept."""

  def __init__(self, root: pathlib.Path):
    self.root = root.resolve()
    self._verdicts: dict[pathlib.Path, str | None] = {}

  def load(self, source: str, folder: pathlib.Path) -> Picture | str:
    """The picture that `source` names, seen from a page in `folder`, or why it is dropped.

    The causes are those of `filters.check_picture`, and `missing`, `remote` (nothing is fetched from the network) and
    `outside_folder` (the path leaves the root, by `..` or by a link).
    """
    source = source.strip()
    try:
      url = urllib.parse.urlsplit(source)
    except ValueError:
      return "missing"
    if url.scheme == "data":
      return self._inline(source)
    if url.netloc or (url.scheme and url.scheme != "file"):
      return "remote"
    return self._file(urllib.parse.unquote(url.path), folder)

  def _inline(self, source: str) -> Picture | str:
    header, _, body = source.partition(",")
    try:
      encoded = urllib.parse.unquote_to_bytes(body)
      data = base64.b64decode(b"".join(encoded.split()), validate=True) if header.endswith(";base64") else encoded
    except binascii.Error:
      return "broken"
    return check_picture(data) or Picture(data, hashlib.sha256(data).hexdigest())

  def _file(self, name: str, folder: pathlib.Path) -> Picture | str:
    # As on a web server, a leading slash means the root of the pages.
    start = self.root if name.startswith("/") else folder
    try:
      path = (start / name.lstrip("/")).resolve()
      if not path.is_relative_to(self.root):
        return "outside_folder"
      data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
      return "missing"
    if path not in self._verdicts:
      self._verdicts[path] = check_picture(data)
    return self._verdicts[path] or Picture(data, hashlib.sha256(data).hexdigest())
