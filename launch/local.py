"""`flamingo launch --on=local`: all processes of a run on this machine."""

import os
import pathlib
import socket
import sys

from launch.supervisor import Job, supervise


def launch_local(
  config: str,
  workdir: str,
  overrides: dict[str, str],
  *,
  allow_changed: str,
  processes: int,
  devices: int | None,
  peer_timeout: float,
  restarts: int,
  grace: float,
) -> int:
  """Runs `flamingo train` until it is done, whatever kills it on the way; returns an exit code.

  Args:
    config: a Python file.
    workdir: of the run; the logs go next to it.
    overrides: of fields of the config.
    allow_changed: as for `flamingo train`.
    processes: to start; several meet on a free port of this machine.
    devices: virtual CPU devices of each; None: what is there.
    peer_timeout: seconds after which a process that is not heard of is lost.
    restarts: that may follow each other without a new step.
    grace: seconds between asking a process to end and killing it.

  Raises:
    UserError: the same work directory is launched already.
  """
  train = [sys.executable, "-m", "launch.cli", "train", f"--config={config}", f"--workdir={workdir}"]
  train += [f"--config.{name}={value}" for name, value in overrides.items()]
  train += [f"--allow-changed={allow_changed}"] if allow_changed else []

  def commands() -> list[list[str]]:
    return [train] if processes == 1 else [train + place for place in places(processes, peer_timeout)]

  job = Job(commands, environment(devices), log_folder(workdir), pathlib.Path(workdir) / "metrics.jsonl")
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
  own = os.environ | {"PYTHONUNBUFFERED": "1"}
  if devices is None:
    return own
  flags = f"{own.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  return own | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
