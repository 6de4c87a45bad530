"""How fast captioned JPEGs are read: against bare decoding on the same cores, and against the reader that peers use.

    pip install webdataset
    python benchmarks/input_pipeline.py [--size 320] [--pictures 3000] [--rounds 5] [--folder DIR]

Prints one JSON line. The pictures are the quickstart's, made JPEGs of 500 x 375. Three kinds of reading take turns in
one process, each on all cores, and the median of their rounds counts:

- `stream`: our caption stream as training has it: records read, captions tokenized and packed into arrays, pictures
  decoded, flipped, coloured, scaled and padded.
- `bare`: tf.data of nothing but `tf.io.decode_jpeg` and `tf.image.resize` to the same size, of bytes in memory.
- `peer`: as OpenFlamingo reads: WebDataset tar files, Pillow, bicubic scaling, centre crop, floats, a PyTorch
  DataLoader with a process for each core.

`over_bare` and `over_peer` compare images a second. Where others use the machine too, these depend on how much of it
each round got; `cpu_over_bare` does not: it is the CPU time of an image of `bare` over that of one of `stream`. (The
peer works in processes of its own.)

`resume_ratio` is the time to the first batch from step 1,000,000 over that from step 0. Needs torch, and what
`make train` leaves in data/.
"""

import argparse
import functools
import io
import itertools
import json
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import torch
from PIL import Image, ImageOps

from data_pipelines.schema import Example, parse
from data_pipelines.sequences import pair_text
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream, cores
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import load_tokenizer
from launch.numbers import positive

DATA = pathlib.Path("data/quickstart")
WIDTH, HEIGHT, QUALITY = 500, 375, 90
LENGTH, BATCH = 32, 32
CONFIG = StreamConfig("", "pairs", length=LENGTH, batch_size=BATCH, flip=True, colour=0.1)  # flamingo_3b's
READ_AHEAD = 8  # batches that lie ready when a round begins, and are not counted
RESUMES = 5
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--size", type=positive, default=320, help="of the square that pictures become, pixels (%(default)s)"
  )
  parser.add_argument("--pictures", type=positive, default=3000)
  parser.add_argument("--rounds", type=positive, default=5)
  parser.add_argument("--seconds", type=float, default=2.0, help="of a round of each kind (%(default)s)")
  parser.add_argument("--folder", help="where 500 MB are free (default: the system's temporary folder)")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    print(json.dumps(measure(pathlib.Path(folder), options)))


