"""`flamingo report` of several work directories: gathers what their common page shows."""

import json
import os
import pathlib
from collections.abc import Sequence

from flamingo_jax.credentials import redacted, redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.workdir import read_history
from flamingo_jax.training.writers import flat
from launch.generate import open_run
from launch.report.runs import ShownRun, render
from launch.report.templates import write_page
from launch.reporting import facts, generations, shown_or_why


def write_runs_report(workdirs: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> pathlib.Path:
  """Writes one page of several runs and returns its path.

  Raises:
    UserError: a directory is given twice, or holds no run; or the disk refuses.
  """
  paths = [pathlib.Path(workdir) for workdir in workdirs]
  twice = {str(path) for path in paths if sum(path.resolve() == other.resolve() for other in paths) > 1}
  if twice:
    raise UserError(f"{', '.join(sorted(twice))}: given more than once. Give each work directory once.")
  names = distinct_names(paths)
  return write_page(pathlib.Path(out), render([shown_run(path, name) for path, name in zip(paths, names, strict=True)]))


def shown_run(workdir: pathlib.Path, name: str) -> ShownRun:
  """What is shown of a run. Its curves need its record alone; samples need its checkpoints, frozen parts and data."""
  experiment, metrics = open_run(workdir), read_metrics(workdir)
  history = read_history(workdir)
  samples, note = shown_or_why(lambda: generations(experiment, workdir, experiment.tokenizer()))
  config = redacted_config(json.loads(json.dumps(experiment.raw)))
  return ShownRun(
    name=redacted(name),
    workdir=redacted(str(workdir)),
    streams=tuple(experiment.stream_configs),
    metrics=metrics,
    facts=redacted_config(facts(experiment, metrics, history)),
    config=dict(flat(config)),
    samples=samples,
    note=note,
  )


def distinct_names(paths: Sequence[pathlib.Path]) -> list[str]:
  """As few of the last parts of the paths as tell them apart."""
  parts = [path.absolute().parts for path in paths]
  count = next(n for n in range(1, max(map(len, parts)) + 1) if len({each[-n:] for each in parts}) == len(parts))
  return [os.path.join(*each[-count:]) for each in parts]
