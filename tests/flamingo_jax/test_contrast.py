"""The contrastive losses, in blocks and over devices, against NumPy in float64 that has the scores whole.

Here there is one device; the last test runs the others once more on eight.
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.contrastive import ContrastiveConfig, Scale, matching_loss
from flamingo_jax.ops import contrast
from flamingo_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

HERE = pathlib.Path(__file__).parent
ROWS, WIDTH = 24, 8
TEMPERATURE, BIAS = 0.07, -3.0
LOSSES = {
  "softmax": ContrastiveConfig(),
  "smoothed": ContrastiveConfig(label_smoothing=0.1),
  "sigmoid": ContrastiveConfig(loss="sigmoid"),
}
PAIRED = {
  "all": np.ones(ROWS, bool),
  "some": np.arange(ROWS) % 5 != 2,
  "one": np.arange(ROWS) == 3,
  "none": np.zeros(ROWS, bool),
}


@pytest.fixture(scope="module", autouse=True)
def mesh():
  """One device, or eight with every axis in use."""
  mesh = make_mesh(MeshConfig() if jax.device_count() == 1 else MeshConfig(replica=-1, fsdp=4))
  with jax.set_mesh(mesh):
    yield mesh


def unit_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
  vectors = np.random.default_rng(seed).normal(size=(2, ROWS, WIDTH))
  images, texts = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  return images.astype(np.float32), texts.astype(np.float32)


def numpy_loss(config: ContrastiveConfig, images, texts, paired):
  """The loss and its gradients for images, texts, temperature and bias, all scores at once."""
  images, texts = np.float64(images[paired]), np.float64(texts[paired])
  count, own = len(images), np.eye(len(images))
  scores = images @ texts.T / TEMPERATURE
  if config.loss == "sigmoid":
    signs = 2 * own - 1
    total = np.logaddexp(0, -signs * (scores + BIAS)).sum()
    slopes = -signs / (1 + np.exp(signs * (scores + BIAS)))
  else:
    targets = (1 - config.label_smoothing) * own + config.label_smoothing / max(count, 1)
    total, slopes = 0.0, np.zeros_like(scores)
    for axis in (0, 1) if count else ():
      highest = scores.max(axis=axis, keepdims=True)
      logarithms = scores - highest - np.log(np.exp(scores - highest).sum(axis=axis, keepdims=True))
      total, slopes = total - (targets * logarithms).sum() / 2, slopes + (np.exp(logarithms) - targets) / 2
  of_images, of_texts = np.zeros((2, ROWS, WIDTH))
  of_images[paired], of_texts[paired] = slopes @ texts / TEMPERATURE, slopes.T @ images / TEMPERATURE
  of_bias = slopes.sum() if config.loss == "sigmoid" else 0.0
  return total, (of_images, of_texts, -(slopes * scores).sum() / TEMPERATURE, of_bias), scores


def ours(name: str, chunk: int, images, texts, paired, mesh):
  rows = batch_sharding(mesh)
  images, texts, paired = (jax.device_put(array, rows) for array in (images, texts, paired))
  return compiled(name, chunk)(images, texts, jnp.float32(TEMPERATURE), jnp.float32(BIAS), paired)


@functools.cache
def compiled(name: str, chunk: int):
  """Loss and gradients; `chunk` is read where they are traced, so each has its own."""

  def loss(images, texts, temperature, bias, paired):
    total, *counts = matching_loss(LOSSES[name], images, texts, Scale(temperature, bias), paired)
    return total, counts

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize("chunk", [2, 5, 512])  # whole ones, ragged ones, one
@pytest.mark.parametrize("paired", PAIRED)
@pytest.mark.parametrize("name", LOSSES)
def test_numpy_finds_the_same_loss_and_gradients(name, paired, chunk, mesh, monkeypatch):
  monkeypatch.setattr(contrast, "CHUNK", chunk)
  images, texts = unit_rows(0)
  paired = PAIRED[paired]
  expected, gradients, scores = numpy_loss(LOSSES[name], images, texts, paired)
  (total, (pairs, right)), found = ours(name, chunk, images, texts, paired, mesh)
  assert float(total) == pytest.approx(expected, rel=1e-6, abs=1e-6)
  assert float(pairs) == paired.sum()
  if paired.any():
    assert float(right) == (scores.argmax(axis=1) == np.arange(len(scores))).sum()
  for ours_, theirs in zip(found, gradients, strict=True):
    np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-6 * max(np.abs(theirs).max(), 1 / TEMPERATURE))
  for ours_ in found[:2]:
    assert not np.asarray(ours_)[~paired].any()


def test_numpy_calls_the_first_of_equal_texts_the_best(mesh, monkeypatch):
  """Wherever the others lie; a batch may hold one caption twice."""
  monkeypatch.setattr(contrast, "CHUNK", 2)
  images, texts = unit_rows(1)
  texts[[4, 11, 23]], images[[4, 11, 23]] = texts[11], texts[11]
  (_, (_, right)), _ = ours("softmax", 2, images, texts, PAIRED["all"], mesh)
  assert float(right) == ((images @ texts.T).argmax(axis=1) == np.arange(ROWS)).sum() < ROWS


@pytest.mark.skipif(jax.device_count() == 1, reason="on eight devices")
@pytest.mark.parametrize("name", LOSSES)
def test_numpy_or_not_memory_of_a_device_does_not_grow_with_their_number(name, monkeypatch):
  monkeypatch.setattr(contrast, "CHUNK", 32)
  few, many = (memory(LOSSES[name], devices, rows=64) for devices in (2, 8))
  assert many <= 1.05 * few


def memory(config: ContrastiveConfig, devices: int, rows: int) -> int:
  """Temporary bytes on each of so many devices, with so many rows each; no array has the rows of all."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
  vectors = jax.ShapeDtypeStruct((devices * rows, 128), jnp.float32, sharding=batch_sharding(mesh))
  paired = jax.ShapeDtypeStruct((devices * rows,), jnp.bool_, sharding=batch_sharding(mesh))
  scale = Scale(jnp.float32(TEMPERATURE), jnp.float32(BIAS))
  with jax.set_mesh(mesh):
    loss = jax.value_and_grad(lambda *given: matching_loss(config, *given[:2], scale, given[2])[0], argnums=(0, 1))
    compiled = jax.jit(loss).lower(vectors, vectors, paired).compile()
  assert f"f32[{devices * rows}," not in compiled.as_text()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(jax.device_count() > 1, reason="starts itself there")
def test_all_of_this_holds_on_eight_devices():
  environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  command = [sys.executable, "-m", "pytest", "-k", "numpy", __file__]
  done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout
  assert "40 passed" in done.stdout
