"""A frozen backbone on disk: `model.safetensors`, `config.json`; written once, never changed, named by its content."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flamingo_jax.errors import UserError


def save_model(directory: pathlib.Path, parameters: dict[str, np.ndarray], config: object, origin: str) -> None:
  """Writes a model folder beside its final place, for `publish` to move there.

  Args:
    directory: an existing folder.
    parameters: flat, path -> array.
    config: the dataclass of the architecture.
    origin: where the weights came from, for people.
  """
  save_file({path: np.ascontiguousarray(array) for path, array in parameters.items()}, directory / "model.safetensors")
  described = dict(config=dataclasses.asdict(config), origin=origin, hash=content_hash(parameters))
  (directory / "config.json").write_text(json.dumps(described, indent=2))


def publish(unfinished: pathlib.Path, directory: pathlib.Path) -> None:
  """Moves a finished folder to its place in one step, so that a killed import leaves nothing that looks complete."""
  if directory.exists():
    shutil.rmtree(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  os.replace(unfinished, directory)


def load_model(directory: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
  """Parameters by path, and what `config.json` says.

  Raises:
    UserError: files are missing or damaged, or the weights are not the ones that were written.
  """
  directory = pathlib.Path(directory)
  for name in ("model.safetensors", "config.json"):
    if not (directory / name).is_file():
      raise UserError(f"{directory / name}: missing. A model folder is written by `flamingo import --out {directory}`.")
  try:
    parameters = load_file(directory / "model.safetensors")
    described = json.loads((directory / "config.json").read_text())
  except (SafetensorError, ValueError) as error:
    raise UserError(
      f"{directory}: the model folder is damaged ({error}). Delete it and import the model again."
    ) from error
  found = content_hash(parameters)
  if found != described["hash"]:
    says = described["hash"][:12]
    raise UserError(
      f"{directory}: the weights hash to {found[:12]}, config.json says {says}. Delete it and import the model again."
    )
  return parameters, described


def content_hash(parameters: dict[str, np.ndarray]) -> str:
  """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
  digest = hashlib.sha256()
  for path in sorted(parameters):
    array = np.ascontiguousarray(parameters[path])
    digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
    digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
  return digest.hexdigest()
