"""What a foreign file says of a model, held against what can be, before anything is made of that size."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator

from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.vit import VitConfig

LARGEST_SIZE = 2**31 - 1  # of a width, a vocabulary, a picture
MOST_LAYERS = 10_000
AT_LEAST_ONE = {  # fields that are a size of what there is; others may be 0, which then has a meaning of its own
  *("width", "feed_forward_width", "hidden_width", "embedding_width", "joint_width", "group_width"),
  *("heads", "key_value_heads", "latents", "vocabulary", "length", "image_size", "patch_size"),
}
ABOVE_ZERO = {"feed_forward_multiplier", "norm_epsilon", "rope_base"}
STAGES = {"depths": MOST_LAYERS, "widths": LARGEST_SIZE}  # fields with a size for each stage, and the most each can be
COLOURS = {"pixel_mean", "pixel_deviation"}
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
  """The same dataclass. Raises UserError when a field is of another type than it should be, or absurd, or misfits."""
  if faults := model_faults(config):
    raise UserError("\n".join(f"{where}: gives a model whose {fault}" for fault in faults))
  return config


def model_faults(config: object, prefix: str = "") -> list[str]:
  """What is wrong with a model's fields, each alone or, where that is in order, beside others; one line a fault."""
  return list(size_faults(config, prefix)) or list(misfits(config, prefix))


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
      above = field.name in ABOVE_ZERO
      if type(value) not in (int, float) or not math.isfinite(value) or (above and value <= 0):
        yield f"{name} is {value!r}; it is a number{' above 0' if above else ''}."
    elif types[field.name] in (bool, str) and type(value) is not types[field.name]:
      yield f"{name} is {value!r}; it is of type {types[field.name].__name__}."
    elif field.name in STAGES:
      most = STAGES[field.name]
      if not value or any(type(each) is not int or not 1 <= each <= most for each in value):
        yield f"{name} is {value!r}; it is a whole number from 1 to {most} for each stage."
    elif field.name in COLOURS:
      whole = len(value) == 3 and all(type(each) in (int, float) and math.isfinite(each) for each in value)
      if not whole or (field.name == "pixel_deviation" and min(value) <= 0):
        yield f"{name} is {value!r}; it is a number for each of 3 colours, a deviation above 0."


def misfits(config: object, prefix: str) -> Iterator[str]:
  """One line for fields of a dataclass, or of one within it, that do not go together; each alone is in order."""
  for field in dataclasses.fields(config):
    if dataclasses.is_dataclass(value := getattr(config, field.name)):
      yield from misfits(value, f"{prefix}{field.name}.")
  yield from head_misfits(config, prefix)
  if isinstance(config, NfnetConfig):
    yield from stage_misfits(config, prefix)
  if isinstance(config, VitConfig):
    yield from patch_misfits(config, prefix)


def stage_misfits(config: NfnetConfig, prefix: str) -> Iterator[str]:
  """The first of what its stages cannot be made of."""
  depths, widths, group_width = config.depths, config.widths, config.group_width
  if len(depths) != len(widths):
    yield f"{prefix}depths is {depths}; it has a number for each stage, as {prefix}widths has, {widths}."
  elif widths[0] % 16:  # its first convolution has a sixteenth of it
    yield f"{prefix}widths is {widths}; the first is a multiple of 16, for the stem."
  elif any(width % (2 * group_width) for width in widths):
    yield f"{prefix}group_width is {group_width}; it divides half of each of {prefix}widths, {widths}."


def patch_misfits(config: VitConfig, prefix: str) -> Iterator[str]:
  """A picture without a patch, and a token that is kept where there is none."""
  if config.image_size < config.patch_size:
    yield f"{prefix}image_size is {config.image_size}; it is at least {prefix}patch_size, {config.patch_size}."
  if config.keep_class_token and not config.class_token:
    yield f"{prefix}keep_class_token is True; it goes with {prefix}class_token."


def head_misfits(config: object, prefix: str) -> Iterator[str]:
  """Heads that do not divide as they have to."""
  width, heads, groups = (getattr(config, name, None) for name in ("width", "heads", "key_value_heads"))
  if width and heads and not getattr(config, "head_width", 0) and width % heads:
    yield f"{prefix}heads is {heads}, which does not divide {prefix}width, {width}."
  if heads and groups and heads % groups:
    yield f"{prefix}key_value_heads is {groups}, which does not divide {prefix}heads, {heads}."
