"""The text of a compiled XLA module: its instructions, and how often each of its computations runs in one step."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator

from flamingo_jax.errors import UserError

BYTES = dict(pred=1, token=0, opaque=0, bf16=2)  # a value; others are named by their bits
ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$")
LINE = re.compile(r"  (ROOT )?%?[^\s=]+ = ")
MOST_TRIPS = 1_000_000


class UnreadableModule(UserError):
  """A number that cannot be read from the module with certainty, and is not guessed."""

  def __init__(self, what: str):
    super().__init__(f"the compiled program does not tell {what}.")


@dataclasses.dataclass(frozen=True)
class Array:
  """A value of an instruction; `space` 0 is the device's main memory, others are on the chip."""

  dtype: str
  shape: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    size = 1
    for length in self.shape:
      size *= length
    return size

  @property
  def bytes(self) -> float:
    return self.size * bytes_of(self.dtype)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation; a tuple's arrays are listed side by side."""

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str  # what stands in the place of operands: a constant's value, a parameter's number
  attributes: str

  def calls(self, attribute: str) -> str:
    """The computation that an attribute names, such as "body"; empty if there is none."""
    found = re.search(rf"\b{attribute}=%?([^\s,)}}]+)", self.attributes)
    return found.group(1) if found else ""

  @property
  def index(self) -> int:
    """Of a get-tuple-element."""
    return int(re.search(r"\bindex=(\d+)", self.attributes).group(1))


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in order; the last that is said to be the root gives the result."""

  name: str
  instructions: dict[str, Instruction]
  root: str


@dataclasses.dataclass(frozen=True)
class Module:
  """A program."""

  computations: dict[str, Computation]
  entry: str
  devices: int


def bytes_of(dtype: str) -> float:
  """Bytes of one value."""
  if dtype in BYTES:
    return BYTES[dtype]
  bits = re.match(r"[a-z]+(\d+)", dtype)
  if not bits:
    raise UnreadableModule(f"how large a {dtype!r} is")
  return int(bits.group(1)) / 8


def parse(text: str) -> Module:
  """Reads what `Compiled.as_text()` gives.

  Raises:
    UnreadableModule: there is no entry computation.
  """
  computations, entry, name, root = {}, "", "", ""
  instructions: dict[str, Instruction] = {}
  for line in whole_lines(text):
    header = HEADER.match(line)
    if header:
      name, instructions, root = header.group(2), {}, ""
      entry = name if header.group(1) else entry
    elif line == "}":
      computations[name] = Computation(name, instructions, root)
    elif LINE.match(line):
      instruction = parse_instruction(line)
      instructions[instruction.name] = instruction
      root = instruction.name if LINE.match(line).group(1) else root
  if entry not in computations:
    raise UnreadableModule("which computation is the entry")
  return Module(computations, entry, device_count(text))


def whole_lines(text: str) -> Iterator[str]:
  """The lines, where what a kernel says of itself may have cut an instruction into several."""
  line = ""
  for part in text.splitlines():
    if line and (not part or part == "}" or HEADER.match(part) or LINE.match(part)):
      yield line
      line = ""
    line += part
  yield line


def device_count(text: str) -> int:
  """Of the whole program: replicas times partitions."""
  header = text[: text.find("\n")]
  found = {name: int(count) for name, count in re.findall(r"(replica_count|num_partitions)=(\d+)", header)}
  return found.get("replica_count", 1) * found.get("num_partitions", 1)


def parse_instruction(line: str) -> Instruction:
  """One line: `%name = shape opcode(operands), attributes`."""
  name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
  rest = re.sub(r"/\*.*?\*/", "", rest)
  shape_end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
  opcode, rest = rest.split("(", 1)
  end = closing("(" + rest, 0) - 1
  inside, attributes = rest[:end], rest[end + 1 :]
  return Instruction(
    name.removeprefix("%"),
    parse_arrays(shape),
    opcode,
    tuple(re.findall(r"%([^\s,()]+)", inside)),
    inside,
    attributes.removeprefix(", "),
  )


def closing(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if not depth:
      return place
  raise UnreadableModule(f"where {text[start : start + 40]!r} ends")


def parse_arrays(shape: str) -> tuple[Array, ...]:
  arrays = []
  for dtype, lengths, layout in ARRAY.findall(shape):
    space = re.search(r"S\((\d+)\)", layout)
    sides = tuple(int(length.removeprefix("<=")) for length in lengths.split(",") if length)
    arrays.append(Array(dtype, sides, int(space.group(1)) if space else 0))
  return tuple(arrays)


# How often computations run


@dataclasses.dataclass(frozen=True)
class Scope:
  """A computation where it is called, as far as whole numbers in it can be known.

  Attributes:
    module: it belongs to.
    computation: itself.
    argument: from a parameter's number and a place within its tuple to its value, or None where that is not known.
  """

  module: Module
  computation: Computation
  argument: Callable[[int, tuple[int, ...]], int | None]

  def value(self, name: str, place: tuple[int, ...] = ()) -> int | None:
    """What an instruction gives; of a tuple, the element at a place. None if it cannot be known."""
    instruction = self.computation.instructions[name]
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "constant":
      return constant(instruction.literal)
    if opcode == "parameter":
      return self.argument(int(instruction.literal), place)
    if opcode == "get-tuple-element":
      return self.value(operands[0], (instruction.index, *place))
    if opcode == "tuple":
      return self.value(operands[place[0]], place[1:])
    if opcode in PASSED_ON:
      return self.value(operands[0], place)
    if opcode in ("fusion", "call"):
      inner = self.within(instruction.calls("calls") or instruction.calls("to_apply"), operands)
      return inner.value(inner.computation.root, place)
    known = [self.value(operand) for operand in operands] if opcode in ARITHMETIC or opcode == "compare" else [None]
    if None in known:
      return None
    if opcode == "compare":
      return COMPARISONS[instruction.calls("direction")](*known)
    return ARITHMETIC[opcode](*known)

  def within(self, called: str, operands: tuple[str, ...]) -> "Scope":
    """A computation that is called with these instructions."""
    return Scope(
      self.module, self.module.computations[called], lambda number, place: self.value(operands[number], place)
    )


PASSED_ON = ("copy", "bitcast", "convert", "reshape", "optimization-barrier", "copy-done")
ARITHMETIC = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}
COMPARISONS = {
  "LT": int.__lt__,
  "LE": int.__le__,
  "GT": int.__gt__,
  "GE": int.__ge__,
  "EQ": int.__eq__,
  "NE": int.__ne__,
}


def constant(literal: str) -> int | None:
  if re.fullmatch(r"-?\d+", literal):
    return int(literal)
  return {"true": 1, "false": 0}.get(literal)


def executions(module: Module) -> dict[str, int]:
  """How often each computation runs in one run of the program, loops within loops multiplied.

  What a loop's condition, a reduction or a sort calls for each value is left out.

  Raises:
    UnreadableModule: it cannot be told how often a loop runs, or which branch is taken.
  """
  counts: collections.Counter[str] = collections.Counter()

  def visit(scope: Scope, times: int) -> None:
    counts[scope.computation.name] += times
    for instruction in scope.computation.instructions.values():
      if instruction.opcode == "while":
        loop = Loop(scope, instruction)
        visit(loop.body, times * loop.trips())
      elif instruction.opcode == "conditional":
        raise UnreadableModule(f"which branch of {instruction.name} is taken")
      elif instruction.opcode in ("fusion", "call", "async-start"):
        called = instruction.calls("calls") or instruction.calls("to_apply")
        visit(scope.within(called, instruction.operands), times)

  visit(Scope(module, module.computations[module.entry], lambda number, place: None), 1)
  return dict(counts)


class Loop:
  """A `while`, whose counter is run to see how often its body does."""

  def __init__(self, scope: Scope, instruction: Instruction):
    self.scope, self.instruction = scope, instruction
    module = scope.module
    self.counters: dict[tuple[int, ...], int | None] = {}  # what the condition depends on, by place
    self.condition = Scope(module, module.computations[instruction.calls("condition")], self.counter)
    self.body = Scope(module, module.computations[instruction.calls("body")], self.unchanged)
    self.next = Scope(module, self.body.computation, self.counter)

  def initial(self, place: tuple[int, ...]) -> int | None:
    return self.scope.value(self.instruction.operands[0], place)

  def unchanged(self, _: int, place: tuple[int, ...]) -> int | None:
    """What the body sees at a place in every round, if it always hands it on as it is."""
    return self.initial(place) if self.hands_on(self.body.computation.root, place) else None

  def hands_on(self, name: str, place: tuple[int, ...]) -> bool:
    """Whether the body's result has at a place what its argument has there."""
    wanted = place
    while True:
      instruction = self.body.computation.instructions[name]
      if instruction.opcode == "parameter":
        return place == wanted
      if instruction.opcode == "tuple":
        name, place = instruction.operands[place[0]], place[1:]
      elif instruction.opcode == "get-tuple-element":
        name, place = instruction.operands[0], (instruction.index, *place)
      elif instruction.opcode in PASSED_ON:
        name = instruction.operands[0]
      else:
        return False

  def counter(self, _: int, place: tuple[int, ...]) -> int | None:
    if place not in self.counters:
      self.counters[place] = self.initial(place)
    return self.counters[place]

  def trips(self) -> int:
    """How often the body runs.

    Raises:
      UnreadableModule: that depends on what is not known.
    """
    told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.instruction.attributes)
    if told:
      return int(told.group(1))
    self.find_counters()
    for trips in range(MOST_TRIPS):
      goes_on = self.condition.value(self.condition.computation.root)
      if goes_on is None:
        break
      if not goes_on:
        return trips
      self.counters.update(self.following())
    raise UnreadableModule(f"how often the loop {self.instruction.name} runs")

  def find_counters(self) -> None:
    """Follows what the condition reads to all that it depends on, before the first round."""
    self.condition.value(self.condition.computation.root)
    known = -1
    while known != len(self.counters):
      known = len(self.counters)
      self.following()

  def following(self) -> dict[tuple[int, ...], int | None]:
    root = self.next.computation.root
    return {place: self.next.value(root, place) for place in list(self.counters)}


def walk(module: Module) -> Iterator[tuple[Computation, Instruction, int]]:
  """Every instruction that runs, its computation, and how often it does. Those within fusions are among them."""
  for name, times in executions(module).items():
    for instruction in module.computations[name].instructions.values():
      yield module.computations[name], instruction, times
