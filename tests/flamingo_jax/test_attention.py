import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.parameters import nested
from flamingo_jax.ops import attention as module
from flamingo_jax.ops.attention import Visibility, attention, causal_mask, chosen, dense, media_mask


def random_heads(seed: int, *, heads: int = 4, groups: int = 2, length: int = 5, context: int = 7):
  random = np.random.default_rng(seed)
  query = random.normal(size=(2, length, heads, 8)).astype(np.float32)
  key, value = random.normal(size=(2, 2, context, groups, 8)).astype(np.float32)
  return query, key, value, random.random((2, length, context)) < 0.6


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_grouped_queries_match_numpy(reference, groups):
  query, key, value, mask = random_heads(0, groups=groups)
  for given in (None, mask):
    np.testing.assert_allclose(
      attention(query, key, value, given), reference.attention(query, key, value, given), atol=1e-6
    )


def test_gradients_match_their_closed_form_in_numpy(jit):
  query, key, value, mask = random_heads(7)
  mask[0, 2] = False
  weights = np.random.default_rng(8).normal(size=query.shape).astype(np.float32)

  def total(*heads):
    return (attention(*heads, mask) * weights).sum()

  gradients = jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)
  share, scale = query.shape[2] // key.shape[2], query.shape[3] ** -0.5
  expected = [np.zeros_like(heads, np.float64) for heads in (query, key, value)]
  for b, head, place in np.ndindex(2, query.shape[2], query.shape[1]):
    seen, group = np.nonzero(mask[b, place])[0], head // share
    if len(seen):
      keys, values = np.float64(key[b, seen, group]), np.float64(value[b, seen, group])
      shares = np.exp(keys @ query[b, place, head] * scale)
      shares /= shares.sum()
      of_shares = values @ weights[b, place, head]
      of_scores = shares * (of_shares - shares @ of_shares) * scale
      expected[0][b, place, head] = of_scores @ keys
      expected[1][b, seen, group] += of_scores[:, None] * query[b, place, head]
      expected[2][b, seen, group] += shares[:, None] * weights[b, place, head]
  for gradient, of_numpy in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(gradient, of_numpy, atol=2e-6)


def test_a_query_that_may_see_nothing_gets_exactly_zero():
  query, key, value, mask = random_heads(1)
  mask[0, 2] = False
  attended = np.asarray(attention(query, key, value, mask))
  assert (attended[0, 2] == 0).all()
  assert (attended[0, 3] != 0).all()


def test_a_query_that_may_see_nothing_has_exactly_zero_gradient(jit):
  query, key, value, mask = random_heads(2)
  mask[0, 2] = False

  def of_that_query(query, key, value):
    return jnp.square(attention(query, key, value, mask)[0, 2] + 1).sum()

  for gradient in jit(jax.grad(of_that_query, argnums=(0, 1, 2)))(query, key, value):
    assert (np.asarray(gradient) == 0).all()


def test_gradients_stay_finite_beside_a_query_that_may_see_nothing(jit):
  query, key, value, mask = random_heads(3)
  mask[0, 2] = False
  gradients = jit(jax.grad(lambda *heads: attention(*heads, mask).sum(), argnums=(0, 1, 2)))(query, key, value)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  assert (np.asarray(gradients[0])[0, 2] == 0).all()


