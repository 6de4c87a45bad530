"""`flamingo launch --on=tpu-vm`: a run on all workers of a TPU, each with a launcher of its own (docs/launch.md)."""

import pathlib
import shlex

from launch.submitting import submit
from launch.train_command import Run

FLAMINGO = ".venv/bin/flamingo"
LOOK = 30.0  # seconds after which what it says at its start is shown


def launch_tpu_vm(
  run: Run,
  *,
  name: str,
  zone: str,
  dry_run: bool = False,
  project: str | None = None,
  folder: str = "flamingo_jax",
  restarts: int = 5,
  grace: float = 30.0,
) -> int:
  """Starts the launcher on every worker, and leaves it there; returns an exit code.

  Args:
    run: what is trained; its paths are those of the workers, and the work directory is shared by all of them.
    name: of the TPU.
    zone: of the TPU.
    dry_run: print the command, and do nothing.
    project: of the TPU; gcloud's own unless given.
    folder: of this project on each worker, from the home directory, with `.venv` in it.
    restarts: that may follow each other without a new step.
    grace: seconds between asking a process to end and killing it.

  Raises:
    UserError: there is no gcloud, or it fails.
  """
  command = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}", "--worker=all"]
  command += [f"--project={project}"] if project else []
  return submit([*command, f"--command={on_worker(run, folder, restarts, grace)}"], dry_run=dry_run)


def on_worker(run: Run, folder: str, restarts: int, grace: float) -> str:
  """What the shell of a worker runs. The launcher outlives the connection; the log of its start tells what it lacks."""
  launch = [FLAMINGO, "launch", "--on=local", "--coordinator=auto", *run.arguments()]
  launch += [f"--peer-timeout={run.peer_timeout}", f"--restarts={restarts}", f"--grace={grace}"]
  log = f"{pathlib.PurePosixPath(run.workdir).name}.start.log"
  begin = shlex.join(["nohup", *launch])
  lacks = f": {folder}/{FLAMINGO} is missing. Put the project there and install it, or give another --folder."
  check = f'test -x {FLAMINGO} || {{ echo "$(hostname)"{shlex.quote(lacks)} >&2; false; }}'
  return (
    f"cd {shlex.quote(folder)} && {{ {check}; }} "
    f"&& {{ {begin} </dev/null >{shlex.quote(log)} 2>&1 & "
    f"sleep {LOOK}; cat {shlex.quote(log)}; kill -0 $! 2>/dev/null || wait $!; }}"
  )
