"""Reading annotation files, with every fault named, several at once."""

import collections
import csv
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.tasks.example import Example, Split

MOST_SHOWN = 10  # faults of a file
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")

Record = Mapping[str, Any]


def annotation_file(folder: pathlib.Path, name: str, source: str) -> pathlib.Path:
  """A file that the data set's folder must hold.

  Args:
    folder: of the data set.
    name: of the file, from there.
    source: where it comes from, for the message.
  """
  path = folder / name
  if not path.is_file():
    raise UserError(f"{path}: there is no such file. It comes from {source}; put it there under this name.")
  return path


def read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(_text(path))
  except ValueError as error:
    raise UserError(f"{path}: not readable as JSON ({error}). Fetch it again.") from error


def read_json_lines(path: pathlib.Path) -> list[Any]:
  records = []
  for number, line in enumerate(_text(path).split("\n"), 1):
    if line.strip():
      try:
        records.append(json.loads(line))
      except ValueError as error:
        raise UserError(f"{path}, line {number}: not readable as JSON ({error}). Fetch the file again.") from error
  return records


def read_table(path: pathlib.Path, columns: Iterable[str]) -> list[dict[str, str]]:
  """Rows of a CSV file with a header, which must name these columns; blank lines are passed over."""
  reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
  try:
    (_, header), *rows = [(reader.line_num, cells) for cells in reader if cells] or [(0, [])]
  except csv.Error as error:
    raise UserError(f"{path}: not readable as CSV ({error}). Fetch it again.") from error
  missing = [name for name in columns if name not in header]
  if missing:
    raise UserError(f"{path}: the header lacks {', '.join(missing)}; it has {', '.join(header)}.")
  uneven = [(line, len(cells)) for line, cells in rows if len(cells) != len(header)]
  report(path, [f"line {line} has {count} cells; the header names {len(header)} columns" for line, count in uneven])
  return [dict(zip(header, cells, strict=True)) for _, cells in rows]


def part_of(content: Any, key: str, path: pathlib.Path) -> list:
  """The list under a key of a JSON file."""
  if not isinstance(content, dict) or not isinstance(content.get(key), list):
    raise UserError(f'{path}: it has no list "{key}". Is this the annotation file, and of the version documented?')
  return content[key]


def list_of(content: Any, path: pathlib.Path) -> list:
  """The content of a JSON file that should be a list."""
  if not isinstance(content, list):
    raise UserError(f"{path}: it holds no list. Is this the annotation file, and of the version documented?")
  return content


def of_split(records: list, key: str, split: str, path: pathlib.Path) -> list[Record]:
  """The records that name this split under a key."""
  lacking = [number for number, record in enumerate(records) if not isinstance(record, dict) or key not in record]
  report(path, [f"record {number} lacks '{key}'" for number in lacking])
  return [record for record in records if record[key] == split]


def read_examples(
  path: pathlib.Path,
  records: Iterable[Any],
  make: Callable[[int, Record], Example],
  *,
  answered: bool = True,
  films_vanish: bool = False,
) -> Split:
  """Examples of records, all checked: fields that lack, what is no text, ids given twice, references, media.

  Args:
    path: of the annotations, for messages.
    records: one an example.
    make: an example of a record and its number; a KeyError, TypeError or ValueError in it is a fault of the record.
    answered: whether every example must have references or a label.
    films_vanish: whether examples without their film are left out, instead of being faults.

  Raises:
    UserError: there are faults, or no examples.
  """
  faults, examples, absent = [], [], []
  first_with: dict[str, int] = {}
  for number, record in enumerate(records):
    try:
      example = make(number, record)
      texts([*example.references, *example.options, example.question])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
      faults.append(unread(number, error))
      continue
    name = f"record {number} ({example.id})"
    if example.id in first_with:
      faults.append(f"{name} has the id of record {first_with[example.id]}; ids must differ")
    first_with.setdefault(example.id, number)
    if answered and example.label is None and not any(reference.strip() for reference in example.references):
      faults.append(f"{name} has no reference answer")
    if exists(example.medium.path):
      examples.append(example)
    elif films_vanish:
      absent.append(example.id)
    else:
      faults.append(f"{name}: there is no {example.medium.path}")
  report(path, faults)
  if not examples:
    where = f"none of its {len(absent)} films is there" if absent else "it holds no examples"
    raise UserError(f"{path}: {where}. See docs/evaluation.md for which files go where.")
  return Split(tuple(examples), tuple(absent), films_vanish)


def unread(number: int, error: Exception) -> str:
  """The fault of a record that could not be read."""
  what = f"lacks {error}" if isinstance(error, KeyError) else f"is not as documented ({error})"
  return f"record {number} {what}"


def report(path: pathlib.Path, faults: list[str]) -> None:
  """Raises what is wrong with a file, if anything is: the first faults and how many more."""
  if faults:
    more = f"\n  and {len(faults) - MOST_SHOWN} more" if len(faults) > MOST_SHOWN else ""
    raise UserError(f"{path}: {len(faults)} faults.\n  " + "\n  ".join(faults[:MOST_SHOWN]) + more)


def film(folder: pathlib.Path, name: str) -> str:
  """Path of the film of this name in a folder, whatever its format; of an MP4 file if there is none."""
  held = _names(str(folder))
  suffix = next((suffix for suffix in VIDEO_SUFFIXES if name + suffix in held), VIDEO_SUFFIXES[0])
  return str(folder / (name + suffix))


def exists(path: str) -> bool:
  folder, name = os.path.split(path)
  return name in _names(folder)


def texts(values: Any) -> tuple[str, ...]:
  """What an annotation has where a list of texts is due. Raises ValueError where it is something else."""
  if not isinstance(values, list):
    raise ValueError(f"{values!r} where a list of texts is expected")
  for value in values:
    if not isinstance(value, str):
      raise ValueError(f"{value!r} where a text is expected")
  return tuple(values)


def filled(given: Iterable[str]) -> tuple[str, ...]:
  """The texts that are not blank, without space around them."""
  return tuple(text.strip() for text in given if text.strip())


def most_common(answers: Iterable[str]) -> str:
  """The answer given most often; of equals, the one given first."""
  [(answer, _)] = collections.Counter(answers).most_common(1)
  return answer


def forget_folders() -> None:
  """Looks at folders anew. What they hold is remembered, since a data set asks for each file of them."""
  _names.cache_clear()


@functools.lru_cache(maxsize=4096)
def _names(folder: str) -> frozenset[str]:
  return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not readable as UTF-8 ({error}). Fetch it again.") from error
