"""A few-shot benchmark of captioned pictures: picture files and captions.jsonl, out of a stream of pairs.

docs/evaluation.md describes the folder, which `flamingo_jax.evaluation` reads.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from data_pipelines.build.files import write_whole
from data_pipelines.media import DECODE_ERRORS, FORMATS, picture_format
from data_pipelines.schema import parse
from data_pipelines.sequences import pair_text
from data_pipelines.shards import Shards, open_shards
from flamingo_jax.errors import UserError

ANNOTATIONS = "captions.jsonl"
CANDIDATES = 8  # captions among which a picture's own is to be found
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tiff"}  # of other formats, their names in small letters


@dataclasses.dataclass
class Picture:
  """One picture of a split.

  Attributes:
    image: its file, from the benchmark's folder.
    captions: all that the split has for it, in the order of the records.
    source, license: of the first record that shows it.
  """

  image: str
  captions: list[str]
  source: str
  license: str


def write_benchmark(captions: pathlib.Path, directory: pathlib.Path, splits: Sequence[str]) -> dict[str, int]:
  """Makes `directory` of the splits of a stream of captioned pictures; returns how many pictures each has.

  The same shards give the same files. Those that are there and whole stay as they are; captions.jsonl comes last, so
  that an interrupted writing leaves none, or the one before. What else lies in the folder is not touched.

  Raises UserError when a record is damaged, shows no picture, or the disk refuses.
  """
  lines, counts = [], {}
  try:
    for split in splits:
      pictures = _pictures(open_shards(captions / split), directory, split)
      lines += _annotations(pictures, split)
      counts[split] = len(pictures)
    _put(directory / ANNOTATIONS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
  except OSError as error:
    raise UserError(f"{directory}: the benchmark could not be written: {error}.") from error
  return counts


def choose(name: str, captions: Sequence[str], others: Mapping[str, str]) -> tuple[list[str], int]:
  """The candidates of a picture, its first caption among captions of other pictures, and the place of its own.

  Args:
    name: of the picture; what is chosen depends on it.
    captions: the picture's own, of which no other candidate is one.
    others: all captions of the split, by their small letters: no two candidates differ in capitals alone.
  """
  own = {caption.casefold() for caption in captions}
  texts = list(others.values())
  found: dict[str, None] = {}
  wanted = min(CANDIDATES - 1, len(others.keys() - own))
  draws = (texts[_number(f"{name}/{draw}") % len(texts)] for draw in itertools.count())
  while len(found) < wanted:
    text = next(draws)
    if text.casefold() not in own:
      found.setdefault(text)
  label = _number(name) % (wanted + 1)
  candidates = list(found)
  return [*candidates[:label], captions[0], *candidates[label:]], label


def _pictures(shards: Shards, directory: pathlib.Path, split: str) -> dict[str, Picture]:
  """The pictures of a split by the hash of their bytes, each written to its file."""
  pictures: dict[str, Picture] = {}
  for index in range(len(shards)):
    example = parse(shards[index])
    caption = pair_text(example.texts)
    if not caption or not example.media:
      continue
    [encoded] = example.media
    name = hashlib.sha256(encoded).hexdigest()[:16]
    if name not in pictures:
      image = f"{split}/{name}{_suffix(encoded, shards, index)}"
      _put(directory / image, encoded)
      pictures[name] = Picture(image, [], example.source, example.license)
    if caption not in pictures[name].captions:
      pictures[name].captions.append(caption)
  return pictures


def _annotations(pictures: Mapping[str, Picture], split: str) -> Iterator[dict[str, Any]]:
  others: dict[str, str] = {}
  for picture in pictures.values():
    for caption in picture.captions:
      others.setdefault(caption.casefold(), caption)
  for name, picture in pictures.items():
    candidates, label = choose(name, picture.captions, others)
    ranked = dict(candidates=candidates, label=label) if len(candidates) > 1 else {}
    yield dict(id=name, split=split) | dataclasses.asdict(picture) | ranked


def _suffix(encoded: bytes, shards: Shards, index: int) -> str:
  """How a file of these bytes is called, by their content."""
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
      form = picture_format(picture)
      return SUFFIXES.get(form, f".{form.lower()}")
  except DECODE_ERRORS as error:
    path, record = shards.where(index)
    raise UserError(f"{path}:{record} shows no picture ({error}). Build the stream again.") from error


def _put(path: pathlib.Path, data: bytes) -> None:
  """Makes a file hold these bytes, unless it does."""
  if not path.is_file() or path.read_bytes() != data:
    write_whole(path, lambda file: file.write(data))


def _number(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
