"""How long a run takes to its first step: `flamingo train` with nothing compiled before, and started once more.

    python benchmarks/start_up.py [--config configs/tiny.py] [--config.field=value ...]

Prints one JSON line. Each start is a process of its own with a new work directory; both share a cache folder that is
empty at first. `cold_s` and `cached_s` are seconds from the start of the process to the line of the first step in
metrics.jsonl; the evaluation before the first step is in them. `..._without_evaluation_s` leaves it out, and
`..._first_step_s` is the first step alone, as metrics.jsonl has it. `ratio` is cold over cached, and
`kept_programs` what the first start left in the cache, `added_programs` what the second had to compile anew. Needs
the data that the config names (`make test` leaves what configs/tiny.py reads in data/).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from train_arguments import parse_with_overrides

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 600.0  # seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/tiny.py", help="(%(default)s)")
  options, fields = parse_with_overrides(parser)
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(measure(pathlib.Path(folder), options.config, fields)))


def measure(folder: pathlib.Path, config: str, fields: list[str]) -> dict[str, object]:
  cold = start(folder, "cold", config, fields)
  kept = programs(folder)
  cached = start(folder, "cached", config, fields)
  return dict(
    config=config,
    **{f"cold_{name}": round(seconds, 2) for name, seconds in cold.items()},
    **{f"cached_{name}": round(seconds, 2) for name, seconds in cached.items()},
    kept_programs=kept,
    added_programs=programs(folder) - kept,
    ratio=round(cold["s"] / cached["s"], 2),
    ratio_without_evaluation=round(cold["without_evaluation_s"] / cached["without_evaluation_s"], 2),
  )


def programs(folder: pathlib.Path) -> int:
  return len(list((folder / "cache").rglob("*-cache")))


def start(folder: pathlib.Path, name: str, config: str, fields: list[str]) -> dict[str, float]:
  """Runs until the first step is recorded; returns seconds."""
  workdir = folder / name
  environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
  environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
  command = [sys.executable, "-m", "launch.cli", "train", f"--config={config}", f"--workdir={workdir}", *fields]
  began = time.perf_counter()
  process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  try:
    process.stdout.readline()  # what is about to run, said before the first evaluation
    ready = time.perf_counter() - began
    first = first_step(process, workdir / "metrics.jsonl")
    total = time.perf_counter() - began
  finally:
    process.kill()
    process.wait()
  evaluating = total - first["seconds"] - ready
  return dict(s=total, without_evaluation_s=total - evaluating, first_step_s=first["seconds"])


def first_step(process: subprocess.Popen, path: pathlib.Path) -> dict[str, float]:
  deadline = time.perf_counter() + LIMIT
  while not (path.exists() and path.read_text().endswith("\n")):
    if process.poll() is not None or time.perf_counter() > deadline:
      raise SystemExit("start_up: the run ended before its first step; run the same command to see why.")
    time.sleep(0.01)
  return json.loads(path.read_text().splitlines()[0])


if __name__ == "__main__":
  main()
