"""What a foreign file says of a model, held against what can be, before anything is made of that size."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator

from flamingo_jax.errors import UserError

LARGEST_SIZE = 2**31 - 1  # of a width, a vocabulary, a picture
MOST_LAYERS = 10_000
AT_LEAST_ONE = {  # fields that are a size of what there is; others may be 0, which then has a meaning of its own
  *("width", "feed_forward_width", "hidden_width", "embedding_width", "joint_width", "group_width"),
  *("heads", "key_value_heads", "latents", "vocabulary", "length", "image_size", "patch_size"),
}
Config = typing.TypeVar("Config")


@contextlib.contextmanager
def reading(where: object) -> Iterator[None]:
  """Turns what comes of a description that is not as its format has it into a UserError.

  Args:
    where: the file, for messages.
  """
  try:
    yield
  except KeyError as error:
    raise UserError(f"{where}: the field {error} is missing.") from error
  except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
    raise UserError(f"{where}: describes no model that can be read ({error}). Get the file again.") from error


def checked(config: Config, where: object) -> Config:
  """The same dataclass. Raises UserError when a field is of another type than it should be, or absurd."""
  faults = list(size_faults(config)) or list(head_faults(config))
  if faults:
    raise UserError("\n".join(f"{where}: gives a model whose {fault}" for fault in faults))
  return config


def size_faults(config: object, prefix: str = "") -> Iterator[str]:
  """One line a field of a dataclass, or of those within it, that is not of its type, too small or too large."""
  types = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    name, value = f"{prefix}{field.name}", getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from size_faults(value, f"{name}.")
    elif types[field.name] is int:
      most = MOST_LAYERS if field.name == "layers" else LARGEST_SIZE
      least = int(field.name in AT_LEAST_ONE)
      if type(value) is not int or not least <= value <= most:
        yield f"{name} is {value!r}; it is a whole number from {least} to {most}."
    elif types[field.name] is float:
      if type(value) not in (int, float) or not math.isfinite(value):
        yield f"{name} is {value!r}; it is a number."
    elif types[field.name] in (bool, str) and type(value) is not types[field.name]:
      yield f"{name} is {value!r}; it is of type {types[field.name].__name__}."
    elif isinstance(value, tuple) and not all(type(each) in (int, float) and math.isfinite(each) for each in value):
      yield f"{name} is {value!r}; it is a tuple of numbers."


def head_faults(config: object, prefix: str = "") -> Iterator[str]:
  """One line a dataclass, or one within it, of sizes without faults, whose heads do not divide as they have to."""
  for field in dataclasses.fields(config):
    if dataclasses.is_dataclass(value := getattr(config, field.name)):
      yield from head_faults(value, f"{prefix}{field.name}.")
  width, heads, groups = (getattr(config, name, None) for name in ("width", "heads", "key_value_heads"))
  if width and heads and not getattr(config, "head_width", 0) and width % heads:
    yield f"{prefix}heads is {heads}, which does not divide {prefix}width, {width}."
  if heads and groups and heads % groups:
    yield f"{prefix}key_value_heads is {groups}, which does not divide {prefix}heads, {heads}."
