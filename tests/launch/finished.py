"""A finished run of a tiny Flamingo on parts that were imported, without any training."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import optax

from data_pipelines.schema import Example
from data_pipelines.shards import write_shards
from flamingo_jax.interop.model_folder import describe
from flamingo_jax.models.flamingo import initialize
from flamingo_jax.models.parameters import flat
from flamingo_jax.training.checkpoints import About, Checkpoints
from flamingo_jax.training.step import State, is_trainable
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.exporting import write_safetensors
from launch.importing import import_checkpoint

STEP = 7


def random_parameters(experiment: Experiment) -> dict[str, np.ndarray]:
  """For the whole model, as it takes them; the gates are open."""
  random = np.random.default_rng(0)
  shapes = flat(jax.eval_shape(lambda key: initialize(experiment.model, key), jax.random.key(0)))
  return {path: np.asarray(0.3 * random.normal(size=s.shape), np.float32) for path, s in sorted(shapes.items())}


def write_run(workdir: pathlib.Path, config: dict) -> pathlib.Path:
  """The work directory of a run of a config after STEP updates, its trained parameters random."""
  experiment = read_experiment(config, "test")
  everything = random_parameters(experiment)
  trained = {p: array for p, array in everything.items() if is_trainable(p, experiment.training.trainable)}
  checkpoints = Checkpoints(workdir)
  trained = jax.device_put(trained)
  state = State(jax.numpy.int32(STEP), trained, optax.sgd(1.0).init(trained))
  checkpoints.save(STEP, state, About(experiment.frozen().hashes))
  checkpoints.close()
  (workdir / "config.json").write_text(json.dumps(experiment.raw))
  return workdir


def write_work(folder: pathlib.Path, write_gguf) -> pathlib.Path:
  """A run on an imported language model, a vision encoder's folder and one stream, in `folder/run`."""
  write_gguf(folder / "model.gguf")
  import_checkpoint("gguf", str(folder / "model.gguf"), str(folder / "language"))
  examples = [Example(("", f"caption {i}"), (b"picture",), "collection/one", ("CC0-1.0", "MIT")[i % 2]) for i in (0, 1)]
  write_shards(folder / "captions" / "train", examples, {})
  config = load_config("configs/tiny.py", {})
  described = json.loads((folder / "language" / "config.json").read_text())
  config["model"]["language"] = described["config"] | {"extra_tokens": 2}
  config["frozen"] = {part: str(folder / part) for part in ("vision", "language")}
  config["tokenizer"]["path"] = str(folder / "language")
  config["streams"] = {"captions": config["streams"]["captions"] | {"source": str(folder / "captions")}}
  experiment = read_experiment(config, "test")
  tower = {p.removeprefix("vision/"): a for p, a in random_parameters(experiment).items() if p.startswith("vision/")}
  (folder / "vision").mkdir()
  write_safetensors(folder / "vision" / "model.safetensors", tower)
  described = dict(kind="vision", config=dataclasses.asdict(experiment.model.vision), origin="drawn for a test")
  describe(folder / "vision", described)
  write_run(folder / "run", config)
  return folder
