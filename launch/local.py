"""`flamingo launch --on=local`: all processes of a run on this machine."""

import os
import pathlib
import shlex
import socket
import sys

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import DONE, UserError
from launch.supervisor import Job, supervise
from launch.train_command import Run

FLAMINGO = [sys.executable, "-m", "launch.cli"]


def launch_local(
  run: Run,
  *,
  dry_run: bool = False,
  processes: int = 1,
  devices: int | None = None,
  coordinator: str | None = None,
  restarts: int = 5,
  grace: float = 30.0,
) -> int:
  """Runs `flamingo train` until it is done, whatever kills it on the way; returns an exit code.

  Args:
    run: what is trained; the logs go next to its work directory.
    dry_run: print the commands, and do nothing.
    processes: to start; several meet on a free port of this machine.
    devices: virtual CPU devices of each; None: what is there.
    coordinator: "auto": the process is one of a job that other machines start too, and the cluster tells which.
    restarts: that may follow each other without a new step.
    grace: seconds between asking a process to end and killing it.

  Raises:
    UserError: the same work directory is launched already, or both --processes and --coordinator are given.
  """
  if coordinator and processes > 1:
    raise UserError("--coordinator=auto: this machine has one process of the job; --processes is not for it.")
  train = [*FLAMINGO, *run.train()]

  def commands() -> list[list[str]]:
    if coordinator:
      return [[*train, f"--coordinator={coordinator}", f"--peer-timeout={run.peer_timeout}"]]
    return [train] if processes == 1 else [train + place for place in places(processes, run.peer_timeout)]

  if dry_run:
    variables = [f"{name}={value}" for name, value in virtual(devices).items()]
    for command in commands():
      print(redacted(shlex.join(["env", *variables, *command] if variables else command)))
    return DONE
  logs = log_folder(run.workdir)
  if coordinator:  # the work directory is shared, and each machine has a launcher of its own
    logs /= socket.gethostname()
  job = Job(commands, environment(devices), logs, pathlib.Path(run.workdir) / "metrics.jsonl")
  return supervise(job, restarts, grace)


def log_folder(workdir: str) -> pathlib.Path:
  """Beside the work directory, which `flamingo train` itself makes once it has found everything right."""
  path = pathlib.Path(workdir).absolute()
  return path.with_name(path.name + ".logs")


def places(processes: int, peer_timeout: float) -> list[list[str]]:
  """The arguments that make each process one of a job."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  together = [f"--coordinator={address}", f"--processes={processes}", f"--peer-timeout={peer_timeout}"]
  return [[*together, f"--process={number}"] for number in range(processes)]


def environment(devices: int | None) -> dict[str, str]:
  """Of every process: ours, and so many virtual devices, where they are asked for."""
  return os.environ | {"PYTHONUNBUFFERED": "1"} | virtual(devices)


def virtual(devices: int | None) -> dict[str, str]:
  if devices is None:
    return {}
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  return {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
