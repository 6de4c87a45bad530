"""`flamingo config`: the whole of a config, what differs between two, and every fault of one."""

import json
import pathlib
from collections.abc import Iterator

import yaml

from flamingo_jax.credentials import redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.training.workdir import CONFIG, Change, differing, read_config
from launch.config import join, load_config, overridden


def open_config(path: str, overrides: dict[str, str]) -> dict:
  """What a config file returns, or what a work directory or a folder of an evaluation was made with.

  Raises:
    UserError: it is none of these, a field holds what no file can, or an override names no field.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    config = load_config(path, {})
  elif (folder / CONFIG).is_file():
    config = read_config(folder / CONFIG)
  else:
    raise UserError(f"{folder / CONFIG}: missing. Give a config file, or the work directory of a run.")
  added = [name for name in overrides if not has(config, name)]
  config = overridden(config, overrides, path)
  if faults := list(unwritable(config)):
    raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
  if added:  # a field that is left out is known from a slip of the pen by what a run would say of it
    check(config, path)
  return config


def has(config: object, name: str) -> bool:
  """Whether a config has the field a.b.c."""
  for part in name.split("."):
    if not isinstance(config, dict) or part not in config:
      return False
    config = config[part]
  return True


def unwritable(value: object, where: str = "") -> Iterator[str]:
  """One line a field that a work directory could not keep, as JSON."""
  if isinstance(value, dict):
    for name, each in value.items():
      yield from unwritable(each, join(where, str(name)))
  elif isinstance(value, list | tuple):
    for each in value:
      yield from unwritable(each, where)
  elif value is not None and not isinstance(value, bool | int | float | str):
    yield f"{where} holds {value!r}; a field is a number, text, None, or a tuple or group of these."


def show(path: str, overrides: dict[str, str], *, as_json: bool) -> str:
  """Every field with its value, as YAML or JSON; credentials are hidden."""
  config = redacted_config(json.loads(json.dumps(open_config(path, overrides))))
  return json.dumps(config, indent=2) if as_json else yaml.safe_dump(config, sort_keys=False).rstrip()


def diff(first: str, second: str, overrides: dict[str, str], *, as_json: bool) -> str:
  """The fields in which two configs differ; overrides are of the second.

  Paths are compared as work directories keep them: from the root.
  """
  configs = (open_config(first, {}), open_config(second, overrides))
  here, there = (redacted_config(json.loads(json.dumps(anchored(config)))) for config in configs)
  changes = differing(here, there)
  if as_json:
    return json.dumps({name: [was, now] for name, was, now in changes}, indent=2)
  return "\n".join(map(line, changes)) or "no difference"


def line(change: Change) -> str:
  name, was, now = change
  return f"{name}: {was!r} -> {now!r}"


def anchored(config: dict) -> dict:
  from launch.experiment import anchored

  return anchored(config)


def validate(path: str, overrides: dict[str, str]) -> str:
  """Says that a config is whole.

  Raises:
    UserError: every fault of it, one a line.
  """
  check(open_config(path, overrides), path)
  return f"{path}: whole. What it names on disk was not opened."


def check(config: dict, path: str) -> None:
  """Raises UserError with every fault of a config, one a line."""
  if "objective" in config:
    from launch.experiment import read_experiment

    read_experiment(config, path)
  else:
    from launch.evaluate import read_evaluation

    read_evaluation({name: value for name, value in config.items() if name != "checkpoint"}, path)
