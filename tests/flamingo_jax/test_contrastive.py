import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, initialize, symmetric_loss
from flamingo_jax.models.encoder import EncoderConfig
from flamingo_jax.models.parameters import nested
from flamingo_jax.models.vision.vit import VitConfig

CONFIG = ContrastiveConfig(
  vision=VitConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1, image_size=8, patch_size=4),
  text=EncoderConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1),
  vocabulary=20,
  embedding_width=6,
  length=6,
  joint_width=4,
  dtype="float32",
)


def unit_rows(seed: int, rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
  vectors = np.random.default_rng(seed).normal(size=(2, rows, 8))
  images, texts = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  return images.astype(np.float32), texts.astype(np.float32)


def numpy_loss(images, texts, temperature) -> float:
  similarity = np.float64(images) @ np.float64(texts).T / temperature
  total = 0.0
  for scores in (similarity, similarity.T):
    for row, own in zip(scores, np.diagonal(scores), strict=True):
      total += (np.log(np.exp(row - row.max()).sum()) + row.max() - own) / 2
  return total


def test_loss_matches_numpy():
  images, texts = unit_rows(0)
  total, pairs, right = symmetric_loss(images, texts, jnp.float32(0.07), np.ones(5, bool))
  assert float(total) == pytest.approx(numpy_loss(images, texts, 0.07), rel=1e-5)
  assert float(pairs) == 5
  assert float(right) == ((images @ texts.T).argmax(axis=1) == np.arange(5)).sum()


def test_unpaired_rows_are_neither_asked_for_nor_offered():
  images, texts = unit_rows(1)
  paired = np.asarray([True, False, True, True, False])
  images[~paired] = texts[0]
  texts[~paired] = images[0]
  total, pairs, right = symmetric_loss(images, texts, jnp.float32(0.07), paired)
  kept = images[paired], texts[paired]
  assert float(total) == pytest.approx(numpy_loss(*kept, 0.07), rel=1e-5)
  assert float(pairs) == 3
  assert float(right) == ((kept[0] @ kept[1].T).argmax(axis=1) == np.arange(3)).sum()


@pytest.mark.parametrize("paired", [[True, True, False], [False, False, False]])
def test_unpaired_rows_have_no_gradient_and_leave_it_finite(jit, paired):
  images, texts = unit_rows(2, rows=3)
  paired = np.asarray(paired)
  gradient = jit(jax.grad(lambda *v: symmetric_loss(*v, paired)[0], argnums=(0, 1, 2)))(images, texts, 0.07)
  assert all(np.isfinite(part).all() for part in gradient)
  assert all((np.asarray(part)[~paired] == 0).all() for part in gradient[:2])
  assert all((np.asarray(part)[paired] != 0).all() for part in gradient[:2])


@pytest.fixture(scope="module")
def towers(jit):
  return jit(lambda parameters, batch: Contrastive(CONFIG).apply(nested(parameters), batch))


@pytest.fixture(scope="module")
def weights(random_parameters):
  return random_parameters(lambda key: initialize(CONFIG, key))


@pytest.fixture(scope="module")
def captions():
  random = np.random.default_rng(0)
  return dict(
    tokens=random.integers(0, 20, (3, 6), np.int32),
    segments=np.asarray([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]], np.int32),
    media=random.integers(0, 256, (3, 1, 1, 8, 8, 3), np.uint8),
  )


def test_pictures_and_texts_become_unit_vectors(towers, weights, captions):
  images, texts, temperature = towers(weights, captions)
  for vectors in (images, texts):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
  assert float(temperature) == pytest.approx(np.exp(weights["log_temperature"]), rel=1e-6)


def test_padding_and_the_tokens_flamingo_adds_say_nothing(towers, weights, captions):
  padding = captions["segments"] == 0
  noise = np.where(padding, 7, captions["tokens"])
  _, expected, _ = towers(weights, captions)
  np.testing.assert_array_equal(towers(weights, captions | {"tokens": noise})[1], expected)
  added = np.where(padding, 21, captions["tokens"])
  marked = captions | {"tokens": added, "segments": np.ones_like(added)}
  np.testing.assert_array_equal(towers(weights, marked)[1], expected)
  reworded = captions | {"tokens": (captions["tokens"] + 1) % 20}
  assert np.abs(towers(weights, reworded)[1] - expected).max() > 1e-2
