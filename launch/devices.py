"""What a command does before it uses devices: joins the other hosts of its job, and keeps compiled programs."""

import contextlib
import os
import pathlib
import sys

import jax

from flamingo_jax.errors import UserError
from flamingo_jax.training.peers import watched_peers

CACHE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled() -> None:
  """Compiled programs are kept under the user's cache folder, so that a second start is quick.

  JAX's own variable, JAX_COMPILATION_CACHE_DIR, names another folder.
  """
  if CACHE not in os.environ:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "flamingo_jax" / "compiled"))


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None, peer_timeout: float):
  """Makes this process one of a job's, which is watched inside (flamingo_jax/training/peers.py); or a job of one.

  Args:
    coordinator: HOST:PORT of the first process, or "auto" where the cluster tells (TPU pods, Slurm, Open MPI).
    processes: how many there are; told by the cluster with "auto".
    process: which one this is, from 0.
    peer_timeout: seconds after which a process that is not heard of is lost.

  Raises:
    UserError: the three do not fit together.
    PeerLost: the first process does not answer.
  """
  join(coordinator, processes, process, peer_timeout)
  with watched_peers(peer_timeout):
    yield


def join(coordinator: str | None, processes: int | None, process: int | None, peer_timeout: float) -> None:
  given = [value is not None for value in (coordinator, processes, process)]
  if not any(given):
    return
  if coordinator == "auto":
    return initialize(peer_timeout)
  if not all(given):
    raise UserError("--coordinator=HOST:PORT, --processes and --process go together; or --coordinator=auto alone.")
  if not 0 <= process < processes:
    raise UserError(f"--process is {process}; with --processes={processes} it is 0 to {processes - 1}.")
  initialize(peer_timeout, coordinator, processes, process)


def initialize(
  peer_timeout: float, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
  """JAX's own watch aborts without a name, so it waits for longer than ours; 10 seconds is the least it takes."""
  try:
    heartbeat = max(10, int(2 * peer_timeout))
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=heartbeat)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"--coordinator: the processes of the job do not come together: {error}") from error


def leave_job(code: int) -> None:
  """Ends a process that failed, at once where others are in its job: JAX would wait for them, and they for it."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
