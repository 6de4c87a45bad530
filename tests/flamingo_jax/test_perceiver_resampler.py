import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.parameters import nested
from flamingo_jax.models.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig, at_frames

CONFIG = PerceiverResamplerConfig(layers=2, latents=3, heads=2, feed_forward_multiplier=2, frames=4)
WIDTH, POSITIONS = 8, 5


@pytest.fixture(scope="module")
def resample(jit):
  return jit(lambda p, features, mask: PerceiverResampler(CONFIG, jnp.float32).apply(nested(p), features, mask))


@pytest.fixture(scope="module")
def weights(random_parameters):
  def initialize(key):
    features, mask = jnp.zeros((1, 1, 1, POSITIONS, WIDTH)), jnp.ones((1, 1, 1), bool)
    return PerceiverResampler(CONFIG, jnp.float32).init(key, features, mask)["params"]

  return random_parameters(initialize)


def some_features(seed: int = 0, frames: int = 4) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(2, 3, frames, POSITIONS, WIDTH)).astype(np.float32)


def numpy_resampler(reference, weights, features, mask):
  """The paper's pseudo-code for one medium at a time (figure 5), with norms before each block."""
  batch, slots, frames = features.shape[:3]
  out = np.zeros((batch, slots, CONFIG.latents, WIDTH))
  for b, n in np.ndindex(batch, slots):
    media = features[b, n] + weights["temporal_embeddings"][:frames, None]
    media = media[mask[b, n]].reshape(1, -1, WIDTH)
    x = np.float64(weights["latents"])[None]
    for layer in range(CONFIG.layers):
      part = lambda name, layer=layer: reference.below(weights, f"layers/{name}/", layer)  # noqa: E731
      latents = reference.layer_norm(part("latents_norm"), x)
      context = np.concatenate([reference.layer_norm(part("features_norm"), media), latents], axis=1)
      x = x + reference.cross_attention(part("attention"), latents, context)
      x = x + reference.feed_forward(part("feed_forward"), reference.layer_norm(part("feed_forward_norm"), x))
    out[b, n] = reference.layer_norm(reference.below(weights, "norm/"), x)[0]
  return out


def test_latents_match_numpy(reference, weights, resample):
  features = some_features()
  mask = np.ones((2, 3, 4), bool)
  mask[0, 1, 2:] = False
  mask[1, 0] = False
  expected = numpy_resampler(reference, weights, features, mask)
  np.testing.assert_allclose(resample(weights, features, mask), expected, atol=2e-5)


def test_masked_frames_have_no_influence(weights, resample):
  mask = np.ones((2, 3, 4), bool)
  mask[0, 0, 1] = mask[1, 2, 3] = False
  mask[1, 1] = False
  features = some_features()
  changed = np.where(mask[..., None, None], features, 1e3 * some_features(1))
  np.testing.assert_array_equal(resample(weights, features, mask), resample(weights, changed, mask))


def test_an_image_is_a_video_of_one_frame(weights, resample):
  image = some_features(frames=1)
  video = np.concatenate([image, some_features(1, frames=3)], axis=2)
  mask = np.zeros((2, 3, 4), bool)
  mask[:, :, 0] = True
  alone = resample(weights, image, np.ones((2, 3, 1), bool))
  np.testing.assert_allclose(alone, resample(weights, video, mask), atol=1e-5)


def test_the_order_of_frames_matters(weights, resample):
  features, mask = some_features(), np.ones((2, 3, 4), bool)
  difference = np.abs(resample(weights, features, mask) - resample(weights, features[:, :, ::-1], mask))
  assert (difference.max(axis=(2, 3)) > 1e-3).all()


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_short_clips_take_the_first_embeddings(frames):
  embeddings = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  np.testing.assert_array_equal(at_frames(jnp.asarray(embeddings), frames), embeddings[:frames])


@pytest.mark.parametrize("frames", [5, 8, 30])
def test_long_clips_stretch_the_embeddings(frames):
  embeddings = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  places = np.arange(frames) * 3 / (frames - 1)
  expected = np.stack([np.interp(places, np.arange(4), column) for column in embeddings.T], axis=1)
  np.testing.assert_allclose(at_frames(jnp.asarray(embeddings), frames), expected, atol=1e-6)
