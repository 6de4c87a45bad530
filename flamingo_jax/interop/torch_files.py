"""Tensors in files of `torch.save`, read through torch's weights-only loader: nothing in the pickle is run."""

import pathlib
import types
import zipfile

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.safetensors_files import DTYPES, Entry

WRAPPERS = ("model_state_dict", "state_dict")
MAPPED_AT_MOST = 128 * 2**20  # bytes; pages of a mapped file that were read count as memory until it is unmapped


class TorchFile:
  """One file for reading.

  Attributes:
    path: of the file.
    entries: by name; where a tensor starts is torch's to know.

  Raises:
    UserError: torch is not installed, the file cannot be read, holds more than tensors and plain values, or no tensor.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    check_archive(path)
    self.torch = import_torch(path)
    self.map_file()
    self.entries = {name: self.describe(name, tensor) for name, tensor in self.mapped.items()}

  def read(self, name: str) -> np.ndarray:
    """One tensor, the only copy of it in memory."""
    if self.touched > MAPPED_AT_MOST:
      self.map_file()
    tensor, entry = self.mapped[name], self.entries[name]
    if entry.size > tensor.untyped_storage().nbytes():  # one number may be shown as a terabyte of them
      raise UserError(
        f"{self.path}: {name!r} has {entry.size} bytes, but the file holds {tensor.untyped_storage().nbytes()} of it."
      )
    self.touched += tensor.untyped_storage().nbytes()
    integers = getattr(self.torch, f"int{8 * entry.dtype.itemsize}")  # NumPy has no bfloat16 for torch to make
    return np.array(tensor.detach().view(integers).numpy(), order="C").view(entry.dtype)

  def map_file(self) -> None:
    """Maps the file, in place of the mapping before."""
    self.mapped, self.touched = None, 0
    self.mapped = load_tensors(self.torch, self.path)

  def describe(self, name: str, tensor) -> Entry:
    """Shape and dtype of a torch tensor."""
    dtypes = {dtype.name: dtype for dtype in DTYPES.values()}
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes or tensor.layout != self.torch.strided or tensor.device.type != "cpu":
      found = f"{dtype}, {tensor.layout}, on {tensor.device.type}"
      raise UserError(f"{self.path}: tensor {name!r} is not a plain array ({found}); known are {', '.join(dtypes)}.")
    return Entry(dtypes[dtype], tuple(tensor.shape), start=0)


def import_torch(path: pathlib.Path) -> types.ModuleType:
  """The torch package, which is an extra."""
  try:
    import torch
  except ImportError as error:
    raise UserError(f"{path}: torch reads and writes such files. Run: pip install 'flamingo_jax[torch]'") from error
  return torch


def save_state_dict(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes arrays of dtypes that torch knows too, as the `model_state_dict` of a training checkpoint.

  Raises:
    UserError: torch is not installed.
  """
  torch = import_torch(path)
  state = {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in tensors.items()}
  torch.save({WRAPPERS[0]: state}, path)


def check_archive(path: pathlib.Path) -> None:
  """Raises UserError unless the file is a zip archive as torch.save writes it: whole, and nothing compressed."""
  try:
    with zipfile.ZipFile(path) as archive:
      compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
  except Exception as error:  # a damaged archive can raise nearly anything
    raise UserError(
      f"{path}: not a whole zip archive, as torch.save has written since version 1.6 ({error}). "
      "It was cut short, or is an older pickle, which could run code. Get it as safetensors."
    ) from error
  if compressed:  # mapped, they would be read as numbers
    raise UserError(f"{path}: {compressed[0]!r} is compressed, which torch.save never does. Get the file again.")


def load_tensors(torch: types.ModuleType, path: pathlib.Path) -> dict:
  """The torch tensors by name, mapped and not read."""
  try:
    loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
  except Exception as error:  # a damaged or hostile pickle can raise nearly anything
    reason = str(error.__context__ or error).split(". ")[0]  # torch wraps it in advice on how to load it nevertheless
    raise UserError(
      f"{path}: refused by torch's weights-only loader ({reason}). "
      "Nothing in it was run. Get the weights as safetensors, or save the tensors alone."
    ) from error
  loaded = unwrap(loaded)
  if not isinstance(loaded, dict):
    raise UserError(f"{path}: holds a {type(loaded).__name__}; it should hold tensors by name.")
  tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor) and isinstance(name, str)}
  if not tensors:
    raise UserError(f"{path}: holds no tensors by name, only {', '.join(map(repr, loaded)) or 'an empty dict'}.")
  return tensors


def unwrap(loaded: object) -> object:
  """The state of the model, where a checkpoint holds it beside that of the optimizer."""
  if not isinstance(loaded, dict):
    return loaded
  states = [loaded[wrapper] for wrapper in WRAPPERS if isinstance(loaded.get(wrapper), dict)]
  return states[0] if states else loaded