def measure(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  examples = make_examples(options.pictures)
  write_shards(folder / "shards", examples, {})
  write_tars(folder / "tars", examples)
  tokenizer = load_tokenizer(DATA / "language_model")
  stream = Stream(CONFIG, Sources((open_shards(folder / "shards"),)), tokenizer, options.size, 0, True)
  kinds = dict(
    stream=stream.batches(),
    bare=bare([example.media[0] for example in examples], options.size),
    peer=peer(sorted(map(str, (folder / "tars").glob("*.tar"))), options.size),
  )
  speeds, costs = alternate(kinds, options.rounds, options.seconds)
  near, far = (first_batch_seconds(stream, step) for step in (0, 1_000_000))
  return dict(
    size=options.size,
    pictures=len(examples),
    mean_bytes=round(statistics.mean(len(example.media[0]) for example in examples)),
    cores=cores(),
    **{f"images_a_second_{kind}": round(speed) for kind, speed in speeds.items()},
    over_bare=round(speeds["stream"] / speeds["bare"], 2),
    over_peer=round(speeds["stream"] / speeds["peer"], 2),
    **{f"cpu_microseconds_an_image_{kind}": round(1e6 * costs[kind]) for kind in ("stream", "bare")},
    cpu_over_bare=round(costs["bare"] / costs["stream"], 2),
    first_batch_seconds=round(near, 3),
    first_batch_seconds_at_step_1000000=round(far, 3),
    resume_ratio=round(far / near, 2),
  )


def alternate(kinds: dict[str, Iterator], rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
  """Images a second of each kind, and CPU seconds of this process an image: medians of its rounds.

  None reads ahead in the round of another.
  """
  speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
  costs: dict[str, list[float]] = {kind: [] for kind in kinds}
  for _ in range(rounds):
    for kind, batches in kinds.items():
      for _ in range(READ_AHEAD):
        next(batches)
      began, worked, images = time.perf_counter(), time.process_time(), 0
      while time.perf_counter() - began < seconds:
        next(batches)
        images += BATCH
      costs[kind].append((time.process_time() - worked) / images)
      speeds[kind].append(images / (time.perf_counter() - began))
      time.sleep(1.5 * READ_AHEAD * BATCH / speeds[kind][-1])  # till what it reads ahead lies ready, and it rests
  speed, cost = ({kind: statistics.median(each[kind]) for kind in kinds} for each in (speeds, costs))
  return speed, cost


def first_batch_seconds(stream: Stream, step: int) -> float:
  def once() -> float:
    began = time.perf_counter()
    next(stream.batches(step))
    return time.perf_counter() - began

  return statistics.median(once() for _ in range(RESUMES))


def make_examples(count: int) -> list[Example]:
  """Pictures of captions, then of pages, each with a caption of the former, as JPEGs of one size."""
  captions, pages = (open_shards(DATA / "streams" / name / "train") for name in ("captions", "pages"))
  pairs = [parse(captions[index]) for index in range(len(captions))]
  shown = (parse(pages[index]).media for index in range(len(pages)))
  pictures = itertools.chain((pair.media[0] for pair in pairs), itertools.chain.from_iterable(shown))
  texts = itertools.cycle(pair_text(pair.texts) for pair in pairs)
  return [
    Example(("", text), (as_jpeg(picture),), "benchmark/pair", "see docs/quickstart_data.md")
    for picture, text in zip(itertools.islice(pictures, count), texts, strict=False)
  ]


def as_jpeg(picture: bytes) -> bytes:
  file = io.BytesIO()
  image = Image.open(io.BytesIO(picture)).convert("RGBA").convert("RGB")
  ImageOps.fit(image, (WIDTH, HEIGHT)).save(file, "JPEG", quality=QUALITY)
  return file.getvalue()


def bare(pictures: list[bytes], size: int) -> Iterator[np.ndarray]:
  """Nothing but decoding and scaling, of pictures in memory."""

  def decode(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.image.resize(tf.io.decode_jpeg(encoded, channels=3), (size, size)), tf.uint8)

  dataset = tf.data.Dataset.from_tensor_slices(pictures).repeat().map(decode, num_parallel_calls=cores())
  options = tf.data.Options()
  options.threading.private_threadpool_size = cores()
  return dataset.batch(BATCH).prefetch(2).with_options(options).as_numpy_iterator()


def write_tars(folder: pathlib.Path, examples: list[Example]) -> None:
  """As many tar files as there are cores, so that each process has one of its own."""
  folder.mkdir()
  for number in range(cores()):
    with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
      for index, example in list(enumerate(examples))[number :: cores()]:
        for ending, data in (("jpg", example.media[0]), ("txt", example.texts[1].encode())):
          entry = tarfile.TarInfo(f"{index:06d}.{ending}")
          entry.size = len(data)
          tar.addfile(entry, io.BytesIO(data))


def peer(tars: list[str], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
  """A WebDataset of Pillow pictures through a DataLoader, for ever."""
  import webdataset  # of this benchmark alone

  dataset = (
    webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
    .shuffle(1000, initial=100)
    .decode("pilrgb")
    .to_tuple("jpg", "txt")
    .map_tuple(functools.partial(peer_pixels, size=size), peer_tokens)
    .batched(BATCH, partial=False)
    .repeat()
  )
  workers = dict(num_workers=cores(), multiprocessing_context="spawn", persistent_workers=True)
  return iter(torch.utils.data.DataLoader(dataset, batch_size=None, **workers))


def peer_pixels(image: Image.Image, size: int) -> torch.Tensor:
  """CLIP's preprocessing: the shorter side to `size`, the middle, floats of mean 0 and deviation 1: [3, size, size]."""
  scale = size / min(image.size)
  width, height = (round(side * scale) for side in image.size)
  left, top = (width - size) // 2, (height - size) // 2
  image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
  return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def peer_tokens(text: str) -> torch.Tensor:
  tokens = peer_tokenizer()(text)[:LENGTH]
  return torch.tensor(tokens + [0] * (LENGTH - len(tokens)))


@functools.cache
def peer_tokenizer() -> Callable[[str], list[int]]:
  return load_tokenizer(DATA / "language_model").encode


if __name__ == "__main__":
  main()
