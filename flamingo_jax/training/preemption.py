"""The notice that a machine is about to be taken away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopNotice:
  """Whether the job was asked to stop: by SIGTERM, to any of its processes.

  In a job of several processes JAX listens, and lets all of them stop after the same step.
  """

  def __init__(self):
    self.asked = False
    # Only the main thread may listen; whoever trains in another one hears of signals by its own means.
    self.listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

  def __enter__(self) -> "StopNotice":
    if self.listens:
      self.before = signal.signal(signal.SIGTERM, self.hear)
    return self

  def __exit__(self, *_) -> None:
    if self.listens:
      signal.signal(signal.SIGTERM, self.before)

  def hear(self, *_) -> None:
    """Asked a second time, the process ends at once."""
    self.asked = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; asked after every step, by every process."""
    return self.asked or multihost_utils.reached_preemption_sync_point(step)
