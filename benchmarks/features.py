"""What features computed before are worth: seconds of the quickstart's training step, with pixels and with features.

    python benchmarks/features.py [--steps 5] [--dtype float32] [--folder DIR]

Prints one JSON line. Computes the features of all three streams first, then takes steps of both kinds by turns in one
run. Both read their input as training does, and nothing in it is drawn at random but the order; `seconds_a_step` has
reading and device time, `read_seconds` the part in which the step waited for its batches. Needs what `make train`
leaves in data/ and runs/.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax

from configs import vision
from flamingo_jax.parallel.mesh import global_batch, make_mesh
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.placing import place_frozen
from flamingo_jax.training.step import initial_state, make_train_step
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.features import write_features
from launch.numbers import positive

CONFIG = "configs/quickstart.py"
PLAIN = {"streams.pages.colour": "0.0", "streams.captions.colour": "0.0"}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--steps", type=positive, default=5, help="measured of each kind, after one to compile (%(default)s)"
  )
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of features (%(default)s)")
  parser.add_argument("--folder", help="where 500 MB are free (default: the system's temporary folder)")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    print(json.dumps(measure(pathlib.Path(folder), options.steps, options.dtype)))


def measure(folder: pathlib.Path, steps: int, dtype: str) -> dict[str, float]:
  pixels = read_experiment(load_config(CONFIG, PLAIN), CONFIG)
  began = time.perf_counter()
  for name in pixels.stream_configs:
    write_features(CONFIG, PLAIN, name, str(folder / name), dtype)
  written = time.perf_counter() - began
  kinds = dict(pixels=pixels, features=on_features(pixels, folder))
  total, read = alternate({kind: stepper(experiment) for kind, experiment in kinds.items()}, steps)
  result = dict(steps=steps, dtype=dtype, device=jax.devices()[0].device_kind, seconds_to_compute=round(written, 1))
  for kind in kinds:
    result |= {
      f"seconds_a_step_{kind}": round(total[kind] / steps, 3),
      f"read_seconds_{kind}": round(read[kind] / steps, 3),
    }
  return result | dict(
    speedup=round(total["pixels"] / total["features"], 2),
    mib=round(sum(path.stat().st_size for path in folder.rglob("*.array_record")) / 2**20),
  )


def on_features(experiment: Experiment, folder: pathlib.Path) -> Experiment:
  """The same run on the features of its own encoder."""
  tower = experiment.model.vision
  config = experiment.raw
  streams = {
    name: fields | dict(source=str(folder / name), medium="features") for name, fields in config["streams"].items()
  }
  model = config["model"] | dict(vision=vision.features(width=tower.width, positions=tower.positions))
  return read_experiment(config | dict(streams=streams, model=model), CONFIG)


def stepper(experiment: Experiment) -> Callable[[], float]:
  """Takes one training step at each call; returns the seconds that it waited for its batches."""
  training, objective = experiment.training, experiment.objective()
  mesh = make_mesh(training.mesh)
  rate = learning_rate(training.optimizer, training.total_steps)
  optimizer = make_optimizer(training.optimizer, rate)
  feed = experiment.feed()
  batches = feed.batches_from(0)
  step = jax.jit(make_train_step(objective, optimizer, rate, feed.weights), donate_argnums=0)
  with mesh:
    held = place_frozen(objective, experiment.frozen(), mesh, training)
    state = initial_state(objective, optimizer, mesh, training.trainable, training.seed)

  def advance() -> float:
    nonlocal state
    began = time.perf_counter()
    host_batches, _ = next(batches)
    waited = time.perf_counter() - began
    with mesh:
      state, metrics = step(state, held, {name: global_batch(batch, mesh) for name, batch in host_batches.items()})
    jax.block_until_ready((state, metrics))
    return waited

  return advance


def alternate(steppers: dict[str, Callable[[], float]], steps: int) -> tuple[dict[str, float], dict[str, float]]:
  """Seconds of all steps of each kind, and those spent waiting for batches, without the first step of each."""
  total, read = dict.fromkeys(steppers, 0.0), dict.fromkeys(steppers, 0.0)
  for turn in range(steps + 1):
    for kind, advance in steppers.items():
      began = time.perf_counter()
      waited = advance()
      if turn:
        total[kind] += time.perf_counter() - began
        read[kind] += waited
  return total, read


if __name__ == "__main__":
  main()
