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

from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.planning.step import lower_step
from launch.config import load_config
from launch.experiment import read_experiment
from launch.numbers import positive
from launch.plan_step import streams


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/quickstart.py", help="a Flamingo's (%(default)s)")
  parser.add_argument("--layers", type=positive, nargs="+", default=[12, 24, 48, 96], help="of the language model")
  parser.add_argument("--every", type=positive, default=2, help="a gated layer before every n-th of them (%(default)s)")
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
    ratio=round(total[max(layers)] / total[min(layers)], 2),
  )


def compile_at(config: str, layers: int, every: int) -> tuple[float, float]:
  """Seconds to trace and lower the step, and to compile it."""
  overrides = {"model.language.layers": str(layers), "model.cross_attention.every": str(every)}
  experiment = read_experiment(load_config(config, overrides), config)
  mesh, objective = make_mesh(experiment.training.mesh), experiment.objective()
  began = time.perf_counter()
  lowered = lower_step(objective, experiment.training, streams(experiment), mesh)
  between = time.perf_counter()
  lowered.compile()
  return between - began, time.perf_counter() - between


if __name__ == "__main__":
  main()
