"""Which picture of which archive has which address: sorted tables on disk, so that any number of them can be asked.

An archive is a WARC file, whose pictures have URLs, or a tar, whose pictures have names and, where a JSON file beside
them says so, URLs. The first 4 bits of an address's hash choose one of 16 tables.
"""

import hashlib
import pathlib
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_pipelines.build.files import read_json, write_json, write_whole
from data_pipelines.build.inputs import reader_module
from data_pipelines.build.interleaving import Fault, Medium
from data_pipelines.build.pictures import file_medium
from data_pipelines.build.tally import Tally

BUCKETS = 16
FAULTS = ".faults.json"  # how a file of them ends, after the number of the archive
_UNESCAPED = "!#$%&'()*+,/:;=?@[]|~"  # what else is ASCII and no letter or number is escaped (WHATWG, paths)
ENTRY = np.dtype([("key", "<u8"), ("archive", "<u4"), ("offset", "<u8"), ("size", "<u8")])


def archive_reader(path: str) -> str | None:
  """The module of `readers` that knows an archive's places, by the end of its name."""
  name = path.lower()
  return "warc" if name.endswith((".warc", ".warc.gz")) else "webdataset" if name.endswith(".tar") else None


def index_archive(number: int, path: str, folder: pathlib.Path) -> Iterator[tuple[int, np.ndarray]]:
  """(bucket, its entries) of the pictures in one archive; its faults are kept for `archive_faults`."""
  found, faults = [], []
  for place in reader_module(archive_reader(path)).places(pathlib.Path(path)):
    if isinstance(place, Fault):
      faults.append((place.cause, place.name, place.detail))
    else:
      address, offset, size = place
      found.append((address_key(address), number, offset, size))
  if faults:
    write_json(folder / f"{number:05d}{FAULTS}", faults)
  entries = np.array(found, ENTRY)
  for bucket in range(BUCKETS):
    yield bucket, entries[entries["key"] >> np.uint64(60) == bucket]


def archive_faults(folder: pathlib.Path) -> Tally:
  """What `index_archive` found damaged; each archive counts as a document that was read and dropped."""
  tally = Tally()
  for path in sorted(folder.glob(f"*{FAULTS}")):
    for cause, name, detail in read_json(path):
      tally.documents += 1
      tally.drop_document(cause, 0)
      tally.error(cause, name, detail)
  return tally


def write_bucket(folder: pathlib.Path, bucket: int, entries: Iterable[np.ndarray]) -> None:
  """The table of a bucket: what is in the archive that comes first is found first."""
  table = np.concatenate([np.zeros(0, ENTRY), *entries])
  table = table[np.lexsort((table["offset"], table["archive"], table["key"]))]
  write_whole(folder / f"{bucket:02d}.keys.npy", lambda file: np.save(file, np.ascontiguousarray(table["key"])))
  write_whole(folder / f"{bucket:02d}.npy", lambda file: np.save(file, table))


def is_indexed(folder: pathlib.Path) -> bool:
  return all((folder / f"{bucket:02d}.npy").exists() for bucket in range(BUCKETS))


def address_key(address: str) -> int:
  return int.from_bytes(hashlib.sha256(address.encode(errors="replace")).digest()[:8])


def escaped(address: str) -> str:
  """An address as browsers and crawlers ask for it: "a b.png" is "a%20b.png"; what is escaped already stays."""
  return urllib.parse.quote(address, safe=_UNESCAPED, errors="replace")


class AddressBook:
  """Finds pictures by address: in the archives, and as plain files in a folder.

  Args:
    tables: the folder that `write_bucket` filled.
    archives: their paths, as they were numbered.
    root: of plain files: a URL stands for "host/path", as `wget --recursive` writes it. None: there are none.
  """

  def __init__(self, tables: pathlib.Path, archives: Sequence[str], root: pathlib.Path | None):
    self._tables, self._archives = tables, archives
    self._root = root.resolve() if root else None
    self._mapped: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def find(self, address: str) -> bytes | None:
    """The bytes of a picture, or None. An address that leads out of the folder is not found."""
    if self._archives:
      for spelling in dict.fromkeys((address, escaped(address))):
        data = self._archived(spelling)
        if data is not None:
          return data
    return self._file(address) if self._root else None

  def _archived(self, address: str) -> bytes | None:
    for entry in self._entries(address_key(address)):
      path = self._archives[entry["archive"]]
      data = reader_module(archive_reader(path)).read_at(
        pathlib.Path(path), int(entry["offset"]), int(entry["size"]), address
      )
      if data is not None:
        return data
    return None

  def _entries(self, key: int) -> np.ndarray:
    keys, table = self._table(key >> 60)
    first, last = np.searchsorted(keys, np.uint64(key), "left"), np.searchsorted(keys, np.uint64(key), "right")
    return table[first:last]

  def _table(self, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    if bucket not in self._mapped:  # mapped, not read: a look-up touches a few pages of it
      paths = (self._tables / f"{bucket:02d}.keys.npy", self._tables / f"{bucket:02d}.npy")
      self._mapped[bucket] = tuple(np.load(path, mmap_mode="r") for path in paths)
    return self._mapped[bucket]

  def _file(self, address: str) -> bytes | None:
    try:
      url = urllib.parse.urlsplit(address)
    except ValueError:
      return None
    found = file_medium((url.netloc + urllib.parse.unquote(url.path)).lstrip("/"), self._root, self._root)
    return found.data if isinstance(found, Medium) else None
