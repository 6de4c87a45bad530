"""`flamingo train`: joins config, data and loop."""

import pathlib

import jax

from flamingo_jax.ops.attention import check_name
from flamingo_jax.training.loop import check_fit, train
from launch.config import load_config
from launch.experiment import Experiment, read_experiment


def train_config(path: str, overrides: dict[str, str], workdir: str) -> None:
  """Trains what the file describes.

  Raises:
    UserError: the config, the data, a frozen part or the work directory is not as it should be.
  """
  run(read_experiment(load_config(path, overrides), path), pathlib.Path(workdir))


def run(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Holds the config against the devices, opens everything that it names, then trains."""
  objective = experiment.objective()
  check_name(experiment.model.attention)
  check_fit(objective, experiment.training, experiment.rows, jax.device_count())
  host = jax.process_index()
  feed = experiment.feed(workdir / (f"skipped-{host}.jsonl" if host else "skipped.jsonl"))
  evaluate, frozen = experiment.evaluate(), experiment.frozen()
  train(objective, experiment.training, feed, frozen, evaluate, workdir, experiment.raw)
