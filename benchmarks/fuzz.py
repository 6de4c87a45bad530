"""Coverage-guided fuzzing of what reads files and configs that others made.

    python benchmarks/fuzz.py TARGET [--inputs 100000] [--seconds 300] [--corpus DIR] [--findings DIR]

Prints one JSON line. Atheris (libFuzzer) changes the seeds of `fuzz_targets.py` and whatever reached new code since.
Only what a target documents may come out of it; each other exception is a finding, kept as a file of the exact bytes,
and so is an input that takes longer than a second of CPU time or after which the process has outgrown 4 GB. An input
that takes a minute, or uses up the memory, ends the run, as `ended` then says. `edges` are pairs of lines of our Python
code that were passed one after the other, `features` tell also how often. `share_of_empty` is inputs a second against
a target that does nothing, in the same run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

from fuzz_targets import TARGETS

from launch.numbers import positive

SLOW = 1.0  # seconds of CPU time that an input may take
HANG = 60  # seconds after which libFuzzer ends the run
MOST_MEMORY = 4096  # MB of the process, libraries and all
LONGEST = 8192  # bytes of an input
PACKAGES = ("flamingo_jax", "data_pipelines", "launch", "gguf")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("target", choices=TARGETS)
  parser.add_argument("--inputs", type=positive, default=100_000, help="to run at most (%(default)s)")
  parser.add_argument("--seconds", type=positive, default=300, help="to run at most (%(default)s)")
  parser.add_argument("--corpus", type=pathlib.Path, help="a folder of inputs to begin with, and to grow")
  parser.add_argument("--findings", type=pathlib.Path, default=pathlib.Path("findings"), help="(%(default)s)")
  parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)  # the process that libFuzzer runs in
  options = parser.parse_args()
  if options.within:
    run_within(options)
  else:
    print(json.dumps(measure(options)))


def measure(options: argparse.Namespace) -> dict:
  """Runs the target and the empty one, each in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    corpus = options.corpus or pathlib.Path(folder) / "corpus"
    found = run_apart(options.target, options.inputs, options.seconds, corpus, options.findings)
    empty = run_apart("empty", 200_000, 60, pathlib.Path(folder) / "empty", pathlib.Path(folder))
  names = sorted(path.name for path in options.findings.glob(f"{options.target}-*"))
  return dict(target=options.target, **found, findings=names, share_of_empty=found["per_second"] / empty["per_second"])


def run_apart(target: str, inputs: int, seconds: int, corpus: pathlib.Path, findings: pathlib.Path) -> dict:
  """Inputs run, seconds, coverage and how it ended, as libFuzzer says."""
  for folder in (corpus, findings):
    folder.mkdir(parents=True, exist_ok=True)
  limits = [f"--inputs={inputs}", f"--seconds={seconds}", f"--corpus={corpus}", f"--findings={findings}"]
  command = [sys.executable, __file__, target, "--within", *limits]
  before = cpu_of_children()
  done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
  counts = {name: int(n) for name, n in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
  coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr) or [(0, 0)]
  began = re.search(r"BEGAN ([\d.]+)", done.stderr)
  if not (counts and began):
    raise SystemExit(f"{target}: libFuzzer did not get to its end:\n{done.stderr[-3000:]}")
  ran, cpu_seconds = counts["number_of_executed_units"], cpu_of_children() - before - float(began[1])
  return dict(
    inputs=ran,
    cpu_seconds=round(cpu_seconds, 1),
    per_second=round(ran / cpu_seconds, 1),
    edges=int(coverage[-1][0]),
    features=int(coverage[-1][1]),
    peak_mb=counts["peak_rss_mb"],
    ended="whole" if done.returncode == 0 else ending(done.stderr),
  )


def cpu_of_children() -> float:
  """Seconds of all processes that were started from here and have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def ending(said: str) -> str:
  """Why libFuzzer stopped early."""
  found = re.search(r"ERROR: libFuzzer: (.*)", said)
  return found[1] if found else said[-300:]


def run_within(options: argparse.Namespace) -> None:
  """Never returns: libFuzzer ends the process."""
  import atheris

  with atheris.instrument_imports(include=list(PACKAGES)):
    folder = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    target = TARGETS[options.target](folder)
  for number, seed in enumerate(target.seeds):
    (options.corpus / f"seed-{number:03d}").write_bytes(seed)
  guarded = Guard(target.run, target.allowed, options.findings / f"{options.target}-")
  arguments = [
    f"-runs={options.inputs}",
    f"-max_total_time={options.seconds}",
    f"-max_len={LONGEST}",
    f"-timeout={HANG}",
    f"-rss_limit_mb={MOST_MEMORY}",
    f"-artifact_prefix={options.findings}/{options.target}-",
    "-print_final_stats=1",
    "-seed=1",
    str(options.corpus),
  ]
  print(f"BEGAN {time.process_time()}", file=sys.stderr)
  atheris.Setup([sys.argv[0], *arguments], guarded)
  atheris.Fuzz()


@dataclasses.dataclass
class Guard:
  """Runs a target, and keeps an input for each way in which it fails; the first of a way is kept."""

  run: Callable[[bytes], None]
  allowed: tuple[type[Exception], ...]
  prefix: pathlib.Path

  def __call__(self, data: bytes) -> None:
    began = time.process_time()
    try:
      self.run(data)
    except self.allowed:
      pass
    except BaseException as error:  # also what Rust's panics are
      self.keep(place_of(error), data, "".join(traceback.format_exception(error)))
    took = time.process_time() - began
    if took > SLOW:
      self.keep("slow", data, f"{took:.1f} s")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MEMORY * 1024:
      self.keep("memory", data, "")

  def keep(self, way: str, data: bytes, said: str) -> None:
    path = pathlib.Path(f"{self.prefix}{way}")
    if not path.exists():
      path.write_bytes(data)
      print(f"FINDING {path.name} {said}", file=sys.stderr)


def place_of(error: BaseException) -> str:
  """The kind of an exception and the last line of our code that it passed."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [frame for frame in frames if any(f"/{package}/" in frame.filename for package in PACKAGES[:3])] or frames
  return f"{type(error).__name__}-{pathlib.Path(ours[-1].filename).stem}-{ours[-1].lineno}"


if __name__ == "__main__":
  main()
