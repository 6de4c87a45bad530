"""A small training run that the tests of sharding start in processes of their own."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.parallel.mesh import MeshConfig, ShardingConfig, data_parts, global_batch, make_mesh, parts_by_host
from flamingo_jax.training.checkpoints import About, Checkpoints
from flamingo_jax.training.config import Frozen, TrainingConfig
from flamingo_jax.training.objectives import Objective, flamingo_objective
from flamingo_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from flamingo_jax.training.placing import place_frozen
from flamingo_jax.training.step import initial_state, make_train_step, slot_shardings, split_shapes
from flamingo_jax.training.tally import make_host_seconds, make_tally

ROWS, LENGTH, STEPS = 8, 10, 4
WEIGHTS = {"pages": 1.0, "captions": 0.5}  # of the streams' losses
MODEL = FlamingoConfig(  # every length divides by eight
  vision=VitConfig(width=16, layers=1, heads=8, feed_forward_multiplier=2, image_size=8, patch_size=4),
  resampler=PerceiverResamplerConfig(layers=1, latents=3, heads=8, feed_forward_multiplier=2, frames=2),
  cross_attention=GatedCrossAttentionConfig(every=2, heads=8, head_width=4, feed_forward_multiplier=2),
  language=DecoderConfig(vocabulary=32, width=16, layers=2, heads=8, key_value_heads=8, feed_forward_width=24),
  dtype="float32",
)


def make_batch(seed: int) -> dict[str, np.ndarray]:
  """Rows of different lengths, with text before the first of two pictures."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, 32, (ROWS, LENGTH), np.int32)
  tokens[:, [2, 5]], present = 32, np.arange(LENGTH) < random.integers(7, LENGTH + 1, (ROWS, 1))
  return dict(
    tokens=np.where(present, tokens, 0).astype(np.int32),
    segments=present.astype(np.int32),
    loss_weights=(present & (tokens != 32)).astype(np.float32),
    media=random.integers(0, 256, (ROWS, 2, 2, 8, 8, 3), np.uint8),
    media_mask=random.random((ROWS, 2, 2)) < 0.8,
    media_index=np.broadcast_to((np.cumsum(tokens == 32, axis=1) - 1).astype(np.int32), tokens.shape),
  )


@functools.cache
def objective_with(remat: str) -> Objective:
  return flamingo_objective(dataclasses.replace(MODEL, remat=remat))


def devices_as(mesh: list[int], apart: bool) -> Mesh:
  """The devices of the job as a mesh; with `apart` those of each process lie between those of the others."""
  devices = sorted(jax.devices(), key=lambda device: device.id % jax.local_device_count()) if apart else jax.devices()
  return make_mesh(MeshConfig(*mesh), devices)


def run(
  mesh: list[int],
  sharding: dict | None = None,
  remat: str = "none",
  streams: tuple[str, ...] = ("pages",),
  workdir: str | None = None,
  steps: int = STEPS,
  apart: bool = False,
) -> list[float]:
  """The loss of every step of a run, gates open from the first update on.

  With a work directory it goes on from the newest checkpoint there, on whatever mesh that was saved, and saves where it
  ends.
  """
  objective = objective_with(remat)
  weights = {name: WEIGHTS[name] for name in streams}
  training = TrainingConfig(
    frozen_dtype="float32",
    optimizer=OptimizerConfig(learning_rate=3e-2, warmup_steps=1),
    sharding=ShardingConfig(**sharding or {}),
  )
  rate = learning_rate(training.optimizer, STEPS)
  optimizer, devices = make_optimizer(training.optimizer, rate), devices_as(mesh, apart)
  with jax.set_mesh(devices):
    _, names, _ = split_shapes(objective, devices, training.trainable)
    random = np.random.default_rng(0)
    values = {path: random.normal(size=shape.shape, scale=0.2).astype(np.float32) for path, shape in names.items()}
    frozen = place_frozen(objective, Frozen(values), devices, training)
    state = initial_state(objective, optimizer, devices, training.trainable, 0, training.sharding)
    placement = slot_shardings(objective, devices, training.trainable, training.sharding)
    step = jax.jit(
      make_train_step(objective, optimizer, rate, weights, placement),
      out_shardings=(jax.tree.map(lambda array: array.sharding, state), None),
    )
    if workdir:
      checkpoints = Checkpoints(pathlib.Path(workdir))
      start, state = checkpoints.restore_newest(state, About(), (), print)
    parts, count = data_parts(devices)
    own = np.arange(ROWS).reshape(count, -1)[list(parts)].ravel()
    found = []
    batches = {name: make_batch(place) for place, name in enumerate(weights)}
    local = {name: {key: array[own] for key, array in batch.items()} for name, batch in batches.items()}
    spread = {name: global_batch(batch, devices) for name, batch in local.items()}
    for _ in range(steps):
      state, metrics = step(state, frozen, spread)
      found.append(float(metrics["loss"]))
    if workdir:
      checkpoints.save(start + steps, state, About())
      checkpoints.close()
  return found


def tallied(mesh: list[int], apart: bool) -> tuple[list[int], float, list[float]]:
  """What a job counts whose parts of the batch, from 0, skip 1, 2, ... and 0, 5, ... things, and whose processes wait
  half a second, a second, ..., and take 3, 4, ... seconds for themselves."""
  devices, process = devices_as(mesh, apart), jax.process_index()
  own, _ = data_parts(devices)
  part = sorted(set(parts_by_host(devices).values())).index(own)
  wanted = 0 if process else 7  # of which the first process tells all
  numbers = make_tally(devices)({"b": 5 * part, "a": 1 + part}, 0.5 * (1 + process), wanted)
  counted, waited, told = jax.device_get(numbers)
  assert told == 7
  return counted.tolist(), float(waited), make_host_seconds(devices)(3.0 + process).tolist()
