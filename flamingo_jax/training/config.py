"""What a run is given: settings, data, parameters, and how to take up what is there."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from flamingo_jax.parallel.mesh import MeshConfig, ShardingConfig
from flamingo_jax.training.checkpoints import CheckpointConfig
from flamingo_jax.training.guards import GuardConfig
from flamingo_jax.training.optimizer import OptimizerConfig
from flamingo_jax.training.prefetch import HostBatches
from flamingo_jax.training.rewind import Rewind

MIXTURES = ("accumulate", "round_robin")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """How a run goes, whatever it trains."""

  total_steps: int = 500_000
  seed: int = 0
  mixture: str = "accumulate"  # of the streams, in each update; or "round_robin": one after the other
  trainable: tuple[str, ...] = ("^resampler/", "/gated_cross_attention/", "extra_")  # patterns of parameter paths
  frozen_dtype: str = "bfloat16"  # of frozen parameters, stored on the devices and applied
  evaluate_every: int = 1000  # steps; also before the first and after the last
  writers: tuple[str, ...] = ()  # names of training/writers.py, beside TensorBoard
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  sharding: ShardingConfig = ShardingConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  guard: GuardConfig = GuardConfig()


@dataclasses.dataclass(frozen=True)
class Feed:
  """What the loop needs to know of the data.

  Attributes:
    batches_from: from a number of batches to this host's part of those after them; with each, what is only counted,
      under the same names on every host. The record has the sum over all hosts, where it is not 0.
    weights: of the streams' losses.
    rows: of the streams' global batches.
    hashes: a content hash for each stream's records, and for the tokenizer.
    records: from the number of a batch to what its rows are made of, by stream, as a person would look for it.
  """

  batches_from: Callable[[int], Iterator[tuple[HostBatches, dict[str, int]]]]
  weights: dict[str, float]
  rows: dict[str, int]
  hashes: dict[str, str] = dataclasses.field(default_factory=dict)
  records: Callable[[int], dict[str, list[list[str]]]] = lambda number: {}


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The parameters that are not drawn at random.

  Attributes:
    parameters: those that stay as they are, host arrays by path.
    hashes: a content hash for each part they came from.
    start: trained ones that begin from these values, by path; the others are drawn.
  """

  parameters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  hashes: dict[str, str] = dataclasses.field(default_factory=dict)
  start: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Resume:
  """How a start takes up what is in the work directory.

  Attributes:
    allow_changed: fields of the config, "frozen", "data" or a part of these, that may differ from before.
    rewind: to go back first.
    began: when the process did, of `time.perf_counter`; None: now.
  """

  allow_changed: tuple[str, ...] = ()
  rewind: Rewind | None = None
  began: float | None = None


AS_BEFORE = Resume()
