"""From a config file and overrides to checked dataclasses; says every fault at once, before any device work."""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import types
import typing

from flamingo_jax.errors import UserError

PACKAGED = pathlib.Path(__file__).parent.parent / "configs"


def load_config(path: str, overrides: dict[str, str]) -> dict:
  """Runs `get_config()` of a Python file and applies `--config.a.b=value` overrides, given as {"a.b": "value"}.

  Raises:
    UserError: there is no such file, it fails, or an override names no field.
  """
  module = run_file(find_config(path))
  if not hasattr(module, "get_config"):
    raise UserError(f"{path}: defines no get_config(); a config file returns its ConfigDict from there.")
  config = module.get_config().to_dict()
  faults = [fault for name, value in overrides.items() if (fault := override(config, name, value))]
  if faults:
    raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
  return config


def find_config(path: str) -> pathlib.Path:
  """The file itself, or the config of that name that comes with the package."""
  for candidate in (pathlib.Path(path), PACKAGED / pathlib.Path(path).name):
    if candidate.is_file():
      return candidate
  known = ", ".join(sorted(f"configs/{file.name}" for file in PACKAGED.glob("[!_]*.py")))
  raise UserError(f"{path}: no such config file. Those that come with flamingo_jax: {known}.")


def run_file(path: pathlib.Path) -> types.ModuleType:
  spec = importlib.util.spec_from_file_location("flamingo_config", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path}: not a Python file; a config ends in .py.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # whatever a user's file raises is the user's to mend
    raise UserError(f"{path}: {type(error).__name__}: {error}") from error
  return module


def override(config: dict, name: str, text: str) -> str | None:
  """Sets one field; returns what is wrong, if anything. Unknown last names are found when the dataclasses are built."""
  *parents, last = name.split(".")
  for depth, parent in enumerate(parents):
    if not isinstance(config.get(parent), dict):
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
  except (ValueError, SyntaxError):
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
  if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
    return build(wanted, value, where, faults)
  if typing.get_origin(wanted) is tuple:
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
      return tuple(value)
    faults.append(f"{where} is {value!r}; it is a tuple of strings, such as ('^resampler/',).")
    return None
  if wanted is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not wanted:
    faults.append(f"{where} is {value!r}; it is of type {getattr(wanted, '__name__', wanted)}.")
  return value


def unknown(where: str, name: str, known) -> str:
  """Names the field that was probably meant."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  hint = f"did you mean {join(where, close[0])}?" if close else f"known there: {', '.join(known) or 'none'}."
  return f"{join(where, name)}: no such field; {hint}"


def join(where: str, name: str) -> str:
  return f"{where}.{name}" if where else name
