import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, initialize, no_lower
from flamingo_jax.models.encoder import EncoderConfig
from flamingo_jax.models.parameters import nested
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.training.objectives import contrastive_objective
from flamingo_jax.training.step import State, make_train_step

CONFIG = ContrastiveConfig(
  vision=VitConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1, image_size=8, patch_size=4),
  text=EncoderConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1),
  vocabulary=20,
  embedding_width=6,
  length=6,
  joint_width=4,
  dtype="float32",
)


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
  images, texts, scale = towers(weights, captions)
  for vectors in (images, texts):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
  assert float(scale.temperature) == pytest.approx(np.exp(weights["log_temperature"]), rel=1e-6)


def test_the_temperature_ends_at_a_hundredth_and_may_rise_again(jit, towers, weights, captions):
  low = weights | {"log_temperature": np.float32(-9)}
  assert float(towers(low, captions)[2].temperature) == pytest.approx(0.01, rel=1e-6)
  slopes = jit(jax.vmap(jax.grad(lambda x, slope: slope * no_lower(x, -2.0)), in_axes=(0, 0)))
  found = slopes(jnp.float32([-3.0, -3.0, -1.0, -1.0]), jnp.float32([1.0, -1.0, 1.0, -1.0]))
  assert found.tolist() == [0.0, -1.0, 1.0, -1.0]  # descent along a positive slope leads down


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


def whole_batch(seed: int, rows: int) -> dict[str, np.ndarray]:
  random = np.random.default_rng(seed)
  present = np.arange(6) < random.integers(2, 7, (rows, 1))
  return dict(
    tokens=np.where(present, random.integers(0, 20, (rows, 6)), 0).astype(np.int32),
    segments=present.astype(np.int32),
    loss_weights=present.astype(np.float32),
    media=random.integers(0, 256, (rows, 1, 1, 8, 8, 3), np.uint8),
    media_mask=np.ones((rows, 1, 1), bool),
  )


def mean_loss(config: ContrastiveConfig):
  """(parameters, batch) -> the mean loss."""
  objective = contrastive_objective(config)

  def loss(parameters, batch):
    found = objective.loss(parameters, batch)
    return found.total / found.weight

  return loss


def test_each_stream_is_contrasted_within_itself_and_the_gradients_add_up(jit, weights):
  """The paper's way of combining data sets (appendix B.1.3); one merged batch would have other gradients."""
  batches, shares = {"align": whole_batch(0, 4), "ltip": whole_batch(1, 3)}, {"align": 1.0, "ltip": 0.5}
  step = jit(make_train_step(contrastive_objective(CONFIG), optax.sgd(1.0), lambda _: 1.0, shares))
  state = State(jnp.zeros((), jnp.int32), weights, optax.sgd(1.0).init(weights))
  moved = step(state, {}, batches)[0].trainable
  gradient = jit(jax.grad(mean_loss(CONFIG)))
  align, ltip = (gradient(weights, batch) for batch in batches.values())
  merged = {name: np.concatenate([batch[name] for batch in batches.values()]) for name in batches["align"]}
  merged = gradient(weights, merged)
  apart = 0.0
  for path, before in weights.items():
    np.testing.assert_allclose(before - moved[path], align[path] + 0.5 * ltip[path], atol=1e-5, err_msg=path)
    apart = max(apart, np.abs(before - moved[path] - 1.5 * merged[path]).max())
  assert apart > 1e-2


def test_the_bias_is_a_parameter_of_the_sigmoids_loss_alone(jit, random_parameters):
  sigmoid = dataclasses.replace(CONFIG, loss="sigmoid")
  parameters = random_parameters(lambda key: initialize(sigmoid, key))
  assert parameters.keys() - random_parameters(lambda key: initialize(CONFIG, key)).keys() == {"logit_bias"}
  assert float(initialize(sigmoid, jax.random.key(0))["logit_bias"].value) == -10
  slope = jit(jax.grad(mean_loss(sigmoid)))(parameters, whole_batch(0, 4))["logit_bias"]
  changed = [parameters | {"logit_bias": parameters["logit_bias"] + sign * np.float32(1e-2)} for sign in (1, -1)]
  above, below = (float(jit(mean_loss(sigmoid))(each, whole_batch(0, 4))) for each in changed)
  assert float(slope) == pytest.approx((above - below) / 2e-2, rel=1e-2)


NFNET = NfnetConfig(variant="F0", depths=(1, 2), widths=(16, 32), group_width=4, image_size=8)


@pytest.mark.parametrize("vision", [CONFIG.vision, NFNET], ids=["vit", "nfnet"])
@pytest.mark.parametrize("remat", ["products", "full"])
def test_gradients_are_the_same_whatever_is_computed_again(jit, random_parameters, vision, remat):
  config = dataclasses.replace(CONFIG, vision=vision)
  parameters = random_parameters(lambda key: initialize(config, key))
  again = dataclasses.replace(config, remat=remat)
  kept, found = (jit(jax.grad(mean_loss(each)))(parameters, whole_batch(0, 4)) for each in (config, again))
  for path, gradient in kept.items():
    np.testing.assert_allclose(found[path], gradient, atol=1e-5 * max(1, np.abs(gradient).max()), err_msg=path)


def test_gradients_of_a_word_that_stands_everywhere_are_summed_in_float32(jit, weights):
  """In bfloat16 a sum of thousands stops growing at some 256 times what is added to it."""
  rows = 1024
  batch = dict(
    tokens=np.full((rows, 6), 3, np.int32),
    segments=np.ones((rows, 6), np.int32),
    media=np.zeros((rows, 1, 1, 8, 8, 3), np.uint8),
  )
  towards = np.random.default_rng(0).normal(size=4).astype(np.float32)

  def gradient(dtype: str):
    model = Contrastive(dataclasses.replace(CONFIG, dtype=dtype))
    mean = jax.grad(lambda parameters: (model.apply(nested(parameters), batch)[1] @ towards).sum())
    return np.asarray(jit(mean)(weights)["text/embeddings"][3])

  exact = gradient("float32")
  assert np.linalg.norm(gradient("bfloat16") - exact) < 0.05 * np.linalg.norm(exact)
