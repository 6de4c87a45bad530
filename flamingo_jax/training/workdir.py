"""A work directory: whose it is, and what has happened in it."""

import contextlib
import fcntl
import fnmatch
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from flamingo_jax.errors import UserError
from flamingo_jax.training.durable import replace_durably

CONFIG, HISTORY, LOCK = "config.json", "history.jsonl", "lock"
FREE = (  # fields that may change from start to start: they leave what is learnt as it is, or a content hash guards it
  "mesh.*",
  "sharding.*",
  "checkpoint.*",
  "guard.*",
  "evaluation.*",
  "few_shot",
  "few_shot.*",
  "zero_shot",
  "zero_shot.*",
  "evaluate_every",
  "writers",
  "model.attention",
  "model.remat",
  "frozen.*",
  "streams.*.source",
)

Change = tuple[str, object, object]  # field, value there, value here


def claim_workdir(workdir: pathlib.Path, config: dict, allowed: tuple[str, ...] = ()) -> list[Change]:
  """Writes the config into a new work directory, or checks that the directory belongs to it.

  Args:
    workdir: a new or empty directory, or a run's.
    config: of the run.
    allowed: fields, or groups of fields, that may differ beside those that always may.

  Returns:
    What differs and may; `take_over` writes it.

  Raises:
    UserError: the directory holds a run of another config; every difference is named.
  """
  path = workdir / CONFIG
  if path.exists():
    changes = differing(read_config(path), json.loads(json.dumps(config)))
    refused = [change for change in changes if not may_change(change[0], allowed)]
    if refused:
      raise UserError(
        f"{workdir} belongs to another config:\n"
        + "\n".join(f"  {name}: {there!r} there, {here!r} here" for name, there, here in refused)
        + "\nChoose another --workdir, or go on with these by "
        + f"--allow-changed={','.join(name for name, _, _ in refused)}."
      )
    return changes
  unfinished = workdir / (CONFIG + ".new")
  if workdir.exists() and any(entry != unfinished for entry in workdir.iterdir()):
    raise UserError(f"{workdir}: not empty, and not the work directory of a run (no config.json). Choose another.")
  workdir.mkdir(parents=True, exist_ok=True)
  write_config(workdir, config)
  return []


@contextlib.contextmanager
def locked(path: pathlib.Path, otherwise: str, patience: float = 0.0) -> Iterator[int]:
  """Holds a lock for as long as this process lives, or any that it gives the descriptor to.

  Args:
    path: a file, made if there is none. It stays.
    otherwise: what is said where the lock is held.
    patience: seconds to wait until it is free.

  Raises:
    UserError: it is held for longer.
  """
  with path.open("a") as file:
    until, told = time.monotonic() + patience, False
    while not took(file):
      if time.monotonic() >= until:
        raise UserError(f"{path}: {otherwise}")
      if not told:
        print(f"{path} is held; waiting for up to {patience:g} s", file=sys.stderr, flush=True)
        told = True
      time.sleep(0.2)
    yield file.fileno()


def took(file: TextIO) -> bool:
  """Whether the lock of an open file is this process's now."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def read_config(path: pathlib.Path) -> dict:
  """The config that a work directory keeps. Raises UserError where it is damaged."""
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}). Bring it back from a copy, or choose another --workdir.") from error
  if not isinstance(config, dict):
    raise UserError(f"{path}: is a JSON {type(config).__name__}; a config is a group of fields.")
  return config


def write_config(workdir: pathlib.Path, config: dict) -> None:
  replace_durably(workdir / CONFIG, json.dumps(config, indent=2))


def may_change(field: str, allowed: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(field, pattern) for pattern in FREE) or any(
    field == name or field.startswith(name + ".") for name in allowed
  )


def differing(there: dict, here: dict, prefix: str = "") -> list[Change]:
  """Field by field, what two configs disagree on."""
  found = []
  for name in sorted(there.keys() | here.keys()):
    left, right = there.get(name, "(absent)"), here.get(name, "(absent)")
    if isinstance(left, dict) and isinstance(right, dict):
      found += differing(left, right, f"{prefix}{name}.")
    elif left != right:
      found.append((prefix + name, left, right))
  return found


def note(workdir: pathlib.Path, event: str, **facts) -> None:
  """Appends to `history.jsonl` what has happened, one object an event."""
  path = workdir / HISTORY
  with path.open("a+b") as file:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)  # a kill may have cut the last line short
    file.write(json.dumps(dict(event=event) | facts).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def read_history(workdir: pathlib.Path) -> list[dict]:
  """All events, oldest first; a last line that a kill cut short is none."""
  path = workdir / HISTORY
  text = path.read_text() if path.exists() else ""
  return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
