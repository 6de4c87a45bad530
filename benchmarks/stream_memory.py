"""Whether memory stays flat: 20,000 steps of a mixture of small streams, with all that a stream can do.

    python benchmarks/stream_memory.py [--steps 20000] [--folder DIR]

Prints one JSON line: resident MiB at twenty places of the run, and how much of that the last four fifths added. Packed
captions of two sources, pages and films, augmented, with some records that cannot be used, go through what a training
run reads them by, skip log included. Linux only: memory is read from /proc.
"""

import argparse
import gc
import itertools
import json
import os
import pathlib
import random
import tempfile
import time

import numpy as np
from fuzz_stream import SIZE, byte_tokenizer, encode_movie, picture

from data_pipelines.mixtures import mixture
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from launch.numbers import number
from launch.skips import without_skipped

RECORDS = 400  # of a source
SPOILT = 0.03  # of the pictures
POINTS = 20
AUGMENTED = dict(flip=True, colour=0.3, maximum_skipped=1.0)
STREAMS = dict(
  captions=StreamConfig(("a", "b"), "pairs", shares=(3, 1), batch_size=2, length=48, media=3, pack=True, **AUGMENTED),
  pages=StreamConfig("pages", "interleaved", batch_size=2, length=64, media=3, **AUGMENTED),
  films=StreamConfig("films", "pairs", medium="video", batch_size=1, length=32, frames=4, **AUGMENTED),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=number(int, lambda steps: steps >= POINTS, f"at least {POINTS}"), default=20_000)
  parser.add_argument("--folder", help="where 100 MB are free (default: the system's temporary folder)")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    print(json.dumps(measure(pathlib.Path(folder), options.steps)))


def measure(folder: pathlib.Path, steps: int) -> dict:
  write_sources(folder)
  tokenizer = byte_tokenizer(folder)
  streams = {
    name: Stream(
      config, Sources(tuple(open_shards(folder / source) for source in config.sources)), tokenizer, SIZE, 0, True
    )
    for name, config in STREAMS.items()
  }
  batches = without_skipped(mixture(streams, 0), STREAMS, 0, folder / "skipped.jsonl")
  places = [steps * (point + 1) // POINTS for point in range(POINTS)]
  curve, began, skipped = [], time.perf_counter(), 0
  for step, (_, counts) in enumerate(itertools.islice(batches, steps), 1):
    skipped += sum(counts.values())
    if step in places:
      gc.collect()
      curve.append(round(resident_mib(), 1))
  settled, since = curve[POINTS // 5 - 1 :], np.array(places[POINTS // 5 - 1 :])
  return dict(
    steps=steps,
    skipped=skipped,
    resident_mib=curve,
    growth_mib=round(settled[-1] - settled[0], 1),
    growth_share=round(settled[-1] / settled[0] - 1, 4),
    mib_per_1000_steps=round(float(np.polyfit(since / 1000, settled, 1)[0]), 3),
    seconds=round(time.perf_counter() - began, 1),
  )


def resident_mib() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_sources(folder: pathlib.Path) -> None:
  chance = random.Random(0)
  films = [encode_movie(container, uneven) for container in ("mp4", "avi", "matroska") for uneven in (False, True)]

  def text() -> str:
    return "the cat " * chance.randrange(1, 4)

  def pairs(count: int):
    return [Example(("", text()), (picture(chance, SPOILT),), "memory/pair", "CC0") for _ in range(count)]

  pages = [
    Example((text(), text(), text()), (picture(chance, SPOILT), picture(chance, SPOILT)), "memory/page", "CC0")
    for _ in range(RECORDS)
  ]
  films = [Example(("", text()), (chance.choice(films),), "memory/film", "CC0") for _ in range(50)]
  for name, examples in dict(a=pairs(RECORDS), b=pairs(RECORDS // 2), pages=pages, films=films).items():
    write_shards(folder / name, examples, {}, records_per_shard=100)


if __name__ == "__main__":
  main()
