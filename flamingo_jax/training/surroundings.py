"""What a run goes on with beside its config: the program, packages, devices; to tell runs apart."""

import datetime
import importlib.metadata
import pathlib
import shlex
import subprocess
import sys

import jax
from jax.sharding import Mesh

from flamingo_jax.credentials import redacted

PACKAGES = ("flamingo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def surroundings(mesh: Mesh) -> dict[str, object]:
  """As JSON has it; credentials in the command are hidden."""
  return dict(
    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    mesh=dict(mesh.shape),
    devices=f"{mesh.size} x {jax.devices()[0].device_kind}",
    processes=jax.process_count(),
    packages={name: importlib.metadata.version(name) for name in PACKAGES},
    commit=source_commit(),
    command=redacted(shlex.join(sys.argv)),
  )


def source_commit() -> str:
  """The git commit of this package's source, with a plus where files differ from it; empty where git has none of it."""
  here = pathlib.Path(__file__)
  try:
    if git(here, "ls-files", "--error-unmatch", here.name) is None:
      return ""
    return (git(here, "rev-parse", "HEAD") or "") + "+" * bool(git(here, "status", "--porcelain", "-uno"))
  except FileNotFoundError:  # no git on this machine
    return ""


def git(here: pathlib.Path, *arguments: str) -> str | None:
  """What git prints in the folder of a file; None where it fails."""
  done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=False)
  return done.stdout.strip() if done.returncode == 0 else None
