"""Zero-shot classification during contrastive training: the settings of a config, and the data that they name."""

import dataclasses

import numpy as np

from data_pipelines.sequences import pair_row
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.contrastive import ZeroShot
from flamingo_jax.evaluation.support import drawn
from flamingo_jax.evaluation.tasks import TASKS, read_split
from flamingo_jax.models.contrastive import ContrastiveConfig
from launch.config import build, join
from launch.few_shot import read_frames


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
  """One benchmark of pictures that have candidates, such as ImageNet or one's own."""

  folder: str  # of the data set, as docs/evaluation.md has it
  task: str = ""  # a name of TASKS; empty: the benchmark's own
  split: str = ""  # what is classified; empty: as in the paper
  queries: int = 0  # so many, drawn from the split, the same each time; 0: all
  prompts: tuple[str, ...] = ("{}",)  # that a class is put in; {} stands for its name


def build_zero_shot(group: object, where: str, faults: list[str]) -> dict[str, ZeroShotConfig]:
  """The settings by name of the benchmark; what is wrong is added to `faults`."""
  if not isinstance(group, dict):
    faults.append(f"{where} is {group!r}; it is a group of benchmarks, each with its fields.")
    return {}
  found = {name: build(ZeroShotConfig, fields, join(where, name), faults) for name, fields in group.items()}
  for name, config in found.items():
    if config is not None:
      faults += check_zero_shot(join(where, name), name, config)
  return found


def check_zero_shot(where: str, name: str, config: ZeroShotConfig) -> list[str]:
  ranked = sorted(known for known, task in TASKS.items() if task.ranked)
  if (task := TASKS.get(config.task or name)) is None or not task.ranked:
    return [f"{where}.task is {config.task or name!r}; it is one that has candidates: {', '.join(ranked)}."]
  faults = []
  if config.split and config.split not in task.splits:
    faults.append(f"{where}.split is {config.split!r}; it is one of {', '.join(task.splits)}, or empty.")
  if config.queries < 0:
    faults.append(f"{where}.queries is {config.queries}; it is not negative.")
  if not config.prompts or not all("{}" in prompt for prompt in config.prompts):
    faults.append(f"{where}.prompts is {config.prompts!r}; it is one or more texts that have {{}} in them.")
  return faults


def read_zero_shot(
  configs: dict[str, ZeroShotConfig], model: ContrastiveConfig, tokenizer: Tokenizer
) -> list[ZeroShot]:
  """Reads the annotations; pictures are read when they are looked at.

  Raises:
    UserError: every data set that is not as it should be.
  """
  read, faults = [], []
  for name, config in configs.items():
    try:
      read.append(read_one(name, config, model, tokenizer))
    except UserError as error:
      faults.append(f"zero_shot.{name}: {error}")
  if faults:
    raise UserError("\n".join(faults))
  return read


def read_one(name: str, config: ZeroShotConfig, model: ContrastiveConfig, tokenizer: Tokenizer) -> ZeroShot:
  task = config.task or name
  split = config.split or TASKS[task].query
  examples = [example for example in read_split(task, config.folder, split).examples if example.label is not None]
  if not examples:
    raise UserError(f"{config.folder}: {split} of {task} says of no example which candidate is right.")
  if config.queries:
    places = drawn([example.id for example in examples], min(config.queries, len(examples)), seed=0)
    examples = [examples[place] for place in sorted(places)]

  def encode(text: str) -> np.ndarray:
    return pair_row(tokenizer.encode(text), tokenizer, model.length).tokens

  size = model.vision.image_size
  return ZeroShot(name, examples, config.prompts, lambda medium: read_frames(medium, size, 1, 1.0), encode)
