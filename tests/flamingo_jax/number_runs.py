"""Runs that learn one number: all that can happen to a run, in milliseconds a step."""

import dataclasses
import os
import pathlib
import signal
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flamingo_jax.training.checkpoints import CheckpointConfig
from flamingo_jax.training.config import AS_BEFORE, Feed, Frozen, Resume, TrainingConfig
from flamingo_jax.training.loop import train
from flamingo_jax.training.objectives import Loss, Objective
from flamingo_jax.training.optimizer import OptimizerConfig

ROOT = pathlib.Path(__file__).parent.parent.parent


def one_number(total_steps: int = 7, **changes):
  """Learns one number, and takes the frozen one for granted."""

  def initialize(key):
    box = nn.with_logical_partitioning(nn.initializers.ones, ())
    return dict(guess=box(key, ()), offset=box(key, ()))

  def loss(parameters, batch):
    error = jnp.square(parameters["guess"] + parameters["offset"] - batch["target"])
    return Loss(error.sum(), jnp.float32(error.size))

  config = TrainingConfig(
    total_steps=total_steps,
    trainable=("^guess$",),
    evaluate_every=3,
    optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=1),
    checkpoint=CheckpointConfig(every=2, keep=1),
  )
  return Objective("number", initialize, loss), dataclasses.replace(config, **changes)


class Recorder:
  """A feed and an evaluation that remember what was asked of them.

  Attributes:
    fail_at: the batch that cannot be read.
    poison: batches whose second row has a target that is not finite.
    stop_at: the batch at whose reading this process is asked to stop.
    hang_at: the batch that never comes.
    slow_at: the batch that takes three seconds: far longer than a step, even one that something else holds up.
  """

  def __init__(self, fail_at=None, poison=(), stop_at=None, hang_at=None, slow_at=None):
    self.started_at, self.evaluated = [], []
    self.fail_at, self.poison, self.stop_at, self.hang_at = fail_at, poison, stop_at, hang_at
    self.slow_at = slow_at
    self.feed = Feed(
      self.batches_from,
      weights={"numbers": 1.0},
      rows={"numbers": 2},
      hashes={"numbers": "d" * 64},
      records=lambda number: {"numbers": [[f"shard:{number}0"], [f"shard:{number}1"]]},
    )

  def batches_from(self, step: int):
    self.started_at.append(step)
    for number in range(step + 1, 100):
      if number == self.fail_at:
        raise OSError("the disk is gone")
      if number == self.stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
      if number == self.hang_at:
        time.sleep(10_000)
      if number == self.slow_at:
        time.sleep(3)
      target = np.full((2, 1), number, np.float32)
      target[1] = np.inf if number in self.poison else number
      batch = dict(target=target, segments=np.asarray([[1, 1, 0], [1, 0, 0]]), tokens=np.zeros((2, 3), np.int32))
      yield {"numbers": batch}, {"skipped/numbers/truncated": number} if number % 2 else {}

  def evaluate(self, parameters, mesh, baseline: bool):
    assert parameters.keys() == {"guess", "offset"}
    self.evaluated.append((float(parameters["guess"]), baseline))
    return {"heldout/loss/numbers": float(parameters["guess"])}


def run(workdir: pathlib.Path, recorder: Recorder, resume: Resume = AS_BEFORE, record: dict | None = None, **changes):
  objective, config = one_number(**changes)
  frozen = Frozen({"offset": np.float32(0.5)}, {"offset": "hash"})
  return train(objective, config, recorder.feed, frozen, recorder.evaluate, workdir, record or {"seed": 0}, resume)
