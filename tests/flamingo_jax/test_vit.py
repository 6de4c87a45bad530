import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.vision.pixels import normalize
from flamingo_jax.models.vision.vit import Vit, VitConfig, resize_positions, to_patches

PLAIN = VitConfig(width=8, layers=2, heads=2, feed_forward_multiplier=1.5, image_size=12, patch_size=4)
CLIP = dataclasses.replace(
  PLAIN,
  activation="quick_gelu",
  attention_bias=True,
  norm_epsilon=1e-2,
  final_norm=False,
  patch_bias=False,
  class_token=True,
  pre_norm=True,
  pixel_mean=(0.2, 0.4, 0.6),
  pixel_deviation=(0.1, 0.2, 0.3),
)
SIGLIP = dataclasses.replace(PLAIN, activation="gelu_tanh", attention_bias=True, norm_epsilon=1e-6)

ACTIVATIONS = {
  "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
  "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
  "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def fresh(config: VitConfig, key) -> dict:
  size = config.image_size
  return Vit(config, jnp.float32).init(key, jnp.zeros((1, size, size, 3), jnp.uint8))["params"]


@pytest.fixture(scope="module")
def pixels():
  return np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)


def numpy_vit(reference, config, weights, pixels):
  """One patch, one block and one norm after the other, in float64."""

  def affine(name, x, axes="...i,io->...o"):
    return np.einsum(axes, x, part[f"{name}/kernel"]) + part.get(f"{name}/bias", 0)

  def norm(parameters, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + config.norm_epsilon)
    return scaled * parameters["scale"] + parameters["bias"]

  images = (pixels / 255 - np.asarray(config.pixel_mean)) / np.asarray(config.pixel_deviation)
  size, starts = config.patch_size, range(0, config.image_size, config.patch_size)
  patches = [images[:, y : y + size, x : x + size].reshape(len(images), -1) for y in starts for x in starts]
  part = reference.below(weights, "")
  x = affine("patch_embedding", np.stack(patches, axis=1))
  if config.class_token:
    x = np.concatenate([np.broadcast_to(part["class_embedding"], (len(x), 1, config.width)), x], axis=1)
  x = x + part["position_embeddings"]
  if config.pre_norm:
    x = norm(reference.below(weights, "pre_norm/"), x)
  for layer in range(config.layers):
    part = reference.below(weights, "encoder/layers/", layer)
    below = lambda name, part=part: {k.split("/")[1]: v for k, v in part.items() if k.startswith(f"{name}/")}  # noqa: E731
    normed = norm(below("attention_norm"), x)
    heads = [affine(f"attention/{name}", normed, "bsi,ihk->bshk") for name in ("query", "key", "value")]
    x = x + affine("attention/output", reference.attention(*heads), "bshk,hko->bso")
    hidden = affine("feed_forward/up", norm(below("feed_forward_norm"), x))
    x = x + affine("feed_forward/down", ACTIVATIONS[config.activation](hidden))
  if config.final_norm:
    x = norm(reference.below(weights, "encoder/norm/"), x)
  return x if config.keep_class_token or not config.class_token else x[:, 1:]


@pytest.mark.parametrize("config", [PLAIN, CLIP, SIGLIP], ids=["plain", "clip", "siglip"])
def test_features_match_numpy(jit, reference, random_parameters, pixels, config):
  weights = random_parameters(lambda key: fresh(config, key))
  found = jit(lambda weights, pixels: Vit(config, jnp.float32).apply(nested(weights), pixels))(weights, pixels)
  assert found.shape == (2, config.positions, config.width)
  np.testing.assert_allclose(found, numpy_vit(reference, config, weights, pixels), atol=2e-5)


def test_a_kept_class_token_comes_before_the_grid(jit, random_parameters, pixels):
  weights = random_parameters(lambda key: fresh(CLIP, key))
  kept = dataclasses.replace(CLIP, keep_class_token=True)
  apply = lambda config: jit(Vit(config, jnp.float32).apply)(nested(weights), pixels)  # noqa: E731
  assert (kept.positions, CLIP.positions) == (10, 9)
  np.testing.assert_array_equal(apply(kept)[:, 1:], apply(CLIP))


