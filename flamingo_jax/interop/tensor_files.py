"""Foreign checkpoints, in one file or many, read one tensor at a time."""

import pathlib
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.json_files import read_object
from flamingo_jax.interop.safetensors_files import Entry, SafetensorsFile
from flamingo_jax.interop.torch_files import TorchFile

TensorFile = SafetensorsFile | TorchFile
READERS: dict[str, type[SafetensorsFile | TorchFile]] = {
  ".safetensors": SafetensorsFile,
  ".pt": TorchFile,
  ".pth": TorchFile,
  ".bin": TorchFile,
}
SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_MODEL = "pytorch_model.bin"


class TensorFiles:
  """The tensors of one checkpoint.

  Attributes:
    path: what was opened.
    files: the paths of the files that hold the tensors.
    names: of the tensors, sorted.

  Raises:
    UserError: two files hold a tensor of the same name.
  """

  def __init__(self, path: pathlib.Path, files: Sequence[TensorFile]):
    self.path = path
    self.files = [file.path for file in files]
    self.homes: dict[str, TensorFile] = {}
    for file in files:
      for name in file.entries:
        if name in self.homes:
          raise UserError(f"{path}: tensor {name!r} is in {self.homes[name].path.name} and in {file.path.name}.")
        self.homes[name] = file
    self.names = sorted(self.homes)

  def shape(self, name: str) -> tuple[int, ...]:
    """Of one tensor."""
    return self.entry(name).shape

  def dtype(self, name: str) -> np.dtype:
    """Of one tensor, with those of ml_dtypes for bfloat16 and float8."""
    return self.entry(name).dtype

  def read(self, name: str) -> np.ndarray:
    """One tensor from the disk, bit for bit; nothing of it stays here. Raises UserError when that fails."""
    return self.home(name).read(name)

  def entry(self, name: str) -> Entry:
    """What its file says of a tensor."""
    return self.home(name).entries[name]

  def home(self, name: str) -> TensorFile:
    """The file that holds a tensor."""
    if name not in self.homes:
      raise UserError(f"{self.path}: the tensor {name!r} is missing.")
    return self.homes[name]


def open_tensors(path: str | pathlib.Path) -> TensorFiles:
  """Opens a checkpoint; only names, shapes and dtypes are read.

  Args:
    path: a .safetensors, .pt, .pth or .bin file, or a folder with the files of one model: safetensors (one file, or
      shards and model.safetensors.index.json), else pytorch_model.bin (or its shards and index).

  Raises:
    UserError: there is no such checkpoint, or a file of it is missing, damaged or unsafe.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return open_folder(path)
  return TensorFiles(path, [open_file(path)])


def open_folder(folder: pathlib.Path) -> TensorFiles:
  """Opens the model in a folder."""
  if (folder / SAFETENSORS_INDEX).is_file():
    return open_shards(folder, SAFETENSORS_INDEX)
  found = sorted(folder.glob("*.safetensors"))
  if len(found) > 1:
    names = ", ".join(file.name for file in found)
    raise UserError(f"{folder}: {SAFETENSORS_INDEX} is missing, and which to read is unclear: {names}. Name one file.")
  if found:
    return TensorFiles(folder, [open_file(found[0])])
  if (folder / TORCH_INDEX).is_file():
    return open_shards(folder, TORCH_INDEX)
  if (folder / TORCH_MODEL).is_file():
    return TensorFiles(folder, [open_file(folder / TORCH_MODEL)])
  raise UserError(
    f"{folder}: no checkpoint. Looked for {SAFETENSORS_INDEX}, *.safetensors, {TORCH_INDEX}, {TORCH_MODEL}."
  )


def open_shards(folder: pathlib.Path, index: str) -> TensorFiles:
  """Opens the files that an index names, and checks that they hold what it promises."""
  homes = read_index(folder / index)
  shards = sorted(set(homes.values()))
  for shard in shards:  # a link may lead anywhere, as in the cache of huggingface_hub; a name may not
    if pathlib.PurePath(shard).parts != (shard,) or shard == "..":
      raise UserError(f"{folder / index}: {shard!r} is not the name of a file in the same folder.")
  missing = [shard for shard in shards if not (folder / shard).is_file()]
  if missing:
    raise UserError(f"{folder}: {index} names {len(shards)} files; missing are {', '.join(missing)}.")
  files = {shard: open_file(folder / shard) for shard in shards}
  for name, shard in homes.items():
    if name not in files[shard].entries:
      raise UserError(f"{folder / index}: says that {shard} holds the tensor {name!r}, but it does not.")
  return TensorFiles(folder, list(files.values()))


def read_index(path: pathlib.Path) -> dict[str, str]:
  """The file of every tensor, by name."""
  homes = read_object(path).get("weight_map")
  if not isinstance(homes, dict) or not homes or not all(isinstance(shard, str) for shard in homes.values()):
    raise UserError(f"{path}: weight_map should name the file of every tensor.")
  return homes


def open_file(path: pathlib.Path) -> TensorFile:
  """Opens one file, in the format that its suffix names."""
  if path.suffix not in READERS:
    raise UserError(f"{path}: not the name of a checkpoint; expected a folder or one of {', '.join(READERS)}.")
  if not path.is_file():
    raise UserError(f"{path}: no such file.")
  return READERS[path.suffix](path)
