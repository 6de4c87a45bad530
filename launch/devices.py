"""What a command does before it uses devices: joins the other hosts of its job, and keeps compiled programs."""

import os
import pathlib

import jax

from flamingo_jax.errors import UserError

CACHE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled() -> None:
  """Compiled programs are kept under the user's cache folder, so that a second start is quick.

  JAX's own variable, JAX_COMPILATION_CACHE_DIR, names another folder.
  """
  if CACHE not in os.environ:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "flamingo_jax" / "compiled"))


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Makes this process one of a job's; nothing to do for a job of one.

  Args:
    coordinator: HOST:PORT of the first process, or "auto" where the cluster tells (TPU pods, Slurm, Open MPI).
    processes: how many there are; told by the cluster with "auto".
    process: which one this is, from 0.

  Raises:
    UserError: the three do not fit together, or the others do not answer.
  """
  given = [value is not None for value in (coordinator, processes, process)]
  if not any(given):
    return
  if coordinator == "auto":
    return initialize()
  if not all(given):
    raise UserError("--coordinator=HOST:PORT, --processes and --process go together; or --coordinator=auto alone.")
  if not 0 <= process < processes:
    raise UserError(f"--process is {process}; with --processes={processes} it is 0 to {processes - 1}.")
  initialize(coordinator, processes, process)


def initialize(*where) -> None:
  try:
    jax.distributed.initialize(*where)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"--coordinator: the processes of the job do not come together: {error}") from error
