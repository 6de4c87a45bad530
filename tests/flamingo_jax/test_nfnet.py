import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.vision.nfnet import GELU_GAIN, Block, Nfnet, NfnetConfig, StandardizedConv, standardize
from flamingo_jax.models.vision.towers import vision_tower
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh, parameter_shardings

CONFIG = NfnetConfig(
  variant="F0",
  depths=(1, 3),
  widths=(16, 32),
  group_width=4,
  image_size=19,
  final_conv=True,
  pixel_mean=(0.2, 0.4, 0.6),
)


def fresh(config: NfnetConfig, key) -> dict:
  size = config.image_size
  return Nfnet(config, jnp.float32).init(key, jnp.zeros((1, size, size, 3), jnp.uint8))["params"]


@pytest.fixture(scope="module")
def weights(random_parameters):
  """Of CONFIG, with gains near one, so that every branch has its say."""
  random = random_parameters(lambda key: fresh(CONFIG, key))
  return {path: 1 + array if path.endswith("gain") else array for path, array in random.items()}


def numpy_standardize(kernel, gain):
  """One output channel at a time, in float64."""
  standardized = np.zeros(kernel.shape)
  for channel in range(kernel.shape[-1]):
    weights = np.float64(kernel[..., channel])
    scaled = (weights - weights.mean()) / np.sqrt(weights.var() + 1e-5)
    standardized[..., channel] = scaled * gain[channel] / np.sqrt(weights.size)
  return standardized


def padded(x, size, stride):
  """Zeros around a grid so that ceil(side / stride) windows fit; the odd one goes to the end."""
  sides = x.shape[1:3]
  missing = [max((math.ceil(side / stride) - 1) * stride + size - side, 0) for side in sides]
  return np.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)))


def windows(x, size, stride):
  """The value under every place of a window: (row, column, grid of those values)."""
  rows, columns = (math.ceil(side / stride) for side in x.shape[1:3])
  x = padded(x, size, stride)
  for y in range(size):
    for z in range(size):
      yield y, z, x[:, y : y + rows * stride : stride, z : z + columns * stride : stride][:, :rows, :columns]


def numpy_conv(parameters, x, stride=1, groups=1):
  kernel = numpy_standardize(parameters["kernel"], parameters["gain"])
  kernels, inputs = np.split(kernel, groups, axis=-1), np.split(x, groups, axis=-1)
  outputs = [
    sum(seen @ own[y, z] for y, z, seen in windows(part, len(kernel), stride))
    for own, part in zip(kernels, inputs, strict=True)
  ]
  return np.concatenate(outputs, axis=-1) + parameters["bias"]


def numpy_pool(x):
  """Means over 2 x 2, of those values that are inside the grid."""
  inside = np.ones_like(x[:1, ..., :1])
  total, count = (sum(seen for _, _, seen in windows(grid, 2, 2)) for grid in (x, inside))
  return total / count


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2 * 1.7015043497085571


def numpy_block(reference, part, x, beta, stride, groups, projects):
  below = lambda name: reference.below(part, f"{name}/")  # noqa: E731
  out = gelu(x) * beta
  pooled = numpy_pool(out) if stride == 2 else out
  shortcut = numpy_conv(below("shortcut"), pooled) if projects else x
  out = gelu(numpy_conv(below("reduce"), out))
  out = gelu(numpy_conv(below("first_grouped"), out, stride, groups))
  out = gelu(numpy_conv(below("second_grouped"), out, 1, groups))
  out = numpy_conv(below("expand"), out)
  hidden = out.mean(axis=(1, 2)) @ part["squeeze_excite/squeeze/kernel"] + part["squeeze_excite/squeeze/bias"]
  gate = np.maximum(hidden, 0) @ part["squeeze_excite/excite/kernel"] + part["squeeze_excite/excite/bias"]
  out = 2 * out / (1 + np.exp(-gate))[:, None, None]
  return shortcut + 0.2 * part["skip_gain"] * out


def numpy_nfnet(reference, weights, pixels):
  """CONFIG, block by block."""
  x = (pixels / 255 - np.asarray(CONFIG.pixel_mean)) / np.asarray(CONFIG.pixel_deviation)
  for index, stride in enumerate((2, 1, 1, 2)):
    x = numpy_conv(reference.below(weights, f"stem/conv_{index}/"), gelu(x) if index else x, stride)
  x = numpy_block(reference, reference.below(weights, "stage_0/first/"), x, 1.0, 1, 2, True)
  x = numpy_block(reference, reference.below(weights, "stage_1/first/"), x, 1.04**-0.5, 2, 4, True)
  for index, beta in enumerate((1.04**-0.5, 1.08**-0.5)):
    x = numpy_block(reference, reference.below(weights, "stage_1/rest/", index), x, beta, 1, 4, False)
  x = gelu(numpy_conv(reference.below(weights, "final_conv/"), x))
  return x.reshape(len(x), -1, 64)


