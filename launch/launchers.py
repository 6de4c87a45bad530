"""`flamingo launch`: the options of each launcher, and the way to it (docs/launch.md)."""

import argparse

from flamingo_jax.errors import UserError
from launch.numbers import natural, positive, seconds
from launch.train_command import Run, check_no_credentials

TAKES = {  # launcher -> its own options; all others are refused there
  "local": ("processes", "devices", "coordinator", "restarts", "grace"),
  "slurm": (
    "name", "nodes", "gpus_per_node", "task_per_gpu", "partition", "account", "time", "sbatch", "restarts", "grace",
    "wait",
  ),
  "gke": (
    "name", "image", "volume", "secret", "namespace", "topology", "slices", "nodes", "gpus_per_node", "accelerator",
    "restarts", "grace", "wait",
  ),
  "tpu-vm": ("name", "zone", "project", "folder", "restarts", "grace"),
}  # fmt: skip
NEEDS = {"local": (), "slurm": (), "gke": ("image", "volume"), "tpu-vm": ("name", "zone")}
EVERY = sorted({name for names in TAKES.values() for name in names})


def add_options(launch: argparse.ArgumentParser) -> None:
  """None stands for what was not given: each launcher has its own defaults."""
  launch.add_argument("--on", required=True, choices=tuple(TAKES), help="where the processes run")
  launch.add_argument("--dry-run", action="store_true", help="print what would be run or submitted, and do nothing")
  launch.add_argument("--restarts", type=natural, help="in a row without a new step (5); gke: in all (20)")
  launch.add_argument("--grace", type=seconds, help="seconds from asking to end to killing (30; slurm and gke: 120)")
  launch.add_argument("--name", help="of the job (of the work directory); tpu-vm: of the TPU")

  local = launch.add_argument_group("local")
  local.add_argument("--processes", type=positive, help="of the job (1)")
  local.add_argument("--devices", type=positive, help="virtual CPU devices of each process (those of the machine)")
  local.add_argument("--coordinator", choices=("auto",), help="one process of a job that other machines start, too")

  waiting = launch.add_argument_group("slurm and gke")
  waiting.add_argument("--wait", action="store_const", const=True, help="until the job is over; Ctrl-C cancels it")

  cluster = launch.add_argument_group("slurm, and GPUs on gke")
  cluster.add_argument("--nodes", type=positive, help="machines (1)")
  cluster.add_argument("--gpus-per-node", type=positive, metavar="N", help="of each machine")

  slurm = launch.add_argument_group("slurm")
  slurm.add_argument("--task-per-gpu", action="store_const", const=True, help="a process each GPU, not each node")
  slurm.add_argument("--partition", help="to run in")
  slurm.add_argument("--account", help="that pays")
  slurm.add_argument("--time", help="limit of one start, such as 24:00:00; the job is queued again in time")
  slurm.add_argument("--sbatch", action="append", metavar="OPTION", help="another, such as --mem=0; may be repeated")

  gke = launch.add_argument_group("gke")
  gke.add_argument("--image", help="that has `flamingo` (launch/container/Dockerfile)")
  gke.add_argument("--volume", action="append", metavar="CLAIM:PATH", help="a claim and where it is seen; repeatable")
  gke.add_argument("--secret", help="whose entries become environment variables, such as WANDB_API_KEY")
  gke.add_argument("--namespace", help="of the cluster (that of kubectl)")
  gke.add_argument("--topology", help="a slice of TPUs, such as v5e:8x8")
  gke.add_argument("--slices", type=positive, help="such slices (1)")
  gke.add_argument("--accelerator", help="GPUs by the name of their nodes, such as nvidia-h100-80gb")

  tpu = launch.add_argument_group("tpu-vm")
  tpu.add_argument("--zone", help="of the TPU")
  tpu.add_argument("--project", help="of the TPU (that of gcloud)")
  tpu.add_argument("--folder", help="of this project on each worker (flamingo_jax, in the home directory)")


def launch_run(options: argparse.Namespace) -> int:
  """Hands a run to the launcher that was asked for; returns an exit code.

  Raises:
    UserError: options that do not go together, a credential among them, or what the launcher itself finds wrong.
  """
  given = checked(options)
  run = Run(options.config, options.workdir, options.overrides, options.allow_changed, options.peer_timeout)
  check_no_credentials(run)
  return launcher(options.on)(run, dry_run=options.dry_run, **given)


def checked(options: argparse.Namespace) -> dict:
  """The options that were given. Raises UserError for all that the launcher does not take, and all that it lacks."""
  on, given = options.on, {name: getattr(options, name) for name in EVERY if getattr(options, name) is not None}
  strange = [name for name in given if name not in TAKES[on]]
  faults = [f"{flag(name)} is not of --on={on}, but of {where(name)}." for name in strange]
  faults += [f"{flag(name)} is needed with --on={on}." for name in NEEDS[on] if name not in given]
  if faults:
    raise UserError("\n".join(faults))
  return given


def where(name: str) -> str:
  return ", ".join(f"--on={on}" for on, names in TAKES.items() if name in names)


def flag(name: str) -> str:
  return "--" + name.replace("_", "-")


def launcher(on: str):
  if on == "local":
    from launch.local import launch_local

    return launch_local
  if on == "slurm":
    from launch.slurm import launch_slurm

    return launch_slurm
  if on == "gke":
    from launch.gke import launch_gke

    return launch_gke
  from launch.tpu_vm import launch_tpu_vm

  return launch_tpu_vm
