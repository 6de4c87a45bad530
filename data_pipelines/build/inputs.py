"""From an input to parts: what a reader reads at a time, and what becomes one shard."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Iterator

from data_pipelines.build.interleaving import Document, Fault
from data_pipelines.build.settings import BuildSettings
from flamingo_jax.errors import UserError

# How a file's name ends -> the module of `readers` that reads it.
READERS = {
  "pages": {
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".warc", ".warc.gz"), "warc"),
    **dict.fromkeys((".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet"), "interleaved"),
  },
  "pairs": {
    ".tar": "webdataset",
    ".json": "coco",
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet"), "tables"),
  },
  "videos": {
    ".tar": "webdataset",
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet"), "clips"),
  },
}


@dataclasses.dataclass(frozen=True)
class Part:
  """What one shard is made of.

  Attributes:
    number: from 0, in the order of the input.
    reader: a module of `readers`.
    files: paths under the input's folder: many small ones, or one.
    start, stop: the range of its only file, in units of the reader's own.
  """

  number: int
  reader: str
  files: tuple[str, ...]
  start: int = 0
  stop: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
  """What readers are given.

  Attributes:
    root: the folder of the input.
    settings: of the build.
    find: the bytes of a picture that the input only names, or None.
  """

  root: pathlib.Path
  settings: BuildSettings
  find: Callable[[str], bytes | None]


def input_root(settings: BuildSettings) -> pathlib.Path:
  """The folder that a build reads. Raises UserError when there is no such file or folder."""
  path = pathlib.Path(settings.input)
  if not path.exists():
    raise UserError(f"--input: {path} does not exist.")
  return path if path.is_dir() else path.parent


def list_files(settings: BuildSettings) -> list[str]:
  """The files that a build reads, as sorted paths under its root; hidden ones are passed over."""
  root, path = input_root(settings), pathlib.Path(settings.input)
  if not path.is_dir():
    return [path.name]
  relative = (found.relative_to(root) for found in path.rglob("*") if found.is_file())
  return sorted(name.as_posix() for name in relative if not any(part.startswith(".") for part in name.parts))


def make_parts(settings: BuildSettings, files: list[str]) -> list[Part]:
  """The parts of a build. Raises UserError when no file is one that this kind of build reads."""
  size, root = settings.documents_per_shard, input_root(settings)
  if settings.tfds:
    ranges = [("tfds", ("",), start, stop) for start, stop in reader_module("tfds").split(settings)]
  else:
    ranges = list(_ranges(settings, files, size, root))
  if not ranges:
    raise UserError(
      f"--input: {settings.input} holds nothing to build {settings.kind} from; "
      f"read are {', '.join(READERS[settings.kind])}."
    )
  return [Part(number, *fields) for number, fields in enumerate(ranges)]


def read_part(part: Part, source: Source) -> Iterator[Document | Fault]:
  """The documents of a part, in an order that is always the same."""
  return reader_module(part.reader).read(part, source)


def reader_module(name: str):
  return importlib.import_module(f"data_pipelines.build.readers.{name}")


def reader_of(kind: str, file: str) -> str | None:
  """The reader of a file, by the end of its name."""
  name = file.lower()
  return next((reader for suffix, reader in READERS[kind].items() if name.endswith(suffix)), None)


def _ranges(settings: BuildSettings, files: list[str], size: int, root: pathlib.Path) -> Iterator[tuple]:
  readers = {file: reader for file in files if (reader := reader_of(settings.kind, file))}
  for file in [file for file in readers if file.endswith(".tar")]:
    readers.pop(f"{file.removesuffix('.tar')}.parquet", None)  # as img2dataset writes it: the tar's captions once more
  pages = [file for file, reader in readers.items() if reader == "html"]  # each is one document
  for start in range(0, len(pages), size):
    names = tuple(pages[start : start + size])
    yield "html", names, 0, len(names)
  for file, reader in readers.items():
    if reader != "html":
      for start, stop in reader_module(reader).split(root / file, size):
        yield reader, (file,), start, stop
