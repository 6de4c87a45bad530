"""Ends a process in which nothing goes on any more, and leaves word of where it stood."""

import faulthandler
import os
import pathlib
import sys
import threading
import time

from flamingo_jax.errors import HUNG

LAST_RESORT = 10.0  # seconds after the limit; by then a thread of Python's own has done its work, or never will


class Watchdog:
  """Waits for `step_ended`; when none comes for `seconds`, writes the stacks of all threads and ends the process.

  Every process of a job has its own, and what hangs one hangs all, so there is a file from each. Nothing is watched
  before the first step has ended: compiling takes as long as it takes.
  """

  def __init__(self, folder: pathlib.Path, seconds: float, process: int):
    self.folder, self.seconds, self.process = folder, seconds, process
    self.deadline: float | None = None
    self.step, self.closed = 0, threading.Event()

  def __enter__(self) -> "Watchdog":
    if self.seconds:
      threading.Thread(target=self.watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self.closed.set()
    faulthandler.cancel_dump_traceback_later()

  def step_ended(self, step: int) -> None:
    if not self.seconds:
      return
    self.step, self.deadline = step, time.monotonic() + self.seconds
    # Where C code holds the interpreter's lock no thread of Python's runs, and this one ends the process, with code 1.
    faulthandler.dump_traceback_later(self.seconds + LAST_RESORT, exit=True)

  def watch(self) -> None:
    while not self.closed.wait(min(self.seconds / 10, 1.0)):
      if self.deadline is not None and time.monotonic() > self.deadline:
        self.end()

  def end(self) -> None:
    """Writes what there is to know and ends the process; what it was doing cannot be interrupted otherwise."""
    path = self.folder / f"step-{self.step + 1}-process-{self.process}.txt"
    print(
      f"No step has ended for {self.seconds:g} s (guard.hang_seconds) since step {self.step}. The stacks of all "
      f"threads are in {path}. This process ends with code {HUNG}; start it again to go on from the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with path.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    finally:
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
      os._exit(HUNG)
