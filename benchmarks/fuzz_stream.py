"""Thousands of records that are wrong in every way, read through the real streams.

    python benchmarks/fuzz_stream.py [--records 10000] [--seed 0] [--folder DIR]

Prints one JSON line. A third of the records each are captioned pictures, pages and films; of these, pictures of every
format, films of several containers, texts and whole records are damaged at random. Once rows are planned, bits of the
shards themselves are, too, and one shard is cut short. Every stream is read for exactly one epoch. `accounted` is the
share of records that are either a row with text or named as left out, each once: it must be 1. A crash ends the
program; a hang shows in `slowest_batch_seconds`.
"""

import argparse
import collections
import dataclasses
import io
import json
import pathlib
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
from array_record.python import array_record_module as array_record
from PIL import Image
from tokenizers import pre_tokenizers

from data_pipelines.faults import decode_faults
from data_pipelines.schema import SCHEMA_VERSION, Example, serialize
from data_pipelines.shards import MANIFEST, WRITER_OPTIONS, open_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import Tokenizer, load_tokenizer, save_bpe
from launch.numbers import number

SIZE = 32  # of pictures, pixels
PER_SHARD = 250
STREAMS = dict(
  pairs=StreamConfig("", "pairs", length=48, media=3, pack=True, flip=True, colour=0.3, crop=0.6),
  pages=StreamConfig("", "interleaved", length=64, media=4, flip=True, colour=0.3),
  films=StreamConfig("", "pairs", medium="video", length=48, frames=4, frames_per_second=5.0, flip=True, colour=0.3),
)


def main() -> None:
  one_a_stream = number(int, lambda records: records >= len(STREAMS), f"at least {len(STREAMS)}")
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--records", type=one_a_stream, default=10_000, help="of all streams together (%(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="where 200 MB are free (default: the system's temporary folder)")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    print(json.dumps(fuzz(options.records, options.seed, pathlib.Path(folder))))


def fuzz(records: int, seed: int, folder: pathlib.Path) -> dict:
  """Writes and reads all streams; returns what became of their records."""
  chance = random.Random(seed)
  tokenizer = byte_tokenizer(folder)
  shares = np.diff(np.linspace(0, records, len(STREAMS) + 1).astype(int)).tolist()
  found = collections.Counter()
  accounted, slowest, began = 0, 0.0, time.perf_counter()
  for (name, config), count in zip(STREAMS.items(), shares, strict=True):
    write_damaged(folder / name, name, count, chance)
    _ = opened(config, folder / name, tokenizer, seed).plans  # the lengths that it takes are kept
    damage_shards(folder / name, chance)
    stream = opened(config, folder / name, tokenizer, seed)
    own, causes, slow = read_epoch(stream)
    accounted, slowest = accounted + own, max(slowest, slow)
    found += causes
  return dict(
    records=records,
    accounted=accounted / records,
    skipped=dict(sorted(found.items())),
    slowest_batch_seconds=round(slowest, 2),
    seconds=round(time.perf_counter() - began, 1),
  )


def opened(config: StreamConfig, folder: pathlib.Path, tokenizer: Tokenizer, seed: int) -> Stream:
  return Stream(config, Sources((open_shards(folder, tolerated=1.0),)), tokenizer, SIZE, seed, True)


def read_epoch(stream: Stream) -> tuple[int, collections.Counter, float]:
  """Reads every row of an epoch once: records accounted for, faults by cause, and the seconds of the slowest batch."""
  causes, named, documents, slowest = collections.Counter(), set(), 0, 0.0
  batches = dataclasses.replace(stream, config=dataclasses.replace(stream.config, batch_size=1)).batches()
  for _ in range(stream.epoch_rows):
    began = time.perf_counter()
    batch = next(batches)
    slowest = max(slowest, time.perf_counter() - began)
    documents += len(np.unique(batch["segments"][batch["segments"] > 0]))
    for fault in decode_faults(batch["faults"])[0]:
      causes[fault.cause] += 1
      if fault.medium is None:
        named.add((fault.shard, fault.record))
    check(batch)
  return documents + len(named), causes, slowest


def check(batch: dict[str, np.ndarray]) -> None:
  """What must be true of every row, whatever it was made of."""
  index, mask = batch["media_index"], batch["media_mask"].any(axis=2)
  assert index.max() < mask.shape[1]
  assert (index[batch["segments"] == 0] == -1).all()
  assert not batch["loss_weights"][batch["segments"] == 0].any()
  assert not batch["media"][~batch["media_mask"]].any()


def byte_tokenizer(folder: pathlib.Path) -> Tokenizer:
  save_bpe(folder, ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], "gpt-2")
  return load_tokenizer(folder)


def write_damaged(folder: pathlib.Path, name: str, count: int, chance: random.Random) -> None:
  """Shards of damaged records."""
  folder.mkdir()
  make = dict(pairs=pair, pages=page, films=film)[name]
  shards = []
  for start in range(0, count, PER_SHARD):
    path = folder / f"fuzz-{len(shards):05d}.array_record"
    writer = array_record.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    number = min(PER_SHARD, count - start)
    for _ in range(number):
      writer.write(damaged_record(make, chance))
    writer.close()
    shards.append(dict(file=path.name, records=number, bytes=path.stat().st_size, sha256=""))
  manifest = dict(schema_version=SCHEMA_VERSION, records=count, shards=shards)
  (folder / MANIFEST).write_text(json.dumps(manifest))


