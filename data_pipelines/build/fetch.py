"""Files from package registries: wheels through pip, Debian packages through apt-get. Nothing is installed.

Each file is fetched into a temporary folder and renamed, so what is found in the directory is whole, and is used again.
A machine without a network is served by putting the files there by hand.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence

from flamingo_jax.errors import UserError

LARGEST_PACKAGE = 4 * 2**30  # bytes, unpacked
LARGEST_MEMBER = 2 * 2**30  # bytes, unpacked, of what is read from a wheel

# The machine's own package lists, cache and hooks are left alone, so this needs no privileges.
APT_CONFIG = """
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def fetch_wheel(name: str, version: str, directory: pathlib.Path) -> pathlib.Path:
  """The path of a wheel of this version in `directory`, downloaded by pip if there is none yet.

  Raises UserError when it is not there and cannot be had, or when it is damaged.
  """
  wanted = f"{_normal(name)}-{version}-*.whl"
  wheel = _find_wheel(name, version, directory)
  if wheel is None:
    with _temporary_folder(directory) as folder:
      options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
      _run([sys.executable, "-m", "pip", "download", *options, "--", f"{name}=={version}"], wanted, directory)
      found = _find_wheel(name, version, folder)
      if found is None:
        raise UserError(f"pip downloaded no {wanted}. {_by_hand(wanted, directory)}")
      wheel = found.rename(directory / found.name)
  if not zipfile.is_zipfile(wheel):
    raise UserError(f"{wheel} is not a whole wheel. Remove it and run again.")
  return wheel


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """A file in a wheel. Raises KeyError when it has none, ValueError when that claims over 2 GiB."""
  size = archive.getinfo(name).file_size  # more than this is not unpacked
  if size > LARGEST_MEMBER:
    raise ValueError(f"{name} claims {size} bytes; at most {LARGEST_MEMBER} are read")
  return archive.read(name)


def fetch_debian(package: str, directory: pathlib.Path) -> pathlib.Path:
  """The folder in `directory` where the files of a Debian package lie, as if that folder were `/`.

  The package is downloaded by apt-get unless `directory` has it already, and unpacked without being installed.
  Raises UserError when it is not there and cannot be had, or when it is damaged.
  """
  root = directory / package
  if root.is_dir():
    return root
  archive = next(iter(sorted(directory.glob(f"{package}_*.deb"))), None) or _download_debian(package, directory)
  with _temporary_folder(directory) as folder:
    unpack_debian(archive, folder / "root")
    (folder / "root").rename(root)
  return root


def unpack_debian(archive: pathlib.Path, root: pathlib.Path) -> None:
  """Writes a Debian package's files under `root`, on any system; links are left out, so nothing can lead outside.

  Raises UserError when the package is damaged or holds more than 4 GiB, or the disk refuses.

  A Debian package is an `ar` archive: a line "!<arch>", then members, each with a header of 60 bytes, at whose end
  stand the size in decimal and the end of a line; the files are in the member data.tar.*.
  """
  try:
    with archive.open("rb") as file:
      if file.read(8) != b"!<arch>\n":
        raise tarfile.ReadError("not an ar archive")
      while len(header := file.read(60)) == 60:
        size = int(header[48:58])
        if size < 0:  # which would lead back to where it began
          raise tarfile.ReadError(f"a member of {size} bytes")
        if not header.startswith(b"data.tar"):
          file.seek(size + size % 2, os.SEEK_CUR)
          continue
        unpacked = 0
        with tarfile.open(fileobj=file, mode="r|*") as data:
          for member in data:
            unpacked += member.size
            if unpacked > LARGEST_PACKAGE:
              raise tarfile.ReadError(f"more than {LARGEST_PACKAGE} bytes, unpacked")
            if member.isfile():
              _write_member(data, member, root)
        return
      raise tarfile.ReadError("it has no data")
  except (tarfile.TarError, EOFError, ValueError) as error:
    raise UserError(f"{archive} is not a whole Debian package ({error}). Remove it and run again.") from error
  except OSError as error:
    raise UserError(f"{archive} could not be unpacked: {error}.") from error


def _write_member(data: tarfile.TarFile, member: tarfile.TarInfo, root: pathlib.Path) -> None:
  # tarfile's own `filter="data"` would do, but Python 3.11.2, which Debian 12 has, does not know it.
  path = root / member.name
  if not path.resolve().is_relative_to(root.resolve()):
    raise tarfile.ReadError(f"{member.name} leads outside")
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as target:
    shutil.copyfileobj(data.extractfile(member), target)


def _download_debian(package: str, directory: pathlib.Path) -> pathlib.Path:
  wanted = f"{package}_VERSION_all.deb"
  with _temporary_folder(directory) as folder:
    for needed in ("lists/partial", "cache/archives/partial"):
      (folder / needed).mkdir(parents=True)
    if '"' in str(folder):
      raise UserError(f"{directory}: apt-get's settings cannot hold a path with a quotation mark. Choose another.")
    config = folder / "apt.conf"
    config.write_text(APT_CONFIG.format(folder=folder))
    said = ""  # `update` succeeds even when it reaches no server, and only warns
    for action in (["update"], ["download", "--", package]):
      said = _run(["apt-get", "-q", "-c", str(config), *action], wanted, directory, folder, said)
    archives = sorted(folder.glob("*.deb"))
    if not archives:
      raise UserError(f"apt-get downloaded no {wanted}. {_by_hand(wanted, directory)}")
    return archives[0].rename(directory / archives[0].name)


def _find_wheel(name: str, version: str, directory: pathlib.Path) -> pathlib.Path | None:
  """Any wheel of the version: which one pip chose depends on the Python and the machine."""
  for wheel in sorted(directory.glob("*.whl")):
    if [_normal(part) for part in wheel.name.split("-")[:2]] == [_normal(name), _normal(version)]:
      return wheel
  return None


def _normal(name: str) -> str:
  return re.sub(r"[-_.]+", "_", name).lower()


@contextlib.contextmanager
def _temporary_folder(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside the files to come, so that renaming them is one step; gone afterwards."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=directory)).resolve()
  except OSError as error:
    raise UserError(f"{directory}: no folder for downloads can be made there: {error.strerror}.") from error
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _run(
  command: Sequence[str],
  wanted: str,
  directory: pathlib.Path,
  folder: pathlib.Path | None = None,
  said: str = "",
) -> str:
  """Runs a download tool in `folder` and returns what it says, after what was `said` before.

  Raises UserError with its last complaint and with the way around it.
  """
  try:
    result = subprocess.run(
      command,
      cwd=folder,
      env={**os.environ, "LC_ALL": "C"},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors="replace",
    )
  except OSError as error:
    raise UserError(
      f"{command[0]} cannot be run here ({error.strerror}), so {wanted} was not fetched. {_by_hand(wanted, directory)}"
    ) from error
  said += result.stdout + result.stderr
  if result.returncode:
    raise UserError(f"{wanted} could not be fetched: {_complaint(said)}\n{_by_hand(wanted, directory)}")
  return said


def _complaint(said: str) -> str:
  """The last error in a tool's output, or its last line, and the last trouble with the network if it tells of any."""
  lines = [line.strip() for line in said.splitlines() if line.strip()]
  errors = [line for line in lines if re.match(r"ERROR:|E:", line)]
  network = [line for line in lines if re.match(r"W: Failed to fetch|WARNING: Retrying", line)]
  return "; ".join([*(errors or lines or ["it said nothing"])[-1:], *network[-1:]])


def _by_hand(wanted: str, directory: pathlib.Path) -> str:
  return f"Check the network and run again, or put {wanted} into {directory} by hand."
