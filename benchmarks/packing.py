"""What packing caption pairs into rows is worth: useful tokens a second of the quickstart's training step.

    python benchmarks/packing.py [--length 128] [--media 7] [--rows 4] [--steps 5]

Prints one JSON line. Padded rows hold one pair, packed ones as many as fit; both have the same length, number of rows,
model and real captions, and their steps alternate in one run. `gain_over_config` is against padded rows as short as
configs/quickstart.py has them, with as many of them as come nearest to equally many positions; that cuts a fifth of the
captions. A step's seconds are those of the device: batches lie ready. Needs what `make train` leaves in data/ and
runs/.
"""

import argparse
import dataclasses
import itertools
import json
import time

import jax
import numpy as np

from flamingo_jax.parallel.mesh import global_batch, make_mesh
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.placing import place_frozen
from flamingo_jax.training.step import initial_state, make_train_step
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.numbers import positive

CONFIG = "configs/quickstart.py"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--length", type=positive, default=128, help="tokens of a row (%(default)s)")
  parser.add_argument("--media", type=positive, default=7, help="pairs of a packed row, at most (%(default)s)")
  parser.add_argument("--rows", type=positive, default=4, help="of a batch (%(default)s)")
  parser.add_argument(
    "--steps", type=positive, default=5, help="measured of each kind, after one to compile (%(default)s)"
  )
  options = parser.parse_args()
  print(json.dumps(measure(options.length, options.media, options.rows, options.steps)))


def measure(length: int, media: int, rows: int, steps: int) -> dict[str, float]:
  experiment = read_experiment(load_config(CONFIG, {}), CONFIG)
  plain = experiment.stream_configs["captions"]
  kinds = dict(
    padded=dataclasses.replace(plain, length=length, batch_size=rows),
    packed=dataclasses.replace(plain, length=length, batch_size=rows, media=media, pack=True),
    config=dataclasses.replace(plain, batch_size=max(1, round(rows * length / plain.length))),
  )
  batches = {kind: some_batches(experiment, stream, steps + 1) for kind, stream in kinds.items()}
  seconds = alternating_steps(experiment, batches)
  useful = {kind: sum(tokens_of(batch) for batch in some[1:]) for kind, some in batches.items()}
  rate = {kind: useful[kind] / seconds[kind] for kind in kinds}
  result = dict(length=length, media=media, rows=rows, steps=steps, config_length=plain.length)
  for kind, some in batches.items():
    positions = sum(batch["tokens"].size for batch in some[1:])
    result |= {
      f"useful_share_{kind}": round(useful[kind] / positions, 3),
      f"seconds_a_step_{kind}": round(seconds[kind] / steps, 3),
      f"useful_tokens_a_second_{kind}": round(rate[kind], 1),
    }
  return result | dict(
    device=jax.devices()[0].device_kind,
    gain=round(rate["packed"] / rate["padded"], 2),
    gain_over_config=round(rate["packed"] / rate["config"], 2),
  )


def some_batches(experiment: Experiment, stream, count: int) -> list[dict[str, np.ndarray]]:
  """The first training batches of a stream."""
  only = dataclasses.replace(experiment, stream_configs={"captions": stream})
  batches = only.streams("train", training=True)["captions"].batches(0)
  return [
    {name: array for name, array in batch.items() if name != "faults"} for batch in itertools.islice(batches, count)
  ]


def tokens_of(batch: dict[str, np.ndarray]) -> int:
  return int((batch["segments"] > 0).sum())


def alternating_steps(experiment: Experiment, batches: dict[str, list]) -> dict[str, float]:
  """Seconds of all training steps of each kind but the first, which is compiled; the kinds take turns."""
  training, objective = experiment.training, experiment.objective()
  mesh = make_mesh(training.mesh)
  rate = learning_rate(training.optimizer, training.total_steps)
  optimizer = make_optimizer(training.optimizer, rate)
  step = jax.jit(make_train_step(objective, optimizer, rate, {"captions": 1.0}), donate_argnums=0)
  seconds = dict.fromkeys(batches, 0.0)
  with mesh:
    held = place_frozen(objective, experiment.frozen(), mesh, training)
    state = initial_state(objective, optimizer, mesh, training.trainable, training.seed)
    for turn in range(len(next(iter(batches.values())))):
      for kind, some in batches.items():
        placed = {"captions": global_batch(some[turn], mesh)}
        began = time.perf_counter()
        state, metrics = step(state, held, placed)
        jax.block_until_ready((state, metrics))
        seconds[kind] += (time.perf_counter() - began) if turn else 0.0
  return seconds


if __name__ == "__main__":
  main()
