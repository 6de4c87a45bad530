"""`flamingo config`: the whole of a config, what differs between two, and every fault of one."""

import json
import pathlib

import yaml

from flamingo_jax.credentials import redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.training.workdir import CONFIG, Change, differing, read_config
from launch.config import load_config, overridden


def open_config(path: str, overrides: dict[str, str]) -> dict:
  """What a config file returns, or what a work directory or a folder of an evaluation was made with.

  Raises:
    UserError: it is none of these, or an override names no field.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    return load_config(path, overrides)
  if not (folder / CONFIG).is_file():
    raise UserError(f"{folder / CONFIG}: missing. Give a config file, or the work directory of a run.")
  return overridden(read_config(folder / CONFIG), overrides, path)


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
  config = open_config(path, overrides)
  if "objective" in config:
    from launch.experiment import read_experiment

    read_experiment(config, path)
  else:
    from launch.evaluate import read_evaluation

    read_evaluation({name: value for name, value in config.items() if name != "checkpoint"}, path)
  return f"{path}: whole. What it names on disk was not opened."
