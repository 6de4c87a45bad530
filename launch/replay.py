"""`flamingo train --replay=BUNDLE`: a step that went wrong, once more."""

import json
import pathlib

import jax
from rich.console import Console
from rich.table import Table

from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.training import crash
from flamingo_jax.training.checkpoints import About
from flamingo_jax.training.optimizer import learning_rate, make_optimizer
from flamingo_jax.training.placing import check_fit, place_frozen
from flamingo_jax.training.step import initial_state
from flamingo_jax.training.workdir import CONFIG
from launch.config import overridden
from launch.experiment import read_experiment


def replay(folder: str, overrides: dict[str, str]) -> None:
  """Runs every stream of a crash bundle's step on its own and prints what it finds beside what the run found.

  Args:
    folder: of the bundle.
    overrides: of its config, for other devices (`mesh.fsdp`), say.

  Raises:
    UserError: it is no bundle, or does not fit the devices or the frozen parts at hand.
  """
  bundle = pathlib.Path(folder)
  facts = crash.read_facts(bundle)
  config = overridden(json.loads((bundle / CONFIG).read_text()), overrides, str(bundle / CONFIG))
  experiment = read_experiment(config, str(bundle / CONFIG))
  objective, training = experiment.objective(), experiment.training
  check_fit(objective, training, experiment.rows, jax.device_count())
  mesh = make_mesh(training.mesh)
  optimizer = make_optimizer(training.optimizer, learning_rate(training.optimizer, training.total_steps))
  with jax.set_mesh(mesh):
    frozen = experiment.frozen()
    held = place_frozen(objective, frozen, mesh, training)
    like = initial_state(objective, optimizer, mesh, training.trainable, training.seed, training.sharding)
    state, batches = crash.read_bundle(bundle, mesh, like, About(frozen.hashes), print)
    weights = {name: config.weight for name, config in experiment.stream_configs.items()}
    found = crash.find_faults(objective, state, held, batches, weights, mesh)
  Console().print(table(facts["step"], facts["streams"], found))


def table(step: int, then: dict[str, dict], now: dict[str, dict]) -> Table:
  shown = Table("stream", "loss then", "now", "gradient norm then", "now", "rows then", "now", title=f"step {step}")
  for name in now:
    pairs = [(then[name][field], now[name][field]) for field in ("loss", "gradient_norm")]
    rows = [", ".join(map(str, faults[name]["rows"])) or "-" for faults in (then, now)]
    shown.add_row(name, *(f"{number:.6g}" for pair in pairs for number in pair), *rows)
  return shown
