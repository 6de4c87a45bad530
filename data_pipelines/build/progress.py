"""How far a build is, told from the files that it leaves: so it can be asked from any process."""

import os
import pathlib
from typing import NamedTuple

from data_pipelines.build.files import read_json
from data_pipelines.build.plan import PLAN, WORK


class Progress(NamedTuple):
  """Of so many parts, how many have been read, and of how many the shard is made."""

  parts: int
  read: int
  made: int


def count_parts(output: pathlib.Path) -> int | None:
  """How many parts the build in a folder has, or None: it has not begun, or is complete."""
  try:
    return len(read_json(output / WORK / PLAN)["parts"])
  except FileNotFoundError:
    return None


def progress_of(output: pathlib.Path, parts: int) -> Progress:
  """How far a build of so many parts is."""
  return Progress(parts, *(_markers(output / WORK / folder) for folder in ("candidates", "shards")))


def _markers(folder: pathlib.Path) -> int:
  try:
    return sum(name.endswith(".json") for name in os.listdir(folder))
  except FileNotFoundError:
    return 0
