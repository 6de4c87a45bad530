"""What a build will do, written down before it begins: a build that was stopped goes on only if it still holds."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from data_pipelines.build.addresses import AddressBook, archive_reader
from data_pipelines.build.files import read_json, write_json, write_whole
from data_pipelines.build.fingerprints import folder_hashes
from data_pipelines.build.inputs import Part, Source, input_root, list_files, make_parts
from data_pipelines.build.settings import BuildSettings
from data_pipelines.build.texts import refuse_languages
from flamingo_jax.errors import UserError

BUILD_VERSION = 2  # to be raised with every change to what a build writes under the same settings
Listed = tuple[str, int, int]  # name, bytes, time of the last change in ns
PLAN = "plan.json"  # in WORK
WORK = ".build"  # the folder in the output of what is needed until the build is complete


@dataclasses.dataclass(frozen=True)
class Plan:
  """What every worker must know of a build.

  Attributes:
    output: the folder of the shards.
    settings: of the build.
    archives: paths of the files in which pictures are looked up by address.
    shards: how many parts there are, and so shards, but for those of which nothing is kept.
  """

  output: pathlib.Path
  settings: BuildSettings
  archives: tuple[str, ...]
  shards: int

  @property
  def work(self) -> pathlib.Path:
    return self.output / WORK

  @property
  def partial(self) -> pathlib.Path:
    """The folder of files that are being written."""
    return self.work / "partial"

  @property
  def tables(self) -> pathlib.Path:
    """The folder of the tables of `addresses`."""
    return self.work / "addresses"

  def shard_name(self, part: Part) -> str:
    return f"{self.settings.kind}-{part.number:05d}-of-{self.shards:05d}"

  def source(self) -> Source:
    """What readers are given."""
    root = pathlib.Path(self.settings.pictures) if self.settings.pictures else None
    book = AddressBook(self.tables, self.archives, root)
    return Source(input_root(self.settings), self.settings, book.find)

  def evaluation_hashes(self) -> np.ndarray:
    """Hashes of the evaluation images, uint64 [N]."""
    path = self.work / "evaluation.npy"
    return np.load(path) if path.exists() else np.zeros(0, np.uint64)


@dataclasses.dataclass(frozen=True)
class Begun:
  """A build that was begun: its plan, what each shard is made of, and the files that decide what is written."""

  plan: Plan
  parts: tuple[Part, ...]
  files: tuple[Listed, ...]


def open_plan(settings: BuildSettings, output: pathlib.Path) -> Begun:
  """The build that was begun in `output`, or a new one there.

  Raises UserError when there is nothing to read, or `output` holds something else than this build's beginning.
  """
  if output.resolve().is_relative_to(pathlib.Path(settings.input).resolve()):
    raise UserError(f"--output: {output} is inside the input, {settings.input}. Name a folder elsewhere.")
  if settings.text.languages:
    refuse_languages(settings.text.languages)
  files, archives = list_input(settings)
  path = output / WORK / PLAN
  if path.exists():
    written, before, parts = read_plan(output)
    refuse_difference(output, identity(settings, files), written)
    _refuse_changes(output, files, before)
    return Begun(Plan(output, settings, archives, len(parts)), parts, files)
  if output.exists() and any(found.name != WORK for found in output.iterdir()):
    raise UserError(f"--output: {output} holds files, but no build that was begun. Name a new folder.")
  parts = tuple(make_parts(settings, list_files(settings)))
  plan = Plan(output, settings, archives, len(parts))
  if settings.evaluation_images:
    hashes = folder_hashes(pathlib.Path(settings.evaluation_images))
    write_whole(plan.work / "evaluation.npy", lambda file: np.save(file, hashes))
  begun = {"build": identity(settings, files), "files": files, "parts": [dataclasses.asdict(part) for part in parts]}
  write_json(path, begun)  # last: from here on it is begun
  return Begun(plan, parts, files)


def read_plan(output: pathlib.Path) -> tuple[dict[str, Any], list[Listed], tuple[Part, ...]]:
  """What `open_plan` wrote: the build's identity, its files and its parts.

  Raises FileNotFoundError when no build was begun, UserError when the file is damaged.
  """
  path = output / WORK / PLAN
  try:
    begun = read_json(path)
    files = [(name, size, changed) for name, size, changed in begun["files"]]
    parts = tuple(Part(**{**part, "files": tuple(part["files"])}) for part in begun["parts"])
    return dict(begun["build"]), files, parts
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f"{path} is damaged ({error!r}). Remove {output} and build again.") from error


def list_input(settings: BuildSettings) -> tuple[tuple[Listed, ...], tuple[str, ...]]:
  """The files that decide what a build writes, those of the input first, and the archives among them.

  Raises UserError when an option names no folder, or the pictures have a link to an archive that is not there.
  """
  root = input_root(settings)
  names = list_files(settings)
  files = [_listed(root / name, name) for name in names]
  archives = [str(root / name) for name in names if settings.kind == "pages" and archive_reader(name)]
  for option, folder in (("pictures", settings.pictures), ("evaluation-images", settings.evaluation_images)):
    if folder and not pathlib.Path(folder).is_dir():
      raise UserError(f"--{option}: {folder} is no folder.")
  if settings.pictures:
    found = _archives(pathlib.Path(settings.pictures))
    archives += [str(path) for path in found]
    files += [_listed(path, str(path)) for path in found]
  if settings.evaluation_images:
    found = sorted(path for path in pathlib.Path(settings.evaluation_images).rglob("*") if path.is_file())
    files += [_listed(path, str(path)) for path in found]
  return tuple(files), tuple(dict.fromkeys(archives))


def _archives(folder: pathlib.Path) -> list[pathlib.Path]:
  """The archives in a folder, sorted. Raises UserError when one is a link that leads nowhere."""
  named = sorted(path for path in folder.rglob("*") if archive_reader(path.name))
  for path in named:
    if path.is_symlink() and not path.exists():
      raise UserError(f"--pictures: {path} is a link to {path.readlink()}, which is not there. Mend or remove it.")
  return [path for path in named if path.is_file()]


def identity(settings: BuildSettings, files: tuple[Listed, ...]) -> dict[str, Any]:
  """What a manifest says of how its shards were made."""
  listing = "\n".join(f"{size} {name}" for name, size, _ in files)
  return {
    "version": BUILD_VERSION,
    "settings": dataclasses.asdict(settings),
    "input_files": len(files),
    "input_sha256": hashlib.sha256(listing.encode(errors="replace")).hexdigest(),
  }


def refuse_difference(output: pathlib.Path, build: dict[str, Any], other: dict[str, Any]) -> None:
  """Raises UserError, naming what differs, when a folder holds another build than this one."""
  asked, there = _flat(build), _flat(other)
  differences = [
    f"{name}: {there.get(name)!r} there, {asked.get(name)!r} now"
    for name in sorted({*asked, *there})
    if asked.get(name) != there.get(name)
  ]
  if differences:
    raise UserError(
      f"--output: {output} holds a build of something else:\n  "
      + "\n  ".join(differences)
      + "\nName another folder, or remove this one."
    )


def _refuse_changes(output: pathlib.Path, files: tuple[Listed, ...], begun: list[Listed]) -> None:
  """Raises UserError when a file was written to since the build began, its size being what it was."""
  changed = [now[0] for now, before in zip(files, begun, strict=True) if now != before]
  if changed:
    raise UserError(f"--output: {output} was begun before {changed[0]} was changed last. Remove it, and build again.")


def _listed(path: pathlib.Path, name: str) -> Listed:
  found = path.stat()
  return name, found.st_size, found.st_mtime_ns


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"settings.text.shortest": 5, ...}, as JSON would have it."""
  flat = {}
  for name, inner in json.loads(json.dumps(value)).items():
    flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
  return flat
