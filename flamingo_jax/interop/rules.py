"""How a foreign checkpoint's tensors become our parameters and back: a list of rules, each reversible to the bit.

Ours are named by path, with the layers of a stack along a first axis: "layers/attention/query/kernel" [layers, ...].
A rule takes one foreign tensor to one or more slices of ours, so a checkpoint of any size passes tensor by tensor.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from flamingo_jax.errors import UserError

Shape = tuple[int, ...]
Parts = tuple[np.ndarray, ...]


class Tensors(Protocol):
  """Named arrays that are read one at a time, such as a checkpoint on disk."""

  @property
  def path(self) -> object: ...  # what to call it in messages

  @property
  def names(self) -> Sequence[str]: ...

  def shape(self, name: str) -> Shape: ...

  def dtype(self, name: str) -> np.dtype: ...

  def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Part:
  """One of our parameters, or one layer of a stacked one."""

  path: str
  layer: int | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """One foreign tensor and what it is made of.

  Attributes:
    names: the foreign name, then other names that the same tensor may go by (some checkpoints hold it under several).
    parts: of ours.
    split: the foreign array to one array a part.
    join: the exact inverse, one argument a part.
    shape: of the foreign array.
  """

  names: tuple[str, ...]
  parts: tuple[Part, ...]
  split: Callable[[np.ndarray], Parts]
  join: Callable[..., np.ndarray]
  shape: Shape


def same(names: str | Sequence[str], part: Part, shape: Shape, ours: Shape | None = None) -> Rule:
  """The same numbers on both sides; `ours` where only the shape differs."""
  inner = shape if ours is None else ours
  return Rule(as_names(names), (part,), lambda x: (x.reshape(inner),), lambda x: x.reshape(shape), shape)


def linear(names: str | Sequence[str], part: Part, inputs: int | Shape, outputs: int | Shape) -> Rule:
  """A weight [out, in], as PyTorch keeps it, and our kernel [*inputs, *outputs]."""
  inputs, outputs = as_shape(inputs), as_shape(outputs)
  shape = (size(outputs), size(inputs))
  return Rule(
    as_names(names),
    (part,),
    lambda x: (x.T.reshape(*inputs, *outputs),),
    lambda x: x.reshape(shape[1], shape[0]).T,
    shape,
  )


def fused_linear(
  names: str | Sequence[str], parts: Sequence[Part], inputs: int | Shape, outputs: Sequence[int | Shape]
) -> Rule:
  """Several kernels that read the same input, kept one above the other in a weight [sum of outs, in]."""
  inputs, sizes = as_shape(inputs), [as_shape(output) for output in outputs]
  widths = [size(output) for output in sizes]
  cuts = np.cumsum(widths)[:-1]

  def split(x: np.ndarray) -> Parts:
    return tuple(w.T.reshape(*inputs, *output) for w, output in zip(np.split(x, cuts), sizes, strict=True))

  def join(*kernels: np.ndarray) -> np.ndarray:
    return np.concatenate([k.reshape(size(inputs), -1).T for k in kernels])

  return Rule(as_names(names), tuple(parts), split, join, (sum(widths), size(inputs)))


def fused_vector(names: str | Sequence[str], parts: Sequence[Part], outputs: Sequence[int | Shape]) -> Rule:
  """Several biases kept one after the other."""
  sizes = [as_shape(output) for output in outputs]
  cuts = np.cumsum([size(output) for output in sizes])[:-1]
  return Rule(
    as_names(names),
    tuple(parts),
    lambda x: tuple(v.reshape(output) for v, output in zip(np.split(x, cuts), sizes, strict=True)),
    lambda *vectors: np.concatenate([v.reshape(-1) for v in vectors]),
    (sum(size(output) for output in sizes),),
  )


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)


def as_shape(shape: int | Shape) -> Shape:
  return (shape,) if isinstance(shape, int) else tuple(shape)


def size(shape: Shape) -> int:
  return int(np.prod(shape, dtype=np.int64))


class Merged:
  """Several sources as one: a name that two of them hold is read from the first."""

  def __init__(self, *sources: Tensors):
    self.path = " + ".join(str(source.path) for source in sources)
    self.holders = {name: source for source in reversed(sources) for name in source.names}
    self.names = sorted(self.holders)

  def shape(self, name: str) -> Shape:
    return self.holders[name].shape(name)

  def dtype(self, name: str) -> np.dtype:
    return self.holders[name].dtype(name)

  def read(self, name: str) -> np.ndarray:
    return self.holders[name].read(name)


class Renamed:
  """A source whose names are changed, such as by a prefix; names that become None are left out."""

  def __init__(self, source: Tensors, rename: Callable[[str], str | None]):
    self.source, self.path = source, source.path
    self.originals = {new: name for name in source.names if (new := rename(name)) is not None}
    self.names = sorted(self.originals)

  def shape(self, name: str) -> Shape:
    return self.source.shape(self.originals[name])

  def dtype(self, name: str) -> np.dtype:
    return self.source.dtype(self.originals[name])

  def read(self, name: str) -> np.ndarray:
    return self.source.read(self.originals[name])


@dataclasses.dataclass(frozen=True)
class Layout:
  """Shape and dtype that one of our parameters will have."""

  shape: Shape
  dtype: np.dtype


def check_tensors(tensors: Tensors, rules: Sequence[Rule], ignored: Sequence[str], origin: str = "") -> None:
  """Holds a checkpoint against the rules before anything of it is read.

  Args:
    tensors: the checkpoint.
    rules: of its format and the model's sizes.
    ignored: patterns of foreign names that are known and not wanted.
    origin: what the checkpoint seems to have been made for, if that can be told.

  Raises:
    UserError: tensors that are missing, left over, of another shape or not of floats, all at once.
  """
  present = set(tensors.names)
  faults = []
  for rule in rules:
    found = [name for name in rule.names if name in present]
    ours = ", ".join(part.path if part.layer is None else f"{part.path}[{part.layer}]" for part in rule.parts)
    if not found:
      faults.append(f"  missing: {rule.names[0]} {list(rule.shape)} (our {ours})")
    for name in found:
      if tuple(tensors.shape(name)) != rule.shape:
        faults.append(f"  {name}: is {list(tensors.shape(name))}, should be {list(rule.shape)} (our {ours})")
      if not is_float(tensors.dtype(name)):
        faults.append(f"  {name}: is of type {tensors.dtype(name)}, should be of floats (our {ours})")
  faults += [f"  not known: {name} {list(tensors.shape(name))}" for name in left_over(tensors, rules, ignored)]
  if faults:
    made_for = f"\nThe checkpoint looks made for {origin}." if origin else ""
    raise UserError(f"{tensors.path}: its tensors do not fit the model:\n" + "\n".join(faults) + made_for)


def left_over(tensors: Tensors, rules: Sequence[Rule], ignored: Sequence[str]) -> list[str]:
  """Foreign tensors that no rule takes and no pattern sets aside."""
  taken = {name for rule in rules for name in rule.names}
  patterns = [re.compile(pattern) for pattern in ignored]
  return [name for name in tensors.names if name not in taken and not any(p.search(name) for p in patterns)]


def is_float(dtype: np.dtype) -> bool:
  return np.dtype(dtype).name in ("float32", "float16", "bfloat16", "float64")


def layouts(tensors: Tensors, rules: Sequence[Rule]) -> dict[str, Layout]:
  """What our parameters will look like, by path; the dtype is the foreign one.

  Raises:
    UserError: layers of one stack that differ in dtype.
  """
  present = set(tensors.names)
  found: dict[str, Layout] = {}
  counts: dict[str, int] = {}
  for rule in rules:
    dtype = np.dtype(tensors.dtype(next(name for name in rule.names if name in present)))
    try:
      shapes = [array.shape for array in rule.split(np.broadcast_to(np.zeros((), np.bool_), rule.shape))]
    except (ValueError, IndexError) as error:
      raise UserError(
        f"{tensors.path}: {rule.names[0]} {list(rule.shape)} cannot be cut into {rule.parts[0].path} ({error})."
      ) from error
    for part, shape in zip(rule.parts, shapes, strict=True):
      known = found.setdefault(part.path, Layout(shape, dtype))
      if known.dtype != dtype:
        raise UserError(f"{tensors.path}: {rule.names[0]} is {dtype}, but other layers of it are {known.dtype}.")
      if part.layer is not None:
        counts[part.path] = max(counts.get(part.path, 0), part.layer + 1)
  return {
    path: Layout((counts[path], *layout.shape), layout.dtype) if path in counts else layout
    for path, layout in found.items()
  }


def ours_from(tensors: Tensors, rules: Sequence[Rule]) -> Iterator[tuple[Part, np.ndarray]]:
  """Every part of ours with its values, in the order of the rules; call `check_tensors` first.

  Raises:
    UserError: a tensor that the checkpoint holds under two names with different values.
  """
  present = set(tensors.names)
  for rule in rules:
    name, *aliases = [name for name in rule.names if name in present]
    array = tensors.read(name)
    for alias in aliases:
      if not np.array_equal(array, tensors.read(alias)):
        raise UserError(f"{tensors.path}: {name} and {alias} are one tensor, but their values differ.")
    yield from zip(rule.parts, rule.split(array), strict=True)


def foreign_from(
  parameters: dict[str, np.ndarray], rules: Sequence[Rule]
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  """The inverse of `ours_from`: the names of every foreign tensor, and its values."""
  for rule in rules:
    arrays = [slice_of(parameters, part) for part in rule.parts]
    yield rule.names, np.asarray(rule.join(*arrays), order="C")  # unlike ascontiguousarray, keeps scalars scalars


def slice_of(parameters: dict[str, np.ndarray], part: Part) -> np.ndarray:
  whole = np.asarray(parameters[part.path])
  return whole if part.layer is None else whole[part.layer]


def assemble(tensors: Tensors, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
  """All of ours in memory, by path; for models that are small or about to be used."""
  arrays = {path: np.empty(layout.shape, layout.dtype) for path, layout in layouts(tensors, rules).items()}
  for part, values in ours_from(tensors, rules):
    arrays[part.path][... if part.layer is None else part.layer] = values
  return arrays


class InMemory:
  """Arrays that are at hand, as `Tensors`."""

  def __init__(self, arrays: dict[str, np.ndarray], path: object = "arrays"):
    self.arrays, self.path, self.names = arrays, path, sorted(arrays)

  def shape(self, name: str) -> Shape:
    return self.arrays[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self.arrays[name].dtype

  def read(self, name: str) -> np.ndarray:
    return self.arrays[name]
