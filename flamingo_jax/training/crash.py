"""Crash bundles: a step that went wrong, with all that is needed to look at it again elsewhere."""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parallel.mesh import batch_sharding, place
from flamingo_jax.training.checkpoints import About, Checkpoints, attempt
from flamingo_jax.training.objectives import Objective, mean
from flamingo_jax.training.prefetch import DeviceBatches
from flamingo_jax.training.step import State
from flamingo_jax.training.workdir import CONFIG

FOLDER, FACTS, BATCHES = "crashes", "crash.json", "batches.safetensors"
SHOWN = 4  # rows at fault that are looked for in a stream; where the weights are at fault, every row is


def find_faults(
  objective: Objective, state: State, held: Parameters, batches: DeviceBatches, weights: dict[str, float], mesh: Mesh
) -> dict[str, dict]:
  """What each stream of a step does on its own.

  Args:
    objective: what is minimized.
    state: before the step.
    held: the frozen parameters.
    batches: of the step, on the devices.
    weights: of the streams' losses.
    mesh: of the job.

  Returns:
    By stream: its `loss`, its `gradient_norm` (weighted, before clipping), and `rows`, up to SHOWN of those that give
    numbers that are not finite when a batch is made of them alone.
  """

  @jax.jit
  def probe(trainable: Parameters, held: Parameters, batch: dict, weight: float) -> tuple[jax.Array, jax.Array]:
    def loss(trainable: Parameters):
      found = objective.loss({**trainable, **held}, batch)
      return mean(found.total, found.weight)

    value, gradients = jax.value_and_grad(loss)(trainable)
    return value, weight * optax.tree.norm(gradients)

  take = jax.jit(
    lambda batch, rows: jax.tree.map(lambda array: jnp.take(array, rows, axis=0), batch),
    out_shardings=batch_sharding(mesh),
  )

  def numbers(name: str, rows: list[int] | None = None) -> list[float]:
    batch = batches[name]
    if rows is not None:  # as many rows as before, so that nothing is compiled again
      batch = take(batch, np.resize(np.asarray(rows, np.int32), len(batch["tokens"])))
    return [float(number) for number in jax.device_get(probe(state.trainable, held, batch, weights[name]))]

  def at_fault(name: str, rows: list[int], most: int) -> list[int]:
    """Halves the rows until those at fault stand alone."""
    if not most or all(map(math.isfinite, numbers(name, rows))):
      return []
    if len(rows) == 1:
      return rows
    found = at_fault(name, rows[: len(rows) // 2], most)
    return found + at_fault(name, rows[len(rows) // 2 :], most - len(found))

  faults = {}
  for name, batch in batches.items():
    loss, norm = numbers(name)
    finite = math.isfinite(loss) and math.isfinite(norm)
    rows = [] if finite else at_fault(name, list(range(len(batch["tokens"]))), SHOWN)
    faults[name] = dict(loss=loss, gradient_norm=norm, rows=rows)
  return faults


def write_bundle(
  workdir: pathlib.Path, config: dict, step: int, state: State, about: About, batches: DeviceBatches, facts: dict
) -> pathlib.Path:
  """Writes a bundle into `crashes` of a work directory: state, batches, config, and what is known.

  Args:
    workdir: of the run.
    config: the whole config.
    step: the one that went wrong.
    state: before it.
    about: what the state was trained with.
    batches: of the step.
    facts: anything that JSON takes.

  Returns:
    The folder; it is there as a whole or not at all.
  """
  whole = multihost_utils.process_allgather(batches, tiled=True) if jax.process_count() > 1 else jax.device_get(batches)
  partial = workdir / FOLDER / f".step-{step}"
  if jax.process_index() == 0 and partial.exists():  # of a start that was killed while it wrote
    shutil.rmtree(partial)
  multihost_utils.sync_global_devices("there is room for the crash bundle")
  checkpoints = Checkpoints(partial)
  checkpoints.save(step, state, about)
  checkpoints.close()
  bundle = workdir / FOLDER / f"step-{step}"
  if jax.process_index() == 0:
    (partial / CONFIG).write_text(json.dumps(config, indent=2))
    (partial / FACTS).write_text(json.dumps(dict(step=step) | facts, indent=2))
    arrays = {f"{name}/{part}": np.ascontiguousarray(a) for name, batch in whole.items() for part, a in batch.items()}
    safetensors.numpy.save_file(arrays, partial / BATCHES)
    while bundle.exists():  # the same step may go wrong again after a restart
      bundle = bundle.with_name(bundle.name + "-again")
    partial.rename(bundle)
  multihost_utils.sync_global_devices("the crash bundle is written")
  return bundle


def report(bundle: pathlib.Path, step: int, skips: int, facts: dict) -> str:
  """What a person is told of a bundle."""
  lines = [
    f"{skips} updates in a row were left out, the last at step {step}. Each stream of that step on its own:",
    *(
      f"  {name}: loss {fault['loss']:g}, gradient norm {fault['gradient_norm']:g}"
      for name, fault in facts["streams"].items()
    ),
    *(
      f"  {name}, row {row['row']}, is not finite by itself: {', '.join(row['records'])}"
      for name, rows in facts["rows"].items()
      for row in rows
    ),
    f"Batch, state and config are in {bundle}. Look at it again: flamingo train --replay={bundle}",
    "Where every row is at fault, the weights are: go back with a smaller learning rate. Else mend the records, or "
    "leave the batches out: flamingo train ... --rewind=STEP --skip-steps=A:B",
  ]
  return "\n".join(lines)


def read_facts(bundle: pathlib.Path) -> dict:
  """Raises UserError when the folder is no bundle."""
  try:
    return json.loads((bundle / FACTS).read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{bundle}: not a crash bundle ({error}). Give a folder of WORKDIR/{FOLDER}.") from error


def read_bundle(
  bundle: pathlib.Path, mesh: Mesh, like: State, expected: About, say: Callable[[str], None]
) -> tuple[State, DeviceBatches]:
  """State and batches of a bundle, laid out on the devices at hand.

  Raises:
    UserError: the frozen parts are not those of the run, or a file is damaged.
  """
  checkpoints = Checkpoints(bundle)
  (step,) = checkpoints.steps()
  about, failure = attempt(lambda: checkpoints.about(step))
  if failure:
    raise UserError(f"{bundle}: its checkpoint cannot be read: {failure}. Copy the bundle again.")
  expected = dataclasses.replace(expected, rewinds=about.rewinds)  # no work directory is at hand that could tell them
  _, state = checkpoints.restore_newest(like, expected, ("data",), say)
  checkpoints.close()
  try:
    arrays = safetensors.numpy.load_file(bundle / BATCHES)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{bundle / BATCHES}: cannot be read ({error}). Copy the bundle again.") from error
  batches: DeviceBatches = {}
  for name, array in sorted(arrays.items()):
    stream, _, part = name.rpartition("/")
    batches.setdefault(stream, {})[part] = place(array, batch_sharding(mesh))
  return state, batches
