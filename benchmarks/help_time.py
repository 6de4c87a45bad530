"""How long `flamingo --help` takes, in seconds of CPU and by the clock, beside an interpreter that does nothing.

    python benchmarks/help_time.py [--rounds 10]

Prints one JSON line of medians. Each round starts both programs once, one after the other, so that what else the
machine does falls on both.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from launch.numbers import positive

PROGRAMS = {"help": ("-m", "launch.cli", "--help"), "python": ("-c", "pass")}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=positive, default=10, help="(%(default)s)")
  rounds = parser.parse_args().rounds
  taken = [{name: seconds(arguments) for name, arguments in PROGRAMS.items()} for _ in range(rounds)]
  figures = {
    f"{name}_{kind}_s": round(statistics.median(each[name][kind] for each in taken), 4)
    for name in PROGRAMS
    for kind in ("cpu", "wall")
  }
  print(json.dumps(dict(rounds=rounds, **figures)))


def seconds(arguments: tuple[str, ...]) -> dict[str, float]:
  """What one start of Python takes until it has ended."""
  before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
  subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
  wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
  return dict(cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall=wall)


if __name__ == "__main__":
  main()
