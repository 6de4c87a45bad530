"""From a config file and overrides to checked dataclasses; says every fault at once, before any device work."""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import sys
import types
import typing

from ml_collections import ConfigDict

from flamingo_jax.errors import UserError

PACKAGED = pathlib.Path(__file__).parent.parent / "configs"


def load_config(path: str, overrides: dict[str, str]) -> dict:
  """Runs `get_config()` of a Python file and applies `--config.a.b=value` overrides, given as {"a.b": "value"}.

  Raises:
    UserError: there is no such file, it fails, or an override names no field.
  """
  config = run_file(find_config(path), "get_config")
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config() returns {config!r}; it returns an ml_collections.ConfigDict.")
  return overridden(config.to_dict(), overrides, path)


def overridden(config: dict, overrides: dict[str, str], where: str) -> dict:
  """The config with overrides in it. Raises UserError for those that name no field."""
  faults = [fault for name, value in overrides.items() if (fault := override(config, name, value))]
  if faults:
    raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
  return config


def find_config(path: str, function: str = "get_config") -> pathlib.Path:
  """The file itself, or that of the same name that comes with the package; `function` tells what kind it is."""
  given = pathlib.Path(path)
  for candidate in (given, PACKAGED / pathlib.Path(*given.parts[given.parts[:1] == ("configs",) :])):
    if candidate.is_file():
      return candidate
  files = (file for file in PACKAGED.rglob("[!_]*.py") if f"def {function}" in file.read_text())
  known = ", ".join(sorted(str(file.relative_to(PACKAGED.parent)) for file in files))
  raise UserError(f"{path}: no such config file. Those that come with flamingo_jax: {known}.")


def run_file(path: pathlib.Path, function: str) -> object:
  """What a function of a Python file returns; it takes no arguments."""
  spec = importlib.util.spec_from_file_location("flamingo_config", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path}: not a Python file; a config ends in .py.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    returned = getattr(module, function)() if hasattr(module, function) else None
  except Exception as error:  # whatever a user's file raises is the user's to mend
    raise UserError(f"{path}: {type(error).__name__}: {error}") from error
  if not hasattr(module, function):
    raise UserError(f"{path}: defines no {function}(); what the file describes is returned from there.")
  return returned


def override(config: dict, name: str, text: str) -> str | None:
  """Sets one field; returns what is wrong, if anything. Unknown last names are found when the dataclasses are built."""
  *parents, last = name.split(".")
  for depth, parent in enumerate(parents):
    if parent in config and not isinstance(config[parent], dict):
      return f"--config.{name}: {'.'.join(parents[: depth + 1])} is a value, not a group of fields."
    if parent not in config:
      return f"--config.{name}: " + unknown(".".join(parents[:depth]), parent, config)
    config = config[parent]
  if isinstance(config.get(last), dict):
    return f"--config.{name}: is a group of fields; set one of {', '.join(config[last])}."
  config[last] = text if isinstance(config.get(last), str) else literal(text)
  return None


def literal(text: str) -> object:
  """A Python literal; anything else is a string."""
  try:
    return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the latter two: nested too deeply
    return text


def build(cls: type, values: dict, where: str, faults: list[str]):
  """A dataclass from a dict, recursively. What does not fit is added to `faults`, and None comes back.

  Args:
    cls: a dataclass.
    values: field name -> value; fields left out keep their defaults.
    where: the path of this group in the config, for messages.
    faults: grows by one line a fault.
  """
  before = len(faults)
  types_of = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, dict):
    faults.append(f"{where} is {values!r}; it is a group of fields: {', '.join(fields)}.")
    return None
  faults += [unknown(where, name, fields) for name in values if name not in fields]
  faults += [
    f"{join(where, name)}: missing."
    for name, field in fields.items()
    if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
  ]
  known = {name: value for name, value in values.items() if name in fields}
  built = {name: convert(types_of[name], value, join(where, name), faults) for name, value in known.items()}
  return cls(**built) if len(faults) == before else None


def convert(wanted: type, value: object, where: str, faults: list[str]):
  """One value to the type of its field."""
  if isinstance(wanted, types.UnionType):
    wanted = choose(typing.get_args(wanted), value, where, faults)
    if wanted is None:
      return None
  if dataclasses.is_dataclass(wanted):
    return build(wanted, value, where, faults)
  if typing.get_origin(wanted) is tuple:
    return convert_tuple(typing.get_args(wanted)[0], value, where, faults)
  if wanted is float and type(value) is int and not unfit(value):
    return float(value)
  if type(value) is not wanted:
    faults.append(f"{where} is {value!r}; it is of type {getattr(wanted, '__name__', wanted)}.")
  elif value != value:  # all comparisons that would find it out of range are false
    faults.append(f"{where} is {value!r}; it is a number.")
  return value


def choose(members: tuple[type, ...], value: object, where: str, faults: list[str]) -> type | None:
  """The member of a union that a value is meant for; dataclasses are told apart by their `family`.

  None when the value is None and may be, or when there is no such member, which is a fault.
  """
  if value is None and type(None) in members:
    return None
  groups: list[typing.Any] = [member for member in members if dataclasses.is_dataclass(member)]
  if not groups:  # one value, or a tuple of them
    many = isinstance(value, list | tuple)
    return next((member for member in members if (typing.get_origin(member) is tuple) == many), members[0])
  if len(groups) == 1 or not isinstance(value, dict):
    return groups[0]
  families = {member.family: member for member in groups}
  family = value.get("family", groups[0].family)
  if not isinstance(family, str) or family not in families:
    faults.append(f"{join(where, 'family')} is {family!r}; it is one of {', '.join(families)}.")
    return None
  return families[family]


def convert_tuple(item: type, value: object, where: str, faults: list[str]) -> tuple | None:
  """A tuple of one kind of value, which may come as a list."""
  kinds = (int, float) if item is float else (item,)
  if isinstance(value, list | tuple) and all(type(each) in kinds and not unfit(each) for each in value):
    return tuple(item(element) for element in value)
  example = {str: "('^resampler/',)", int: "(1, 2)", float: "(0.5, 0.5)"}[item]
  name = {str: "strings", int: "whole numbers", float: "numbers"}[item]
  faults.append(f"{where} is {value!r}; it is a tuple of {name}, such as {example}.")
  return None


def unfit(value: object) -> bool:
  """Whether this is a whole number that no float can be, or a float that is no number."""
  return value != value or (type(value) is int and abs(value) > sys.float_info.max)


def unknown(where: str, name: str, known) -> str:
  """Names the field that was probably meant."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  hint = f"did you mean {join(where, close[0])}?" if close else f"known there: {', '.join(known) or 'none'}."
  return f"{join(where, name)}: no such field; {hint}"


def join(where: str, name: str) -> str:
  return f"{where}.{name}" if where else name