def test_normalized_images_give_what_their_bytes_give(jit, random_parameters, pixels):
  weights = random_parameters(lambda key: fresh(CLIP, key))
  tower = Vit(CLIP, jnp.float32)
  images = normalize(pixels, CLIP.pixel_mean, CLIP.pixel_deviation)
  encoded = jit(lambda weights, images: tower.apply(nested(weights), images, method=Vit.encode))(weights, images)
  np.testing.assert_allclose(encoded, jit(tower.apply)(nested(weights), pixels), atol=1e-6)


def test_pixels_lie_between_minus_one_and_one_unless_told_otherwise():
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
  config = VitConfig()
  found = np.asarray(normalize(pixels, config.pixel_mean, config.pixel_deviation))
  np.testing.assert_allclose(found.ravel(), np.linspace(-1, 1, 256).repeat(3), atol=1e-7)
  assert (found.min(), found.max()) == (-1, 1)


def test_a_default_tower_has_the_parameters_it_always_had():
  shapes = {
    path: array.shape
    for path, array in flat(jax.eval_shape(lambda key: fresh(VitConfig(), key), jax.random.key(0))).items()
  }
  layers = {path.removeprefix("encoder/layers/"): shape for path, shape in shapes.items() if "layers" in path}
  assert {path: shape for path, shape in shapes.items() if "layers" not in path} == {
    "patch_embedding/kernel": (192, 256),
    "patch_embedding/bias": (256,),
    "position_embeddings": (64, 256),
    "encoder/norm/scale": (256,),
    "encoder/norm/bias": (256,),
  }
  assert layers == {
    "attention_norm/scale": (4, 256),
    "attention_norm/bias": (4, 256),
    "attention/query/kernel": (4, 256, 4, 64),
    "attention/key/kernel": (4, 256, 4, 64),
    "attention/value/kernel": (4, 256, 4, 64),
    "attention/output/kernel": (4, 4, 64, 256),
    "feed_forward_norm/scale": (4, 256),
    "feed_forward_norm/bias": (4, 256),
    "feed_forward/up/kernel": (4, 256, 1024),
    "feed_forward/up/bias": (4, 1024),
    "feed_forward/down/kernel": (4, 1024, 256),
    "feed_forward/down/bias": (4, 256),
  }


def test_a_bfloat16_tower_stays_near_the_float32_one(jit, random_parameters, pixels):
  weights = random_parameters(lambda key: fresh(CLIP, key))
  exact, coarse = (jit(Vit(CLIP, jnp.dtype(d)).apply)(nested(weights), pixels) for d in ("float32", "bfloat16"))
  assert coarse.dtype == jnp.bfloat16
  assert np.abs(np.float32(coarse) - exact).max() < 0.03 * np.abs(exact).max()


def test_patches_are_cut_row_by_row_and_what_is_left_over_is_not_seen():
  images = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3).astype(np.float32)
  patches = np.asarray(to_patches(images, 2))
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4].ravel())


def keys_weights(old: int, new: int) -> np.ndarray:
  """Cubic convolution (Keys, 1981, a = -1/2), widened to the new spacing when that is larger; [new, old]."""
  scale = max(old / new, 1.0)
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  distance = np.abs(centres[:, None] - np.arange(old)) / scale
  near = 1.5 * distance**3 - 2.5 * distance**2 + 1
  far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
  weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
  return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("side", [3, 5, 6, 9])
@pytest.mark.parametrize("class_token", [False, True])
def test_positions_are_resized_by_cubic_convolution(side, class_token):
  old = 6
  embeddings = np.random.default_rng(0).normal(size=(old**2 + class_token, 4)).astype(np.float32)
  weights = keys_weights(old, side)
  grid = embeddings[class_token:].reshape(old, old, 4)
  expected = np.einsum("yi,xj,ijv->yxv", weights, weights, grid).reshape(side**2, 4)
  found = resize_positions(embeddings, side, class_token=class_token)
  np.testing.assert_array_equal(found[:class_token], embeddings[:class_token])
  np.testing.assert_allclose(found[class_token:], expected, atol=1e-5)
