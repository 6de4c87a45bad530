"""A frozen backbone on disk: `model.safetensors`, `config.json`; written once, never changed, named by its content."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flamingo_jax.errors import UserError
from flamingo_jax.interop.json_files import read_object
from flamingo_jax.interop.rules import Rule, Tensors, check_tensors, layouts, ours_from
from flamingo_jax.interop.safetensors_files import SafetensorsFile, TensorWriter, raw_bytes

WEIGHTS, DESCRIPTION, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_model(directory: pathlib.Path, parameters: dict[str, np.ndarray], config: Any, origin: str) -> None:
  """Writes parameters that are in memory; see `save_tensors`.

  Args:
    directory: an existing folder, beside the final place, for `publish` to move there.
    parameters: flat, path -> array.
    config: the dataclass of the architecture.
    origin: where the weights came from, for people.
  """
  save_file({path: np.ascontiguousarray(array) for path, array in parameters.items()}, directory / WEIGHTS)
  describe(directory, dict(config=dataclasses.asdict(config), origin=origin))


def save_tensors(
  directory: pathlib.Path,
  tensors: Tensors,
  rules: Sequence[Rule],
  ignored: Sequence[str],
  about: dict,
  origin: str = "",
) -> None:
  """Writes a foreign checkpoint as a model, one tensor at a time.

  Args:
    directory: an existing folder, beside the final place, for `publish` to move there.
    tensors: the foreign ones.
    rules: from them to ours.
    ignored: patterns of foreign names that are known and not wanted.
    about: what `config.json` says beside the hash.
    origin: what the checkpoint seems to have been made for.

  Raises:
    UserError: the tensors do not fit the rules, or the disk refuses.
  """
  check_tensors(tensors, rules, ignored, origin)
  layout = {path: (array.shape, array.dtype) for path, array in layouts(tensors, rules).items()}
  with TensorWriter(directory / WEIGHTS, layout) as writer:
    for part, values in ours_from(tensors, rules):
      writer.write(part.path, values, part.layer)
  describe(directory, about)


def describe(directory: pathlib.Path, about: dict) -> None:
  """Writes `config.json` beside weights that are complete."""
  described = about | dict(hash=content_hash_of(directory / WEIGHTS))
  (directory / DESCRIPTION).write_text(json.dumps(described, indent=2))


def publish(unfinished: pathlib.Path, directory: pathlib.Path, check: Callable[[pathlib.Path], None]) -> None:
  """Moves a finished folder to its place, so that a killed import leaves nothing that looks complete.

  What was there goes beside `unfinished`, in the caller's temporary folder, and so is deleted.

  Args:
    unfinished: the finished folder.
    directory: its place.
    check: raises UserError where something is that is not to be deleted, such as `check_replaceable`.
  """
  check(directory)
  if directory.exists():
    os.replace(directory, unfinished.with_name("replaced"))
  directory.parent.mkdir(parents=True, exist_ok=True)
  os.replace(unfinished, directory)


def check_replaceable(directory: pathlib.Path) -> None:
  """Raises UserError where something is that `flamingo import` did not write: it would be deleted."""
  if not directory.exists():
    return
  if not directory.is_dir():
    raise UserError(f"{directory}: is a file; --out names a folder.")
  names = {path.name for path in directory.iterdir()}
  others = sorted(names - {WEIGHTS, DESCRIPTION, TOKENIZER})
  if others:
    raise UserError(
      f"{directory}: holds {others[0]}, which no import wrote and replacing would delete. Choose another."
    )
  if names and not is_described(directory / DESCRIPTION):
    raise UserError(
      f"{directory}: not empty, and not a model folder: {DESCRIPTION} is not one that `flamingo import` wrote. "
      "Choose another."
    )


def is_described(path: pathlib.Path) -> bool:
  """Whether a file is what `describe` wrote, not the config.json of another program."""
  try:
    described = read_object(path)
  except UserError:
    return False
  digest = described.get("hash")
  return isinstance(digest, str) and len(digest) == 64 and {"config", "origin"} <= described.keys()


def load_model(directory: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
  """Parameters by path, and what `config.json` says.

  Raises:
    UserError: files are missing or damaged, or the weights are not the ones that were written.
  """
  directory = pathlib.Path(directory)
  for name in (WEIGHTS, DESCRIPTION):
    if not (directory / name).is_file():
      raise UserError(f"{directory / name}: missing. A model folder is written by `flamingo import --out {directory}`.")
  try:
    described = read_object(directory / DESCRIPTION)
    parameters = load_file(directory / WEIGHTS)
  except (SafetensorError, UserError) as error:
    raise UserError(
      f"{directory}: the model folder is damaged ({error}). Delete it and import the model again."
    ) from error
  found, written = content_hash(parameters), str(described.get("hash"))
  if found != written:
    raise UserError(
      f"{directory}: the weights hash to {found[:12]}, config.json says {written[:12]}. "
      "Delete it and import the model again."
    )
  return parameters, described


def content_hash(parameters: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
  return hash_tensors(
    (path, array.dtype, array.shape, [raw_bytes(array)]) for path, array in sorted(parameters.items())
  )


def content_hash_of(path: pathlib.Path) -> str:
  """`content_hash` of the parameters in a safetensors file, read in chunks. Raises UserError when it is damaged."""
  file = SafetensorsFile(path)
  tensors = sorted(file.entries.items())
  return hash_tensors((name, entry.dtype, entry.shape, file.chunks(name)) for name, entry in tensors)


def hash_tensors(tensors: Iterable[tuple[str, np.dtype, tuple[int, ...], Iterable[np.ndarray]]]) -> str:
  """SHA-256 over names, dtypes, shapes and the chunks uint8 [n] of the bytes, in the order given."""
  digest = hashlib.sha256()
  for name, dtype, shape, chunks in tensors:
    digest.update(f"{name} {dtype} {shape}\n".encode())
    for chunk in chunks:
      digest.update(chunk)
  return digest.hexdigest()
