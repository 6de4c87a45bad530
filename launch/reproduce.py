"""`flamingo train --reproduce=RUN`: what a run was made with, trained anew; and what is not as it was then."""

import json
import pathlib
import sys

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.training.checkpoints import load_about
from flamingo_jax.training.config import Resume
from flamingo_jax.training.surroundings import surroundings
from flamingo_jax.training.workdir import CONFIG, differing, read_config, read_history
from launch.config import overridden
from launch.experiment import read_experiment
from launch.train import run

MATTERS = ("packages", "commit", "devices", "mesh", "processes")  # under which the same config gives the same numbers


def reproduce(source: str, overrides: dict[str, str], workdir: str, began: float) -> None:
  """Trains with the config of a work directory in another one.

  What differs from then is printed first: the program, packages, devices, and fields of the config. Frozen parts and
  records must be the same, by their hashes.

  Args:
    source: the work directory of a run that has a checkpoint.
    overrides: of its config.
    workdir: a new folder, or one where this was begun before.
    began: when the process did.

  Raises:
    UserError: `source` is no such directory, is `workdir` or was rewound, or frozen parts or records are not those of
      then.
  """
  there, path = pathlib.Path(source), pathlib.Path(source) / CONFIG
  if not path.is_file():
    raise UserError(f"{path}: missing. Give the work directory of a `flamingo train` run.")
  if there.resolve() == pathlib.Path(workdir).resolve():
    raise UserError(f"--workdir is {workdir}, the run itself. Choose another, so that the two can be compared.")
  about = load_about(there)
  if about.rewinds:
    raise UserError(f"{there}: was rewound {len(about.rewinds)} times; one run from the start cannot be the same.")
  made_with = read_config(path)
  experiment = read_experiment(overridden(json.loads(json.dumps(made_with)), overrides, str(path)), str(path))
  starts = [event for event in read_history(there) if event["event"] == "start"]
  now = surroundings(make_mesh(experiment.training.mesh))
  for name, was, found in [
    *differing(made_with, json.loads(json.dumps(experiment.raw))),
    *differing(*({name: each.get(name) for name in MATTERS} for each in (starts[-1] if starts else {}, now))),
  ]:
    print(f"not as in {source}: {name}: {was!r} then, {found!r} now", file=sys.stderr)
  run(experiment, pathlib.Path(workdir), Resume(began=began), as_in=about)
