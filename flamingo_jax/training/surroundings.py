"""What a run goes on with beside its config: the program, packages, devices; to tell runs apart."""

import datetime
import importlib.metadata
import pathlib
import shlex
import shutil
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
  name = pathlib.Path(__file__).name
  if git("ls-files", "--error-unmatch", name) is None:
    return ""
  return (git("rev-parse", "HEAD") or "") + "+" * bool(git("status", "--porcelain", "-uno"))


def git(*arguments: str) -> str | None:
  """What git prints in the folder of this file; None where there is no git, or it fails."""
  program = shutil.which("git")
  if program is None:
    return None
  here = pathlib.Path(__file__).parent
  done = subprocess.run([program, *arguments], cwd=here, capture_output=True, text=True, check=False)
  return done.stdout.strip() if done.returncode == 0 else None
