"""`flamingo train`: joins config, data and loop."""

import pathlib

from flamingo_jax.ops.attention import check_name
from flamingo_jax.training.loop import train
from launch.config import load_config
from launch.experiment import Experiment, read_experiment


def train_config(path: str, overrides: dict[str, str], workdir: str) -> None:
  """Trains what the file describes.

  Raises:
    UserError: the config, the data, a frozen part or the work directory is not as it should be.
  """
  run(read_experiment(load_config(path, overrides), path), pathlib.Path(workdir))


def run(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Opens everything that the config names, then trains."""
  check_name(experiment.model.attention)
  feed, evaluate, frozen = experiment.feed(), experiment.evaluate(), experiment.frozen()
  train(experiment.objective(), experiment.training, feed, frozen, evaluate, workdir, experiment.raw)
