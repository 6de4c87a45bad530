"""How far a build is, told from the files that it leaves: so it can be asked from any process."""

import os
import pathlib
from typing import NamedTuple

from data_pipelines.build.plan import WORK, read_plan
from flamingo_jax.errors import UserError


class Progress(NamedTuple):
  """Of so many parts, how many have been read, and of how many the shard is made."""

  parts: int
  read: int
  made: int


def count_parts(output: pathlib.Path) -> int | None:
  """How many parts the build in a folder has, or None: it has not begun, is complete or damaged."""
  try:
    _, _, parts = read_plan(output)
    return len(parts)
  except (FileNotFoundError, UserError):  # the build itself says what is wrong with its plan
    return None


def progress_of(output: pathlib.Path, parts: int) -> Progress:
  """How far a build of so many parts is."""
  return Progress(parts, *(_markers(output / WORK / folder) for folder in ("candidates", "shards")))


def _markers(folder: pathlib.Path) -> int:
  try:
    return sum(name.endswith(".json") for name in os.listdir(folder))
  except FileNotFoundError:
    return 0
