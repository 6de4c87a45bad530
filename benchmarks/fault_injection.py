"""A run that is killed again and again, beside one that is left alone: do they end the same, and what did it cost?

    python benchmarks/fault_injection.py [--kills 50] [--steps 300] [--processes 1] [--seed 0]
                                        [--config.field=value ...]

Trains configs/tiny.py under `flamingo launch` twice. The second time a process is killed by SIGKILL at random moments:
while it starts, while it restores a checkpoint, between saves, and while it saves, as often in each. Prints a line for
every kill and one JSON line: `metrics_equal` (metrics.jsonl, timing fields aside, has every step once and the same
numbers), `parameters_equal` (bit by bit), the kills by phase, and the seconds of both runs; `lost_seconds` is their
difference, pauses of the supervisor included, and `ratio` killed over straight. Where the straight run had to compile,
its seconds say so: a second run of this benchmark finds the programs kept. Needs the data of configs/tiny.py (`make
test` leaves it in data/). Fifty kills take half an hour on two cores.

A process restores from when it first holds a file of a checkpoint open until it says what it is about to train, and
saves as long as Orbax's temporary folder is there.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import logging
from train_arguments import parse_with_overrides

from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.metrics import METRICS, read_metrics, untimed
from launch.local import log_folder
from launch.supervisor import last_step

ROOT = pathlib.Path(__file__).parent.parent
PHASES = ("start-up", "restore", "step", "save")
STARTED = re.compile(r"start (\d+): process (.+)")


@dataclasses.dataclass(frozen=True)
class Kill:
  phase: str
  process: int
  step: int
  seconds: float  # since the start of the process


def main() -> None:
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=50, help="(%(default)s)")
  parser.add_argument("--steps", type=int, default=300, help="of the run (%(default)s)")
  parser.add_argument("--processes", type=int, default=1, help="of the job (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="of when to kill (%(default)s)")
  options, fields = parse_with_overrides(parser)
  command = ["--config=configs/tiny.py", f"--processes={options.processes}", f"--restarts={options.kills}", *fields]
  command.append(f"--config.total_steps={options.steps}")
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(measure(pathlib.Path(folder), command, options.kills, options.steps, options.seed)))


def measure(folder: pathlib.Path, command: list[str], count: int, steps: int, seed: int) -> dict[str, object]:
  straight, killed = folder / "straight", folder / "killed"
  straight_seconds, _ = launch(straight, command, lambda run: [])
  killed_seconds, kills = launch(killed, command, lambda run: kill_often(run, count, steps, random.Random(seed)))
  (expected, _, _), (found, last, _) = load_trainable(straight), load_trainable(killed)
  lines = read_metrics(killed)
  return dict(
    kills=len(kills),
    kills_by_phase={phase: sum(kill.phase == phase for kill in kills) for phase in PHASES},
    steps=steps,
    metrics_equal=without_timing(lines) == without_timing(read_metrics(straight)),
    each_step_once=[line["step"] for line in lines] == list(range(1, steps + 1)),
    parameters_equal=last == steps
    and found.keys() == expected.keys()
    and all(np.array_equal(found[path], expected[path]) for path in expected),
    straight_seconds=round(straight_seconds, 1),
    killed_seconds=round(killed_seconds, 1),
    lost_seconds=round(killed_seconds - straight_seconds, 1),
    ratio=round(killed_seconds / straight_seconds, 2),
  )


def without_timing(lines: list[dict]) -> list[dict]:
  return [untimed(line) for line in lines]


def launch(workdir: pathlib.Path, command: list[str], disturb: Callable[["Watched"], list[Kill]]):
  """(seconds of a whole run, what `disturb` did to it)."""
  began, said = time.monotonic(), workdir.with_suffix(".txt")
  with said.open("w") as file:
    process = subprocess.Popen(
      [sys.executable, "-m", "launch.cli", "launch", "--on=local", f"--workdir={workdir}", *command],
      cwd=ROOT,
      stdout=file,
      stderr=subprocess.STDOUT,
    )
  try:
    kills = disturb(Watched(workdir, process))
    process.wait()
  finally:
    process.terminate()
    process.wait()
  if process.returncode != 0:
    raise SystemExit(f"{said.read_text()}\nfault_injection: the run ended with code {process.returncode}.")
  return time.monotonic() - began, kills


class Watched:
  """What a run is doing, as its files tell."""

  def __init__(self, workdir: pathlib.Path, supervisor: subprocess.Popen):
    self.workdir, self.supervisor, self.logs = workdir, supervisor, log_folder(str(workdir))
    self.start, self.processes, self.began, self.restoring = 0, [], 0.0, False

  @property
  def over(self) -> bool:
    return self.supervisor.poll() is not None

  def next_start(self) -> None:
    """Waits until all processes have been started anew."""
    path = self.logs / "launch.log"
    while not self.over:
      found = STARTED.findall(path.read_text()) if path.exists() else []
      if found and int(found[-1][0]) > self.start:
        self.start, self.restoring, self.began = int(found[-1][0]), False, time.monotonic()
        self.processes = [int(part.split(" is ")[1]) for part in found[-1][1].split(", ")]
        return
      time.sleep(0.01)

  def step(self) -> int:
    return last_step(self.workdir / METRICS)

  def phase(self) -> str:
    if self.saving():
      return "save"
    if self.training():
      return "step"
    self.restoring = self.restoring or any(map(self.reads_checkpoint, self.processes))
    return "restore" if self.restoring else "start-up"

  def saving(self) -> bool:
    """Whether a save of this start is under way; what a killed one left has an older name."""
    folder = self.workdir / "checkpoints"
    began = time.time() - (time.monotonic() - self.began)
    with contextlib.suppress(FileNotFoundError):  # it is renamed under our eyes
      return any(entry.stat().st_mtime > began for entry in folder.iterdir() if "orbax-checkpoint-tmp" in entry.name)
    return False

  def training(self) -> bool:
    """Whether the first process has said, in this start, what it is about to do."""
    return "M trained, " in (self.logs / "process-0.log").read_text().rpartition("===")[2]

  def reads_checkpoint(self, process: int) -> bool:
    with contextlib.suppress(FileNotFoundError, PermissionError):  # files close, processes end
      for link in pathlib.Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
          if os.readlink(link).startswith(f"{self.workdir}/checkpoints/"):
            return True
    return False


def kill_often(run: Watched, count: int, steps: int, chance: random.Random) -> list[Kill]:
  """Kills one process of the run so many times, in phases that take turns at random."""
  phases = [PHASES[number % len(PHASES)] for number in range(count)]
  chance.shuffle(phases)
  kills, spans = [], dict(zip(PHASES, (5.0, 0.3, 0.5, 0.1), strict=True))  # of the phases, seconds; learnt as we go
  while phases and not run.over:
    run.next_start()
    # No checkpoint, no restore: another phase comes first.
    held = run.step() > 0 and any(entry.name.isdigit() for entry in (run.workdir / "checkpoints").iterdir())
    phase = next((phase for phase in phases if held or phase != "restore"), phases[0])
    share = (steps - run.step()) / (1 + sum(other in ("step", "save") for other in phases))
    if not wait_for(run, phase, run.step() + chance.uniform(0, share), spans):
      continue
    time.sleep(chance.uniform(0, spans[phase]))
    victim = chance.randrange(len(run.processes))
    kill = Kill(run.phase(), victim, run.step(), time.monotonic() - run.began)
    if kill.phase != phase and phase not in ("start-up", "step"):
      spans[phase] /= 2  # too late; the kill counts for what it met
    with contextlib.suppress(ProcessLookupError):
      os.kill(run.processes[victim], signal.SIGKILL)
      kills.append(kill)
      phases.remove(kill.phase if kill.phase in phases else max(phases, key=phases.count))
      print(
        f"kill {len(kills):3}: process {victim} in {kill.phase:8} at step {kill.step:4}, {kill.seconds:5.1f} s old",
        flush=True,
      )
  return kills


def wait_for(run: Watched, phase: str, step: float, spans: dict[str, float]) -> bool:
  """Waits for the first moment of a phase, in a run that has come to a step if it is one of training."""
  while not run.over:
    now = run.phase()
    if now == phase and (phase in ("start-up", "restore") or run.step() >= step):
      return True
    if now in ("step", "save") and phase in ("start-up", "restore"):
      return True  # missed: it was over before it was seen
    time.sleep(0.003)
  return False


if __name__ == "__main__":
  main()
