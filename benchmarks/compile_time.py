"""Whether a deeper model takes longer to compile: seconds to trace, lower and compile the whole training step.

    python benchmarks/compile_time.py [--config configs/quickstart.py] [--layers 12 24 48 96] [--every 2]

Prints one JSON line. The step is the one that `flamingo train` runs for the config: the gradients of all its streams
and the update, on all devices; only the number of language layers changes, and which of them have a gated layer before
them. It is compiled for arrays of the right shapes, none of which exist. `ratio` is the deepest over the shallowest.
The first one is compiled once more before, uncounted: it pays for what all of them share.
"""

import argparse
import json
import time

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.step import State, make_train_step, optimizer_shardings, slot_shardings, split_shapes
from launch.config import load_config
from launch.experiment import Experiment, read_experiment


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/quickstart.py", help="a Flamingo's (%(default)s)")
  parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48, 96], help="of the language model")
  parser.add_argument("--every", type=int, default=2, help="a gated layer before every n-th of them (%(default)s)")
  options = parser.parse_args()
  print(json.dumps(measure(options.config, options.layers, options.every)))


def measure(config: str, layers: list[int], every: int) -> dict[str, object]:
  jax.config.update("jax_enable_compilation_cache", False)
  compile_at(config, layers[0], every)
  found = {count: compile_at(config, count, every) for count in layers}
  total = {count: sum(parts) for count, parts in found.items()}
  return dict(
    config=config,
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    every=every,
    lower_s={count: round(lowering, 2) for count, (lowering, _) in found.items()},
    compile_s={count: round(compiling, 2) for count, (_, compiling) in found.items()},
    total_s={count: round(seconds, 2) for count, seconds in total.items()},
    ratio=round(total[layers[-1]] / total[layers[0]], 2),
  )


def compile_at(config: str, layers: int, every: int) -> tuple[float, float]:
  """Seconds to trace and lower the step, and to compile it."""
  overrides = {"model.language.layers": str(layers), "model.cross_attention.every": str(every)}
  experiment = read_experiment(load_config(config, overrides), config)
  mesh = make_mesh(experiment.training.mesh)
  with jax.set_mesh(mesh):
    step, arguments = train_step(experiment, mesh)
    began = time.perf_counter()
    lowered = step.lower(*arguments)
    between = time.perf_counter()
    lowered.compile()
  return between - began, time.perf_counter() - between


def train_step(experiment: Experiment, mesh: Mesh):
  """The step, and the shapes of what it takes."""
  objective, training = experiment.objective(), experiment.training
  rate = learning_rate(training.optimizer, training.total_steps)
  optimizer = make_optimizer(training.optimizer, rate)
  trained, frozen, shardings = split_shapes(objective, mesh, training.trainable, training.sharding)
  placement = slot_shardings(objective, mesh, training.trainable, training.sharding)
  slots = jax.tree.map(
    lambda shape, sharding: abstract(shape.shape, shape.dtype, sharding),
    jax.eval_shape(optimizer.init, trained),
    optimizer_shardings(optimizer, trained, placement, mesh),
  )
  state = State(
    abstract((), np.int32, replicated(mesh)),
    {path: abstract(shape.shape, shape.dtype, shardings[path]) for path, shape in trained.items()},
    slots,
  )
  held = {path: abstract(shape.shape, training.frozen_dtype, shardings[path]) for path, shape in frozen.items()}
  weights = {name: stream.weight for name, stream in experiment.stream_configs.items()}
  step = jax.jit(
    make_train_step(objective, optimizer, rate, weights, placement),
    donate_argnums=0,
    out_shardings=(jax.tree.map(lambda array: array.sharding, state), None),
  )
  return step, (state, held, batch_shapes(experiment, mesh))


def abstract(shape: tuple[int, ...], dtype, sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def batch_shapes(experiment: Experiment, mesh: Mesh) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """The batches of a step (docs/batch.md)."""
  vision = experiment.model.vision
  has_tower = not isinstance(vision, FeaturesConfig)
  frame = (vision.image_size, vision.image_size, 3) if has_tower else (vision.positions, vision.width)
  shapes = {}
  for name, stream in experiment.stream_configs.items():
    text, media = (stream.batch_size, stream.length), (stream.batch_size, stream.media, stream.frames)
    described = dict(
      tokens=(text, np.int32),
      segments=(text, np.int32),
      loss_weights=(text, np.float32),
      media=((*media, *frame), np.uint8 if has_tower else np.float32),
      media_mask=(media, np.bool_),
      media_index=(text, np.int32),
    )
    shapes[name] = {part: abstract(*shape, batch_sharding(mesh)) for part, shape in described.items()}
  return shapes


if __name__ == "__main__":
  main()