def damage_shards(folder: pathlib.Path, chance: random.Random) -> None:
  """Bits of most shards, and the end of the first of several; the manifest says what they were before."""
  paths = sorted(folder.glob("*.array_record"))
  for path in paths:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((0, 0, 1, 5))):
      data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data[:-1000] if path is paths[0] and len(paths) > 1 else data)


def damaged_record(make: Callable[[random.Random], Example], chance: random.Random) -> bytes:
  """Half of the records are whole but for their media and texts; of the others bytes are changed, or all of them."""
  record = serialize(make(chance))
  match chance.randrange(8):
    case 0:
      return damaged(record, chance)
    case 1:
      return record.replace(b"texts", chance.choice((b"textz", b"media", b"\xff\xff\xff\xff\xff")), 1)
    case 2:
      return chance.randbytes(chance.randrange(200))
    case _:
      return record


def damaged(data: bytes, chance: random.Random) -> bytes:
  """Cut off, emptied, filled with something else, or with some bytes changed, near the beginning more often."""
  match chance.randrange(6):
    case 0:
      return data[: chance.randrange(len(data) + 1)]
    case 1:
      return chance.choice((b"", bytes(100), b"<html>404</html>", chance.randbytes(500)))
    case 2:
      at = chance.randrange(len(data) + 1)
      return data[:at] + chance.randbytes(chance.randrange(64)) + data[at + chance.randrange(64) :]
    case _:
      changed = bytearray(data)
      for _ in range(chance.choice((1, 2, 8, 64)) if data else 0):
        changed[chance.randrange(min(len(data), chance.choice((30, 300, len(data)))))] = chance.randrange(256)
      return bytes(changed)


def pair(chance: random.Random) -> Example:
  return Example((text(chance), text(chance)), (picture(chance),), "fuzz/pair", "CC0")


def page(chance: random.Random) -> Example:
  media = chance.randrange(8)
  texts = tuple(text(chance) for _ in range(media + 1))
  return Example(texts, tuple(picture(chance) for _ in range(media)), "fuzz/page", "CC0")


def film(chance: random.Random) -> Example:
  encoded = movie(chance.randrange(6))
  start = chance.choice((0.0, 0.0, 0.3, 5.0))
  end = chance.choice((None, start + 0.2))
  media = damaged(encoded, chance) if chance.random() < 0.6 else encoded
  return Example(("", text(chance)), (media,), "fuzz/film", "CC0", start, end)


def text(chance: random.Random) -> str:
  match chance.randrange(8):
    case 0:
      return ""
    case 1:
      return "".join(chr(chance.choice((*range(32), 127, 0x202E, 0xFEFF, 0x1F600))) for _ in range(20))
    case 2:
      return "<image><EOC><BOS><|endoftext|>" * chance.randrange(5)
    case 3:
      return "long " * chance.choice((10, 1000, 20_000))
    case 4:
      return "".join(chr(chance.randrange(0x20, 0xD800)) for _ in range(chance.randrange(50)))
    case _:
      return "a caption of " + " ".join("the" for _ in range(chance.randrange(20)))


def picture(chance: random.Random, spoilt: float = 0.66) -> bytes:
  """A small picture of any format and mode; a share of them damaged; some claim to be huge."""
  mode, format = chance.choice((("RGB", "JPEG"), ("RGB", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"),
                                ("L", "JPEG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGBA", "TIFF"),
                                ("1", "PNG"), ("LA", "PNG"), ("RGB", "EPS"), ("P", "PNG")))  # fmt: skip
  width, height = chance.choice(((40, 30), (1, 1), (300, 2), (16, 16), (130, 90)))
  image = Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height))
  file = io.BytesIO()
  exif = Image.Exif()
  exif[0x112] = chance.randrange(12)
  options = dict(exif=exif) if format in ("JPEG", "PNG", "WEBP") and chance.random() < 0.3 else {}
  (image.convert("I") if mode == "I;16" else image).convert(mode).save(file, format, **options)
  encoded = file.getvalue()
  if chance.random() < spoilt / 12:
    huge = struct.pack(">HH" if format == "JPEG" else ">II", 30_000, 30_000)
    encoded = encoded.replace(struct.pack(">HH" if format == "JPEG" else ">II", height, width), huge, 1)
  return damaged(encoded, chance) if chance.random() < spoilt else encoded


MOVIES: dict[int, bytes] = {}


def movie(kind: int) -> bytes:
  """One of six films of half a second: three containers, at an even rate or not. Made once."""
  if kind not in MOVIES:
    MOVIES[kind] = encode_movie(("mp4", "avi", "matroska")[kind % 3], uneven=kind >= 3)
  return MOVIES[kind]


def encode_movie(container: str, uneven: bool) -> bytes:
  file = io.BytesIO()
  with av.open(file, "w", format=container) as output:
    stream = output.add_stream("mpeg4", rate=100)
    stream.width, stream.height = 48, 32
    for number, stamp in enumerate(stamps(uneven)):
      frame = av.VideoFrame.from_image(Image.new("RGB", (48, 32), (20 * number, 100, 50)))
      frame.pts = stamp
      output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
  return file.getvalue()


def stamps(uneven: bool) -> Iterator[int]:
  yield from ((0, 1, 2, 20, 21, 45, 50, 90) if uneven else range(0, 60, 10))


if __name__ == "__main__":
  main()
