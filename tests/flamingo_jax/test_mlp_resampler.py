import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.mlp_resampler import MlpResampler, MlpResamplerConfig
from flamingo_jax.models.parameters import nested

CONFIG = MlpResamplerConfig(latents=3, hidden_width=16, frames=4, output_width=6)
WIDTH, POSITIONS = 8, 5
MASK = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]], bool)


@pytest.fixture(scope="module")
def resample(jit):
  return jit(lambda p, features, mask: MlpResampler(CONFIG, jnp.float32).apply(nested(p), features, mask))


@pytest.fixture(scope="module")
def weights(random_parameters):
  shapes = jnp.zeros((1, 1, 1, POSITIONS, WIDTH)), jnp.ones((1, 1, 1), bool)
  return random_parameters(lambda key: MlpResampler(CONFIG, jnp.float32).init(key, *shapes)["params"])


def some_features(frames: int = 4, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(2, 2, frames, POSITIONS, WIDTH)).astype(np.float32)


def test_latents_match_numpy(reference, weights, resample):
  features = some_features()
  expected = np.zeros((2, 2, 3, 6))
  for row, slot in np.ndindex(2, 2):
    normed = reference.layer_norm(reference.below(weights, "features_norm/"), features[row, slot])
    hidden = (normed * MASK[row, slot, :, None, None]).reshape(-1) @ weights["up/kernel"]
    latents = np.einsum("h,hrw->rw", np.maximum(hidden, 0) ** 2, weights["down/kernel"])
    expected[row, slot] = reference.layer_norm(reference.below(weights, "norm/"), latents)
  np.testing.assert_allclose(resample(weights, features, MASK), expected, atol=2e-5)


def test_absent_frames_count_as_if_they_were_not_there(weights, resample):
  features, others = some_features(), some_features(seed=1)
  changed = np.where(MASK[..., None, None], features, others)
  np.testing.assert_array_equal(resample(weights, features, MASK), resample(weights, changed, MASK))
  short = resample(weights, features[:, :, :2], MASK[:, :, :2])
  np.testing.assert_allclose(short, resample(weights, features, MASK & (np.arange(4) < 2)), atol=1e-6)


def test_more_frames_than_there_are_weights_for_are_refused(weights, resample):
  with pytest.raises(ValueError, match="5 frames; an MLP resampler of 4 reads no more"):
    resample(weights, some_features(frames=5), np.ones((2, 2, 5), bool))