def test_softmax_of_bfloat16_heads_is_in_float32():
  """512 equal keys: shares of 1/512 each must sum to one, which a bfloat16 sum would miss."""
  length = 512
  key = jnp.zeros((1, length, 1, 8), jnp.bfloat16)
  value = jnp.where(jnp.arange(length) < length // 2 + 1, 1.0, 0.0)[None, :, None, None] * jnp.ones((1, 1, 1, 8))
  attended = attention(jnp.ones((1, 1, 1, 8), jnp.bfloat16), key, value.astype(jnp.bfloat16))
  assert attended.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(attended), (length // 2 + 1) / length, rtol=2**-8)


def test_causal_mask_keeps_documents_and_padding_apart():
  segments = np.asarray([[1, 1, 2, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]])
  mask = np.asarray(dense(causal_mask(segments)))
  for b, row in enumerate(segments):
    for at, own in enumerate(row):
      for seen, other in enumerate(row):
        assert mask[b, at, seen] == (seen <= at and own == other and own > 0)


def test_media_mask_opens_the_latents_of_ones_own_existing_medium():
  index = np.asarray([[-1, 0, 1, 2], [2, 2, -1, 5]])
  exists = np.asarray([[True, True, False], [True, True, True]])
  mask = np.asarray(dense(media_mask(index, exists, 2)))
  assert mask.shape == (2, 4, 6)
  for b, row in enumerate(index):
    for at, own in enumerate(row):
      for latent in range(6):
        slot = latent // 2
        assert mask[b, at, latent] == (slot == own and exists[b, slot])


def test_media_mask_of_previous_media_opens_all_up_to_ones_own():
  index = np.asarray([[-1, 0, 1, 2]])
  exists = np.asarray([[True, False, True]])
  mask = np.asarray(media_mask(index, exists, 2, previous=True))
  for at, own in enumerate(index[0]):
    for latent in range(6):
      assert mask[0, at, latent] == (latent // 2 <= own and exists[0, latent // 2])


# Implementations


@pytest.fixture
def interpreted(monkeypatch):
  """This machine passes for a TPU, and its kernel is computed step by step."""
  monkeypatch.setattr(module, "platform", lambda: "tpu")
  interpret = functools.partial(module.splash.make_splash_mha, interpret=True)
  monkeypatch.setattr(module.splash, "make_splash_mha", interpret)


def on(monkeypatch, platform: str):
  monkeypatch.setattr(module, "platform", lambda: platform)


def packed(length: int, ends: tuple[int, ...]) -> Visibility:
  """Documents that end at these places, then padding."""
  places = np.arange(length)[:, None]
  number = (places >= np.asarray((0, *ends))).sum(axis=1)
  return causal_mask(jnp.asarray(np.where(number > len(ends), 0, number))[None])


def some_media(length: int, latents: int) -> Visibility:
  """Text that sees no medium, an absent one and others, in no order."""
  index = np.random.default_rng(0).integers(-1, 4, (2, length))
  return media_mask(index, np.asarray([[True, True, False, True], [True, False, True, True]]), latents)


MASKS = {  # neither length is a multiple of a block; the first has two blocks each way
  "packed": (packed(570, (260, 560)), (1, 570, 2, 8), (1, 570, 1, 8)),
  "media": (some_media(100, 40), (2, 100, 4, 4), (2, 160, 2, 4)),
  "all": (None, (1, 30, 2, 8), (1, 130, 2, 8)),
}


def of_outputs(mask, implementation: str):
  """(query, key, value) -> gradients of a function of the outputs, and the outputs."""

  def total(query, key, value):
    attended = attention(query, key, value, mask, implementation=implementation)
    return jnp.sin(attended).sum(), attended

  return jax.grad(total, argnums=(0, 1, 2), has_aux=True)


@pytest.mark.parametrize("name", MASKS)
def test_splash_gives_the_outputs_and_gradients_of_xla(jit, interpreted, name):
  mask, query_shape, key_shape = MASKS[name]
  random = np.random.default_rng(4)
  heads = [random.normal(size=shape).astype(np.float32) for shape in (query_shape, key_shape, key_shape)]
  gradients, attended = jit(of_outputs(mask, "splash"))(*heads)
  expected_gradients, expected = jit(of_outputs(mask, "xla"))(*heads)
  np.testing.assert_allclose(attended, expected, atol=1e-5)
  for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_what_may_see_nothing_is_exactly_zero_by_any_implementation(jit, interpreted, implementation):
  query, key, value, _ = random_heads(5, length=6, context=8)
  mask = media_mask(np.asarray([[-1, 0, 1, 2, 3, 0]] * 2), np.asarray([[True, True, False, True]] * 2), 2)
  blind = np.asarray([True, False, False, True, False, False])

  def of_the_blind(*heads):
    attended = attention(*heads, mask, implementation=implementation)
    return jnp.square(attended + 1)[:, blind].sum(), attended

  gradients, attended = jit(jax.grad(of_the_blind, argnums=(0, 1, 2), has_aux=True))(query, key, value)
  assert (np.asarray(attended)[:, blind] == 0).all()
  assert (np.asarray(attended)[:, ~blind] != 0).all()
  assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", MASKS)
def test_cudnn_is_asked_for_the_same_attention_in_lengths_that_it_takes(monkeypatch, name):
  """XLA stands in for cuDNN, which needs a GPU: this is about what it is given."""
  mask, query_shape, key_shape = MASKS[name]
  query_shape, key_shape = (query_shape[0], query_shape[1], 2, 8), (key_shape[0], key_shape[1], 1, 8)
  if name == "media":  # odd, one of a kind that cuDNN trains on without a mask only
    mask = Visibility(mask.query_segments[:, 1:], mask.key_segments[:, 1:])
    query_shape, key_shape = (2, 99, 2, 8), (2, 159, 1, 8)
  random = np.random.default_rng(6)
  heads = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in (query_shape, key_shape, key_shape)]
  expected = attention(*heads, mask, implementation="xla")
  plain, asked = jax.nn.dot_product_attention, []

  def stand_in(query, key, value, *, implementation, mask=None, **given):
    asked.append(implementation)
    assert mask is None or (query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0)
    return plain(query, key, value, mask=mask, **given)

  on(monkeypatch, "gpu")
  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
  found = attention(*heads, mask, implementation="cudnn")
  np.testing.assert_allclose(*(np.asarray(heads, np.float32) for heads in (found, expected)), rtol=2e-2, atol=2e-2)
  assert asked == ["cudnn"]


@pytest.mark.skipif(
  jax.default_backend() != "gpu", reason="cuDNN needs a GPU; with JAX_PLATFORMS=cuda this runs on one"
)
@pytest.mark.parametrize("name", [*MASKS, "dense"])
def test_cudnn_gives_the_outputs_and_gradients_of_xla_on_a_gpu(name):
  dense_mask = (np.random.default_rng(9).random((2, 33, 77)) < 0.5, (2, 33, 4, 8), (2, 77, 2, 8))
  mask, *shapes = dense_mask if name == "dense" else MASKS[name]
  query_shape, key_shape = ((*shape[:3], 64) for shape in shapes)
  random = np.random.default_rng(10)
  heads = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in (query_shape, key_shape, key_shape)]
  exact = [np.asarray(array, np.float32) for array in heads]
  with jax.default_matmul_precision("highest"):
    expected = jax.tree.leaves(jax.jit(of_outputs(mask, "xla"))(*exact))
  found = jax.tree.leaves(jax.jit(of_outputs(mask, "cudnn"))(*heads))
  for array, of_xla in zip(found, expected, strict=True):
    error = np.linalg.norm(np.asarray(array, np.float32) - of_xla) / np.linalg.norm(of_xla)
    assert error < 1e-2


HALF = jnp.zeros((1, 2, 2, 64), jnp.bfloat16)
DENSE, BIAS = jnp.ones((1, 2, 2), bool), jnp.zeros((1, 2, 2, 2))
NUMBERS = causal_mask(jnp.ones((1, 2), jnp.int32))


@pytest.mark.parametrize(
  ("platform", "query", "mask", "bias", "expected"),
  [
    ("tpu", HALF, NUMBERS, None, "splash"),
    ("tpu", HALF.astype(jnp.float32), None, None, "splash"),
    ("tpu", HALF, DENSE, None, "xla"),
    ("tpu", HALF, NUMBERS, BIAS, "xla"),
    ("gpu", HALF, NUMBERS, None, "cudnn"),
    ("gpu", HALF, DENSE, None, "cudnn"),
    ("gpu", HALF.astype(jnp.float32), NUMBERS, None, "xla"),
    ("gpu", HALF[..., :63], NUMBERS, None, "xla"),
    ("gpu", HALF, NUMBERS, BIAS, "xla"),
    ("cpu", HALF, NUMBERS, None, "xla"),
  ],
)
def test_auto_takes_the_fastest_that_computes_it(monkeypatch, platform, query, mask, bias, expected):
  on(monkeypatch, platform)
  assert chosen("auto", query, mask, bias) == expected


@pytest.mark.parametrize(
  ("name", "platform", "query", "mask", "bias", "told"),
  [
    ("flash", "cpu", HALF, None, None, "'flash'; it is one of auto, xla, cudnn, splash"),
    ("cudnn", "cpu", HALF, None, None, "runs on a GPU; this is a CPU"),
    ("splash", "gpu", HALF, None, None, "runs on a TPU; this is a GPU"),
    ("splash", "tpu", HALF, DENSE, None, "no dense mask"),
    ("splash", "tpu", HALF, None, BIAS, "no bias"),
    ("cudnn", "gpu", HALF, None, BIAS, "no bias"),
    ("cudnn", "gpu", HALF.astype(jnp.float32), None, None, "not in float32"),
    ("cudnn", "gpu", HALF[..., :63], None, None, "not 63"),
  ],
)
def test_a_named_implementation_that_cannot_be_had_is_refused(monkeypatch, name, platform, query, mask, bias, told):
  on(monkeypatch, platform)
  with pytest.raises(UserError, match=told):
    attention(query, query, query, mask, bias, implementation=name)


def test_every_layer_of_a_model_attends_by_the_implementation_of_its_config(
  monkeypatch, tiny: FlamingoConfig, parameters, make_batch
):
  on(monkeypatch, "tpu")
  by_xla, asked = module.by_xla, []

  def recorded(query, key, *others):
    asked.append((query.shape[1], key.shape[1]))
    return by_xla(query, key, *others)

  monkeypatch.setattr(module, "IMPLEMENTATIONS", {"splash": recorded})
  model = Flamingo(dataclasses.replace(tiny, attention="splash"))
  jax.eval_shape(model.apply, nested(parameters), make_batch(length=10, media=2, frames=2))
  assert set(asked) == {(4, 4), (3, 2 * 4 + 3), (10, 10), (10, 2 * 3)}  # patches, latents, text, text to latents


# The compiler for TPUs runs anywhere.


@pytest.fixture(scope="module")
def tpus():
  """Four chips to compile for."""
  pytest.importorskip("libtpu")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # this machine is none of them
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other tests compile for TPUs at the same time
    return topologies.get_topology_desc(platform="tpu", topology_name="v4:2x2x1", chip_config_name="megacore").devices


@pytest.mark.parametrize(
  ("sizes", "rows", "query_shape", "key_shape", "causal"),
  [
    ((1, 1, 1), 2, (700, 9, 64), (700, 3, 64), True),
    ((1, 2, 2), 4, (256, 8, 128), (320, 8, 128), False),
    ((1, 2, 2), 1, (30, 9, 80), (30, 3, 80), True),  # neither rows nor groups of heads are divided by the mesh
  ],
)
def test_splash_and_its_gradient_compile_for_tpus(tpus, sizes, rows, query_shape, key_shape, causal):
  count = np.prod(sizes)
  mesh = Mesh(np.reshape(tpus[:count], sizes), ("replica", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
  cut = rows > 1
  spec = PartitionSpec("fsdp", None, "model") if cut else PartitionSpec()
  heads, numbers = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec("fsdp") if cut else PartitionSpec())
  query = jax.ShapeDtypeStruct((rows, *query_shape), jnp.bfloat16, sharding=heads)
  key = jax.ShapeDtypeStruct((rows, *key_shape), jnp.bfloat16, sharding=heads)
  own = jax.ShapeDtypeStruct(query.shape[:2], jnp.int32, sharding=numbers)
  other = jax.ShapeDtypeStruct(key.shape[:2], jnp.int32, sharding=numbers)

  def gradients(query, key, value, own, other):
    return of_outputs(Visibility(own, other, causal), "auto")(query, key, value)

  with jax.set_mesh(mesh):
    program = jax.jit(gradients).lower(query, key, key, own, other).compile().as_text()
  assert program.count("tpu_custom_call") >= 3  # forward, and two for the gradient
  assert "all-gather" not in program
