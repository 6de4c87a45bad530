"""JSON that others wrote: bounded in size, and every fault of it a message."""

import collections
import json
import pathlib

from flamingo_jax.errors import UserError

LARGEST_FILE = 256 * 2**20  # bytes; the index of the largest models has some megabytes, a tokenizer some tens


def read_object(path: pathlib.Path) -> dict:
  """The object in a JSON file. Raises UserError: it cannot be read, is too large, or is no object."""
  try:
    with open(path, "rb") as file:
      text = file.read(LARGEST_FILE + 1)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
  if len(text) > LARGEST_FILE:
    raise UserError(f"{path}: has more than {LARGEST_FILE} bytes, which no description of a model has.")
  return parse_object(text, str(path))


def parse_object(text: bytes, what: str) -> dict:
  """A JSON object in UTF-8 in which no name stands twice. Raises UserError, which begins with `what`."""
  try:
    parsed = json.loads(text.decode(), object_pairs_hook=unique_names)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{what} is not JSON that can be read ({error}). The file is damaged; get it again.") from error
  if not isinstance(parsed, dict):
    raise UserError(f"{what} is a JSON {type(parsed).__name__}; it should be an object.")
  return parsed


def unique_names(pairs: list[tuple[str, object]]) -> dict:
  """An object from its pairs. Raises ValueError when two have one name, or a name has no UTF-8."""
  for name, count in collections.Counter(name for name, _ in pairs).items():
    name.encode()
    if count > 1:
      raise ValueError(f"{name!r} stands {count} times")
  return dict(pairs)
