"""Cases that other implementations wrote, and how far our arrays may be from theirs."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.interop.rules import Rule, Tensors, assemble, check_tensors, foreign_from
from flamingo_jax.interop.tensor_files import open_tensors
from flamingo_jax.models.parameters import Parameters

OUTPUT_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # of the largest magnitude
OWN_ROUNDING = 10  # or this many times the other implementation's own float32 error, where that is larger
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
  """One case on disk."""

  folder: pathlib.Path
  name: str
  sizes: dict
  arrays: Arrays

  def tensors(self) -> Tensors:
    return open_tensors(self.folder / f"{self.name}.safetensors")


@dataclasses.dataclass(frozen=True)
class Finding:
  """One array of a case: how far ours is off, and how far it may be."""

  array: str
  error: float
  limit: float

  @property
  def passes(self) -> bool:
    return bool(self.error <= self.limit)


def read_cases(folder: pathlib.Path) -> Iterator[Case]:
  """Every case of a folder.

  Raises:
    UserError: there is none.
  """
  names = sorted(path.stem for path in folder.glob("*.json") if path.stem != "VERSIONS")
  if not names:
    raise UserError(f"{folder}: no cases there (NAME.json, NAME.npz, NAME.safetensors).")
  for name in names:
    with np.load(folder / f"{name}.npz") as arrays:
      yield Case(folder, name, json.loads((folder / f"{name}.json").read_text()), dict(arrays))


def load(tensors: Tensors, rules: list[Rule], ignored: tuple[str, ...] = ()) -> Parameters:
  """What `flamingo import` does, in memory: every foreign tensor is checked, and consumed or known as unwanted."""
  check_tensors(tensors, rules, ignored)
  return assemble(tensors, rules)


def compare_outputs(case: Case, found: Arrays) -> list[Finding]:
  """Ours against the arrays of the same names."""
  return [finding(case, name, array, OUTPUT_LIMIT) for name, array in found.items()]


def compare_gradients(case: Case, found: Arrays) -> list[Finding]:
  """Ours against all gradients of the case; one that ours lack counts as an infinite error."""
  names = [name for name in case.arrays if is_gradient(name)]
  # A gradient that is zero but for rounding, such as a key bias's, is measured against the others.
  floor = 1e-3 * max((np.abs(case.arrays[name]).max() for name in names), default=0.0)
  return [
    finding(case, name, found[name], GRADIENT_LIMIT, floor)
    if name in found
    else Finding(name, float("inf"), GRADIENT_LIMIT)
    for name in names
  ]


def is_gradient(name: str) -> bool:
  return name.startswith(("grad:", "grad_input:"))


def finding(case: Case, name: str, ours: np.ndarray, limit: float, floor: float = 0.0) -> Finding:
  reference = np.float64(case.arrays[name])
  if np.shape(ours) != reference.shape:
    return Finding(name, float("inf"), limit)
  scale = max(np.abs(reference).max(), floor, 1e-30)
  error = float(np.abs(np.float64(ours) - reference).max() / scale)
  return Finding(name, error, max(limit, OWN_ROUNDING * case.sizes.get("f32_error", {}).get(name, 0.0)))


def equal(name: str, ours: object, theirs: object) -> Finding:
  """Tokens and masks have no tolerance."""
  return Finding(name, 0.0 if np.array_equal(ours, theirs) else float("inf"), 0.0)


def foreign_gradients(case: Case, gradients: Parameters, rules: list[Rule], kind: str = "grad:") -> Arrays:
  """Our gradients under the names, and in the layout, of those that the case holds."""
  named = {}
  for names, array in foreign_from(gradients, rules):
    named |= {f"{kind}{name}": array for name in names if f"{kind}{name}" in case.arrays}
  return named


@dataclasses.dataclass(frozen=True)
class Ids:
  """Token ids between an implementation and us: the same, but for the order of the added ones."""

  vocabulary: int
  added: tuple[int, ...]

  def ours(self, tokens: np.ndarray) -> np.ndarray:
    return self.table(np.argsort(self.added))[tokens].astype(np.int32)

  def theirs(self, tokens: np.ndarray) -> np.ndarray:
    return self.table(np.asarray(self.added))[tokens]

  def their_columns(self, logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits)[..., self.table(np.argsort(self.added))]

  def table(self, order: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(self.vocabulary), self.vocabulary + order]).astype(int)


def make_batch(tokens: np.ndarray, present: np.ndarray, media: np.ndarray, image: int) -> Arrays:
  """A batch that attends to the last medium before each token.

  Args:
    tokens: int32 [B, L], in our ids.
    present: [B, L], 1 where there is a token.
    media: features float32 [B, N, F, S, V].
    image: the id of the marker.
  """
  return dict(
    tokens=tokens,
    segments=np.asarray(present, np.int32),
    media=media,
    media_mask=np.ones(media.shape[:3], bool),
    media_index=np.cumsum(tokens == image, axis=1, dtype=np.int32) - 1,
  )
