"""Data for the paper's findings at a size that runs on a desk: handwritten digits, and text about them.

The pictures are real: the 1,797 digits, of 8 by 8 pixels, that scikit-learn carries (Alpaydin and Kaynak, UCI, CC BY
4.0), coloured and enlarged to 16 by 16. A fifth of them is held out. The text is built from them:

- `captions`: one digit and what it is, "a red seven".
- `pages`: on each page a few kinds of digits have names that nobody heard before, such as "dax", drawn anew for the
  page; it shows nine digits, each with its name, and half of them with a caption. What a name means is to be learnt
  from the page alone.
- `text`: captions, and the same kind of pages in words, for the language model.
- `naming`: benchmarks in the layout of captions.jsonl, each with names that stand for four kinds throughout.
"""

import dataclasses
import gzip
import io
import json
import pathlib
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console

from data_pipelines.build.fetch import fetch_wheel, read_member
from data_pipelines.build.files import write_whole
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from flamingo_jax.errors import UserError

BUILD_VERSION = 3  # to be raised with every change to what is built: data of another version is built again
WHEEL = ("scikit-learn", "1.9.1")
MEMBER = "sklearn/datasets/data/digits.csv.gz"
LICENSE = "CC-BY-4.0 (Alpaydin and Kaynak, UCI)"
SPLITS = ("train", "heldout")
HELDOUT = 5  # one in so many digits
ENLARGED = 2
BRIGHTEST = 16  # of the digits as they come

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
  "red": (255, 60, 60),
  "green": (60, 220, 60),
  "blue": (80, 100, 255),
  "yellow": (240, 230, 50),
  "purple": (200, 70, 230),
  "white": (255, 255, 255),
}
NAMES = (
  *("dax", "blick", "fep", "wug", "toma", "zup", "gorp", "kiv"),
  *("lorp", "mib", "nuz", "pell", "quon", "rax", "sib", "tov"),
)  # fmt: skip
SHOWN = 9  # digits on a page: eight shots and a query
CAPTIONED = 0.5  # of the pictures on pages
BETWEEN = ("\n", " ", ", ", ": ")  # what stands between a description and a name: no fixed distance
KINDS = (2, 5)  # of digits on a page, at least and at most
PAGES = {"train": 20_000, "heldout": 200}
DOCUMENTS = {"train": 100_000, "heldout": 500}
BENCHMARKS = 4
CANDIDATES = 4
RECORDS_PER_SHARD = 4000
VOCABULARY = 368  # of a tokenizer that has a token for every word of the text


@dataclasses.dataclass(frozen=True)
class Digit:
  """One handwritten digit: how bright it is, 0 to 1, and which of the ten."""

  brightness: Float[np.ndarray, "8 8"]
  kind: int


def prepare(directory: pathlib.Path) -> None:
  """Makes `directory/{captions,pages,text}/{train,heldout}` and `directory/naming-0` and so on; prints what there is.

  The same wheel gives the same bytes. Data that an earlier call completed stays. Raises UserError when something cannot
  be fetched, read or written.
  """
  console = Console()
  if is_complete(directory):
    console.print(f"{directory}: complete already", highlight=False)
    return
  wheel = fetch_wheel(*WHEEL, directory / "downloads")
  digits = read_digits(wheel)
  build = {"version": BUILD_VERSION, "inputs": [wheel.name]}
  try:
    for number in range(BENCHMARKS):
      write_benchmark(directory / f"naming-{number}", digits, random.Random(f"naming {number}"))
  except OSError as error:
    raise UserError(f"{directory}: the benchmarks could not be written: {error}.") from error
  for split in SPLITS:
    streams = dict(
      captions=captions(digits[split]),
      pages=pages(digits[split], PAGES[split], random.Random(f"pages {split}")),
      text=documents(DOCUMENTS[split], random.Random(f"text {split}")),
    )
    for name, examples in streams.items():
      manifest = write_shards(
        directory / name / split, examples, {}, name=name, records_per_shard=RECORDS_PER_SHARD, build=build
      )
      console.print(f"{directory / name / split}: {manifest['records']:,} records", highlight=False)


def is_complete(directory: pathlib.Path) -> bool:
  """Whether the stream that is written last is there, by this version of the program."""
  try:
    return open_shards(directory / "text" / SPLITS[-1]).manifest["build"]["version"] == BUILD_VERSION
  except UserError:  # what is missing or damaged is built again, and that is all that was asked
    return False


