"""Files that are whole or not there: written under another name, and renamed when the disk has them."""

import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], Any], partial: pathlib.Path | None = None) -> None:
  """Makes `path` of what `write` writes; two at once do no harm, as what they write is the same.

  Args:
    path: the file.
    write: is given the file, open.
    partial: the folder of what is not whole yet, on the same disk; by default that of `path`.
  """
  temporary = temporary_name(path, partial or path.parent)
  path.parent.mkdir(parents=True, exist_ok=True)
  with temporary.open("wb") as file:
    write(file)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def write_json(path: pathlib.Path, value: Any, partial: pathlib.Path | None = None) -> None:
  data = json.dumps(value, indent=1, ensure_ascii=False).encode(errors="replace")
  write_whole(path, lambda file: file.write(data), partial)


def write_json_lines(path: pathlib.Path, values: Iterable[Any], partial: pathlib.Path | None = None) -> None:
  lines = (json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n" for value in values)
  write_whole(path, lambda file: file.writelines(lines), partial)


def read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_bytes())


def temporary_name(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A hidden name that no other writer has; its folder is made."""
  folder.mkdir(parents=True, exist_ok=True)
  return folder / f".{path.name}.{uuid.uuid4().hex[:8]}"
