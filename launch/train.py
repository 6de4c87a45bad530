"""`flamingo train`: joins config, data and loop."""

import pathlib
import re

import jax

from flamingo_jax.errors import UserError
from flamingo_jax.ops.attention import check_name
from flamingo_jax.training.checkpoints import About, check_same
from flamingo_jax.training.config import AS_BEFORE, Resume
from flamingo_jax.training.loop import train
from flamingo_jax.training.placing import check_fit
from flamingo_jax.training.rewind import Rewind
from flamingo_jax.training.writers import check_writers
from launch.config import load_config
from launch.experiment import Experiment, read_experiment


def train_config(path: str, overrides: dict[str, str], workdir: str, resume: Resume = AS_BEFORE) -> None:
  """Trains what the file describes.

  Raises:
    UserError: the config, the data, a frozen part or the work directory is not as it should be.
    Preempted: the run was asked to stop, and is saved.
  """
  run(read_experiment(load_config(path, overrides), path), pathlib.Path(workdir), resume)


def run(experiment: Experiment, workdir: pathlib.Path, resume: Resume = AS_BEFORE, as_in: About | None = None) -> None:
  """Holds the config against the devices, opens everything that it names, then trains.

  Args:
    experiment: what to train.
    workdir: where.
    resume: how to go on with what is there.
    as_in: of another run, whose frozen parts and records these must be.
  """
  objective = experiment.objective()
  check_name(experiment.model.attention)
  check_writers(experiment.training.writers)
  check_fit(objective, experiment.training, experiment.rows, jax.device_count())
  host = jax.process_index()
  feed = experiment.feed(workdir / (f"skipped-{host}.jsonl" if host else "skipped.jsonl"))
  evaluate, frozen = experiment.evaluate(), experiment.frozen()
  if as_in:
    check_same(workdir, as_in, About(frozen.hashes, feed.hashes), ())
  train(objective, experiment.training, feed, frozen, evaluate, workdir, experiment.raw, resume)


def read_resume(changed: str, step: int | None, span: str | None, began: float) -> Resume:
  """What `--allow-changed=NAMES --rewind=STEP --skip-steps=A:B` ask for, of a process that began then.

  Raises:
    UserError: a step without a span, the other way round, or no span.
  """
  names = tuple(name for name in changed.split(",") if name)
  if step is None and span is None:
    return Resume(names, began=began)
  match = re.fullmatch(r"(\d+):(\d+)", span or "")
  if step is None or not match:
    raise UserError(
      f"--rewind={step} --skip-steps={span}: they go together, as in --rewind=1000 --skip-steps=1041:1050, "
      "which goes back to the checkpoint of step 1000 and leaves the batches 1041 to 1049 out."
    )
  return Resume(names, Rewind(step, int(match[1]), int(match[2])), began)