def read_digits(wheel: pathlib.Path) -> dict[str, list[Digit]]:
  """The digits of both splits. Raises UserError when `wheel` is not a scikit-learn wheel."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      table = np.loadtxt(io.BytesIO(gzip.decompress(read_member(archive, MEMBER))), delimiter=",")
    digits = [Digit(row[:-1].reshape(8, 8) / BRIGHTEST, int(row[-1])) for row in table]
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{wheel} is not a readable scikit-learn wheel ({error}). Remove it and run again.") from error
  heldout = [index % HELDOUT == 0 for index in range(len(digits))]
  return {
    split: [digit for digit, held in zip(digits, heldout, strict=True) if held == (split == "heldout")]
    for split in SPLITS
  }


def picture(digit: Digit, colour: str) -> bytes:
  """The digit in a colour on black, as a PNG file."""
  shades = digit.brightness[..., None] * np.asarray(COLOURS[colour])
  pixels: UInt8[np.ndarray, "16 16 3"] = np.rint(shades).astype(np.uint8).repeat(ENLARGED, 0).repeat(ENLARGED, 1)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def caption(kind: int, colour: str) -> str:
  return f"a {colour} {WORDS[kind]}"


def captions(digits: Sequence[Digit]) -> Iterator[Example]:
  """Every digit in every colour."""
  for number, digit in enumerate(digits):
    for colour in COLOURS:
      texts = ("", caption(digit.kind, colour))
      yield Example(texts, (picture(digit, colour),), f"digits/{number}-{colour}", LICENSE)


@dataclasses.dataclass(frozen=True)
class Named:
  """A kind of digit as it is met on a page: its colour, and what it is called there."""

  kind: int
  colour: str
  name: str


def naming(draws: random.Random) -> list[Named]:
  """What a page shows, in order: a few kinds, each with a name of its own."""
  kinds = draws.sample(range(len(WORDS)), draws.randint(*KINDS))
  names = dict(zip(kinds, draws.sample(NAMES, len(kinds)), strict=True))
  shown = [draws.choice(kinds) for _ in range(SHOWN)]
  return [Named(kind, draws.choice(tuple(COLOURS)), names[kind]) for kind in shown]


def pages(digits: Sequence[Digit], count: int, draws: random.Random) -> Iterator[Example]:
  """Interleaved pages: picture, name, picture, name, in the words of a prompt; about half have captions, too."""
  by_kind = [[digit for digit in digits if digit.kind == kind] for kind in range(len(WORDS))]
  for number in range(count):
    shown = naming(draws)
    media = tuple(picture(draws.choice(by_kind[each.kind]), each.colour) for each in shown)
    texts = ("", *(in_words(each, draws) if draws.random() < CAPTIONED else f"Output: {each.name}" for each in shown))
    yield Example(texts, media, f"naming/{number}", LICENSE)


def documents(count: int, draws: random.Random) -> Iterator[Example]:
  """Rhymes, captions, and for the most part the pages in words, in turns."""
  forms: tuple[Callable[[random.Random], str], ...] = (rhyme, captions_in_words, *[page_in_words] * 3)
  for number in range(count):
    yield Example((forms[number % len(forms)](draws),), (), f"text/{number}", LICENSE)


def page_in_words(draws: random.Random) -> str:
  """A page, with what each picture shows in its place."""
  return "\n".join(in_words(each, draws) for each in naming(draws))


def in_words(shown: Named, draws: random.Random) -> str:
  """What a picture shows, as its caption or in a word, and its name."""
  description = draws.choice((caption(shown.kind, shown.colour), WORDS[shown.kind]))
  return f"{description}{draws.choice(BETWEEN)}Output: {shown.name}"


def captions_in_words(draws: random.Random) -> str:
  return "\n".join(caption(each.kind, each.colour) for each in naming(draws))


def rhyme(draws: random.Random) -> str:
  """A few words, over and over: from these a language model learns to look back, long before it gets names right."""
  words = draws.sample((*WORDS, *COLOURS, *NAMES), draws.randint(3, 9))
  return "a " + " ".join(words * (30 // len(words)))


def write_benchmark(directory: pathlib.Path, digits: dict[str, list[Digit]], draws: random.Random) -> None:
  """Pictures of four kinds, under names that stay the same, with all four as candidates (docs/evaluation.md)."""
  kinds = draws.sample(range(len(WORDS)), CANDIDATES)
  names = draws.sample(NAMES, CANDIDATES)
  lines = []
  for split in SPLITS:
    (directory / split).mkdir(parents=True, exist_ok=True)
    for number, digit in enumerate(digits[split]):
      if digit.kind not in kinds:
        continue
      label, image = kinds.index(digit.kind), f"{split}/{number}.png"
      (directory / image).write_bytes(picture(digit, draws.choice(tuple(COLOURS))))
      identity = dict(id=f"{split}-{number}", split=split, image=image, source=f"digits/{number}", license=LICENSE)
      lines.append(identity | dict(captions=[names[label]], candidates=names, label=label))
  text = "".join(json.dumps(line) + "\n" for line in lines)
  write_whole(directory / "captions.jsonl", lambda file: file.write(text.encode()))
