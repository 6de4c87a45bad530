"""What one chip does in a step of a compiled program, with its loops: operations, and bytes of memory moved."""

import math
import re

import numpy as np

from flamingo_jax.planning.collectives import numbers
from flamingo_jax.planning.hlo import Array, Computation, Instruction, Module, UnreadableModule, executions, walk

KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}  # how many products of scores' size each makes


def product_flops(module: Module) -> float:
  """Operations of all matrix products, convolutions and attention kernels; a multiplication and an addition are two.

  Raises:
    UnreadableModule: a loop or a kernel that is not understood.
  """
  return sum(times * flops_of(computation, instruction) for computation, instruction, times in walk(module))


def flops_of(computation: Computation, instruction: Instruction) -> float:
  count = {"dot": dot_flops, "convolution": convolution_flops, "custom-call": kernel_flops}.get(instruction.opcode)
  if count is None:
    return 0
  operands = [computation.instructions[name].arrays for name in instruction.operands]
  return count(instruction, [arrays[0] for arrays in operands if arrays])


def dot_flops(instruction: Instruction, operands: list[Array]) -> float:
  summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
  lengths = [operands[0].shape[axis] for axis in numbers(summed.group(1) if summed else "")]
  return 2 * instruction.arrays[0].size * math.prod(lengths)


def convolution_flops(instruction: Instruction, operands: list[Array]) -> float:
  """Of those products alone that lie within the image, not on its border or in the gaps of a dilated one."""
  image, kernel = operands[0], operands[1]
  axes, kernel_axes, out_axes = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
  batch_groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
  positions = 1
  for place in sorted(label for label in axes if label.isdigit()):
    window = window_of(instruction.attributes, int(place))
    sizes = image.shape[axes.index(place)], kernel.shape[kernel_axes.index(place)]
    positions *= inside(*sizes, instruction.arrays[0].shape[out_axes.index(place)], **window)
  rows = image.shape[axes.index("b")] // (int(batch_groups.group(1)) if batch_groups else 1)
  return 2 * positions * rows * kernel.shape[kernel_axes.index("i")] * kernel.shape[kernel_axes.index("o")]


def window_of(attributes: str, place: int) -> dict[str, int]:
  """Stride, padding before, and dilations of a convolution along one of its axes."""
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(field.split("=") for field in window.group(1).split()) if window else {}

  def at(name: str, default: str) -> int:
    return int(fields[name].split("x")[place].split("_")[0]) if name in fields else int(default)

  names = dict(stride="stride", before="pad", dilation="lhs_dilate", kernel_dilation="rhs_dilate")
  return {name: at(field, "0" if field == "pad" else "1") for name, field in names.items()}


def inside(image: int, kernel: int, out: int, *, stride: int, before: int, dilation: int, kernel_dilation: int) -> int:
  """How many pairs of a place of the kernel and a place of the result meet a value of the image."""
  places = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - before
  return int(((places >= 0) & (places % dilation == 0) & (places // dilation < image)).sum())


def kernel_flops(instruction: Instruction, operands: list[Array]) -> float:
  """Of attention kernels, for all scores: of queries [..., heads, L, K] and keys [..., heads, S, K]."""
  if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
    return 0
  made = next((products for kernel, products in KERNELS.items() if instruction.name.startswith(kernel)), None)
  heads = [array.shape for array in operands if array.dtype in ("bf16", "f32")]
  if made is None or len(heads) < 2:
    raise UnreadableModule(f"what the kernel {instruction.name} computes")
  return made * 2 * math.prod(heads[0]) * heads[1][-2]


# Bytes between the core and its memory

FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "fusion", "async-start",
  "async-update", "async-done", "copy-done", "optimization-barrier", "after-all", "partition-id", "replica-id",
)  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")


def memory_bytes(module: Module) -> float:
  """Bytes read from and written to main memory, were every instruction's arrays moved once, and none kept on the chip
  but those that the compiler placed there.

  Raises:
    UnreadableModule: a loop that is not understood.
  """
  within_fusions = {
    instruction.calls("calls")
    for computation in module.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode == "fusion"
  }
  total = 0.0
  for name, times in executions(module).items():
    if name not in within_fusions:
      computation = module.computations[name]
      total += times * sum(moved(module, computation, each) for each in computation.instructions.values())
  return total


def moved(module: Module, computation: Computation, instruction: Instruction) -> float:
  """Bytes that one instruction reads and writes."""
  operands = [computation.instructions[name] for name in instruction.operands]
  if instruction.opcode == "fusion":
    inner = module.computations[instruction.calls("calls")]
    parameters = parameters_of(inner)
    read = sum(read_by(module, inner, parameters[number], operand) for number, operand in enumerate(operands))
    return read + written(inner, inner.instructions[inner.root], in_memory(instruction.arrays))
  if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
    return 0
  if instruction.opcode == "custom-call" and 'target="tpu_custom_call"' not in instruction.attributes:
    return 0
  if instruction.opcode in SLICES:
    return 2 * in_memory(instruction.arrays)
  if instruction.opcode == "dynamic-update-slice":
    return 2 * in_memory(operands[1].arrays)
  if instruction.opcode == "copy-start":
    return in_memory(instruction.arrays[:2])
  if instruction.opcode == "slice-start":
    source, part = instruction.arrays[:2]
    return part.bytes * ((source.space == 0) + (part.space == 0))
  return sum(in_memory(operand.arrays) for operand in operands) + in_memory(instruction.arrays)


def in_memory(arrays: tuple[Array, ...]) -> float:
  return sum(array.bytes for array in arrays if array.space == 0)


def read_by(module: Module, fusion: Computation, parameter: Instruction, operand: Instruction) -> float:
  """What a fusion reads of an operand: all of it, or the slices alone that it takes."""
  whole = in_memory(operand.arrays)
  return min(whole, sliced(module, fusion, parameter.name)) if whole else 0


def sliced(module: Module, fusion: Computation, name: str) -> float:
  """Bytes of the slices that are taken of an instruction's array, in fusions within as well; infinite for all of it."""
  read = 0.0
  for user in fusion.instructions.values():
    for place, operand in enumerate(user.operands):
      if operand != name:
        continue
      if user.opcode in SLICES:
        read += sum(array.bytes for array in user.arrays)
      elif user.opcode == "bitcast":
        read += sliced(module, fusion, user.name)
      elif user.opcode == "fusion":
        inner = module.computations[user.calls("calls")]
        whole = is_renaming(inner)
        read += sliced(module, fusion, user.name) if whole else sliced(module, inner, parameters_of(inner)[place].name)
      elif user.opcode != "dynamic-update-slice" or place:
        return math.inf
  return read


def is_renaming(fusion: Computation) -> bool:
  """Whether a fusion within another gives its one operand as it is, in another shape."""
  return all(each.opcode in ("parameter", "bitcast") for each in fusion.instructions.values())


def parameters_of(computation: Computation) -> dict[int, Instruction]:
  return {int(each.literal): each for each in computation.instructions.values() if each.opcode == "parameter"}


def written(fusion: Computation, root: Instruction, whole: float) -> float:
  """What a fusion writes: its result, or the slice alone that it puts into an array."""
  parts = [fusion.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
  updates = [each for each in parts if each.opcode == "dynamic-update-slice"]
  spared = sum(each.arrays[0].bytes - fusion.instructions[each.operands[1]].arrays[0].bytes for each in updates)
  return max(whole - spared, 0)
