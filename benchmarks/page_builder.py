"""How quickly `flamingo data build-pages` reads the GIMP manual, and what a second worker is worth.

    python benchmarks/page_builder.py [--workers 2] [--repeats 2]

Prints one JSON line. The bare limit is a plain loop, in the same run and on one core, that parses every page and
decodes and judges every picture once, and does nothing else: no hash, no shard, no Beam. A build does all of that, so
`share_of_bare` is what is left. Seconds are those of the quickest repeat, from the call to the finished manifest; those
that a build of a single page takes, in which workers start, stand beside them: on an input as small as this they are a
large part. Needs what `make train` leaves in data/.
"""

import argparse
import hashlib
import json
import logging
import pathlib
import shutil
import tempfile
import time

from data_pipelines.build.filters import check_picture
from data_pipelines.build.html import read_page
from data_pipelines.build.interleaving import Medium
from data_pipelines.build.job import build
from data_pipelines.build.pages import page_parts
from data_pipelines.build.pictures import FolderPictures
from data_pipelines.build.quickstart import PAGES_LICENSE, PAGES_PACKAGE, find_pages
from data_pipelines.build.settings import BuildSettings
from launch.numbers import positive

DOWNLOADS = pathlib.Path("data/quickstart/downloads") / PAGES_PACKAGE
PAGES_A_SHARD = 50  # so that there is work for several workers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workers", type=positive, default=2, help="compared with one (%(default)s)")
  parser.add_argument("--repeats", type=positive, default=2, help="of everything (%(default)s)")
  options = parser.parse_args()
  logging.disable(logging.WARNING)  # Beam warns of clouds that are not there
  print(json.dumps(measure(find_pages(DOWNLOADS), options.workers, options.repeats)))


def measure(folder: pathlib.Path, workers: int, repeats: int) -> dict[str, float]:
  page = next(folder.glob("*.html"))
  bare = min(read_bare(folder) for _ in range(repeats))
  seconds, start = {}, {}
  for count in (1, workers):
    start[count] = min(build_seconds(page, count)[0] for _ in range(repeats))
    runs = [build_seconds(folder, count) for _ in range(repeats)]
    seconds[count] = min(took for took, _ in runs)
  read = runs[0][1]["read"]
  return dict(
    pages=read["documents"],
    pictures=read["media"],
    workers=workers,
    pages_a_second_bare=round(read["documents"] / bare, 1),
    pages_a_second_1_worker=round(read["documents"] / seconds[1], 1),
    pictures_a_second_1_worker=round(read["media"] / seconds[1], 1),
    pages_a_second_workers=round(read["documents"] / seconds[workers], 1),
    pictures_a_second_workers=round(read["media"] / seconds[workers], 1),
    start_seconds_1_worker=round(start[1], 2),
    start_seconds_workers=round(start[workers], 2),
    share_of_bare=round(bare / seconds[1], 3),
    speedup_of_workers=round(seconds[1] / seconds[workers], 3),
  )


def read_bare(folder: pathlib.Path) -> float:
  """Seconds to parse all pages and to judge each of their pictures once."""
  began, seen, pictures = time.perf_counter(), set(), FolderPictures(folder)
  for path in sorted(folder.glob("*.html")):
    for part in page_parts(read_page(path.read_bytes()).content, pictures, str(path.parent), describe=True):
      digest = hashlib.sha256(part.data).digest() if isinstance(part, Medium) else None
      if digest and digest not in seen:
        seen.add(digest)
        check_picture(part.data)
  return time.perf_counter() - began


def build_seconds(path: pathlib.Path, workers: int) -> tuple[float, dict]:
  """How long a build takes, and its manifest."""
  output = pathlib.Path(tempfile.mkdtemp())
  settings = BuildSettings(
    "pages", str(path.resolve()), PAGES_PACKAGE, PAGES_LICENSE, documents_per_shard=PAGES_A_SHARD, fewest_pictures=0
  )
  began = time.perf_counter()
  try:
    manifest = build(settings, output / "pages", workers=workers)
  finally:
    shutil.rmtree(output)
  return time.perf_counter() - began, manifest


if __name__ == "__main__":
  main()