def test_features_match_numpy(jit, reference, weights):
  """19 pixels a side make grids of 10, 5 and 3, so every kind of padding occurs."""
  pixels = np.random.default_rng(0).integers(0, 256, (2, 19, 19, 3), np.uint8)
  found = jit(lambda weights, pixels: Nfnet(CONFIG, jnp.float32).apply(nested(weights), pixels))(weights, pixels)
  expected = numpy_nfnet(reference, weights, pixels)
  assert found.shape == (2, CONFIG.positions, CONFIG.width) == (2, 9, 64)
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_without_the_final_convolution_the_last_stage_comes_out(jit, weights):
  """What remains to be done to it is that convolution and a GELU."""
  pixels = np.random.default_rng(1).integers(0, 256, (1, 19, 19, 3), np.uint8)
  short = dataclasses.replace(CONFIG, final_conv=False)
  final = {path.removeprefix("final_conv/"): array for path, array in weights.items() if "final_conv" in path}
  stages = {path: array for path, array in weights.items() if "final_conv" not in path}
  grid = jit(Nfnet(short, jnp.float32).apply)(nested(stages), pixels)
  assert grid.shape == (1, short.positions, short.width) == (1, 9, 32)
  conv = StandardizedConv(64, 1, jnp.float32)
  through = gelu(np.float64(conv.apply(nested(final), grid.reshape(1, 3, 3, 32))))
  whole = jit(Nfnet(CONFIG, jnp.float32).apply)(nested(weights), pixels)
  np.testing.assert_allclose(whole, through.reshape(1, 9, 64), atol=1e-5 * np.abs(through).max())


def test_standardized_weights_match_numpy():
  random = np.random.default_rng(0)
  kernel = (random.normal(3, 0.05, (3, 3, 5, 7))).astype(np.float32)
  gain = random.normal(size=7).astype(np.float32)
  np.testing.assert_allclose(standardize(kernel, gain), numpy_standardize(kernel, gain), atol=1e-5)


def test_standardized_weights_keep_variance_whatever_the_kernels_scale():
  random = np.random.default_rng(1)
  kernel = (random.normal(size=(3, 3, 64, 5)) * [1, 2, 5, 10, 100] + 3).astype(np.float32)
  weights = np.float64(standardize(kernel, np.ones(5, np.float32)))
  np.testing.assert_allclose(weights.sum(axis=(0, 1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(np.square(weights).sum(axis=(0, 1, 2)), 1, rtol=1e-4)


def test_a_bfloat16_kernel_is_standardized_in_float32():
  """512 weights near 1 that differ by a part in 64: sums in bfloat16 would lose them."""
  kernel = jnp.asarray(1 + np.arange(512).reshape(1, 1, 512, 1) % 4 / 64, jnp.bfloat16)
  found = standardize(kernel, jnp.ones(1, jnp.bfloat16))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, numpy_standardize(np.float64(kernel), np.ones(1)), rtol=1e-3)


def test_the_gain_of_gelu_keeps_the_variance_of_a_normal_variable():
  places, weights = np.polynomial.hermite_e.hermegauss(200)
  weights = weights / weights.sum()
  values = gelu(places) / 1.7015043497085571 * GELU_GAIN
  variance = weights @ values**2 - (weights @ values) ** 2
  assert variance == pytest.approx(1, abs=1e-2)


def test_a_fresh_block_is_the_identity(jit):
  """Skip gains start at zero, so the weights of the branch have no say yet."""
  grid = np.random.default_rng(2).normal(size=(1, 3, 3, 8)).astype(np.float32)
  block = Block(width=8, group_width=4, dtype=jnp.float32)
  (out, _), fresh = jit(block.init_with_output)(jax.random.key(0), grid, jnp.float32(1))
  np.testing.assert_array_equal(out, grid)
  opened = flat(fresh["params"]) | {"skip_gain": jnp.float32(1)}
  assert np.abs(jit(block.apply)(nested(opened), grid, jnp.float32(1))[0] - grid).min() > 0


@pytest.mark.parametrize(
  ("variant", "millions"),
  [("F0", 71.5), ("F1", 132.6), ("F2", 193.8), ("F3", 254.9), ("F4", 316.1), ("F5", 377.2), ("F6", 438.4)],
)
def test_parameter_counts_are_the_published_ones(variant, millions):
  """Brock et al., table 6, with their classifier of 1,000 classes; Flamingo's 435M are F6 without it."""
  config = NfnetConfig(variant=variant, final_conv=True)
  shapes = flat(jax.eval_shape(lambda key: fresh(config, key), jax.random.key(0))).values()
  without_classifier = sum(math.prod(shape.shape) for shape in shapes)
  assert (without_classifier + 3072 * 1000 + 1000) / 1e6 == pytest.approx(millions, abs=0.05)
  if variant == "F6":
    assert round(without_classifier / 1e6) == 435


def test_an_unknown_variant_is_an_error_that_names_the_known_ones():
  with pytest.raises(UserError, match=r"'F9'.*F0, F1, F2, F3, F4, F5, F6"):
    _ = NfnetConfig(variant="F9").blocks


@pytest.mark.parametrize(
  ("config", "shape"),
  [
    (NfnetConfig(), (2, 100, 1536)),
    (NfnetConfig(variant="F0", image_size=288, final_conv=True), (2, 81, 3072)),
    (VitConfig(class_token=True), (2, 64, 256)),
    (VitConfig(class_token=True, keep_class_token=True), (2, 65, 256)),
  ],
)
def test_towers_make_as_many_features_as_their_configs_say(config, shape):
  pixels = jax.ShapeDtypeStruct((2, config.image_size, config.image_size, 3), jnp.uint8)
  tower = vision_tower(config, jnp.dtype("bfloat16"))
  features = jax.eval_shape(lambda key, pixels: tower.init_with_output(key, pixels)[0], jax.random.key(0), pixels)
  assert features.shape == (2, config.positions, config.width) == shape
  assert features.dtype == jnp.bfloat16


def test_the_parameters_stay_whole_on_every_device():
  boxed = jax.eval_shape(lambda key: fresh(CONFIG, key), jax.random.key(0))
  shardings = parameter_shardings(boxed, make_mesh(MeshConfig()))
  assert all(not any(sharding.spec) for sharding in shardings.values())
