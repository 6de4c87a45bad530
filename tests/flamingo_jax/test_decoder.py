import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import (
  Decoder,
  DecoderConfig,
  Media,
  gated_layers,
  group_layers,
  plan_groups,
  ungroup_layers,
)
from flamingo_jax.models.parameters import nested

SIZES = dict(vocabulary=11, width=8, heads=4, key_value_heads=2, feed_forward_width=12, rope_base=50.0)
TOKENS = np.asarray([[1, 12, 3, 4, 11, 6], [7, 0, 11, 0, 10, 5]], np.int32)
SEGMENTS = np.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)


def gated_every(every: int, offset: int = 0) -> GatedCrossAttentionConfig:
  return GatedCrossAttentionConfig(every=every, offset=offset, heads=2, head_width=4, feed_forward_multiplier=1)


def some_media() -> Media:
  latents = np.random.default_rng(5).normal(size=(2, 4, 6)).astype(np.float32)
  return Media(jnp.asarray(latents), jnp.ones((2, 6, 4), bool))


@pytest.fixture(scope="module")
def forward(jit):
  """The compiled forward pass of a decoder: (config, cross-attention config) -> parameters -> logits."""

  @functools.cache
  def compiled(config: DecoderConfig, cross_attention: GatedCrossAttentionConfig | None = None):
    media = None if cross_attention is None else some_media()
    decoder = Decoder(config, jnp.float32, cross_attention)
    return jit(lambda parameters: decoder.apply(nested(parameters), TOKENS, SEGMENTS, media))

  return compiled


def initializer(config: DecoderConfig, cross_attention: GatedCrossAttentionConfig | None = None):
  decoder = Decoder(config, jnp.float32, cross_attention)
  media = None if cross_attention is None else some_media()
  return lambda key: decoder.init(key, TOKENS, SEGMENTS, media)["params"]


def grouped(plain: dict, layers: int, cross_attention: GatedCrossAttentionConfig) -> dict:
  """The weights of a plain decoder, laid out for one with gated layers."""
  return group_layers(ungroup_layers(plain), layers, cross_attention)


def numpy_llama(reference, config: DecoderConfig, weights: dict) -> np.ndarray:
  """The decoder written once more: complex rotations, one document at a time."""

  def norm(scale, x):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_epsilon) * scale

  def turn(x):
    half = config.key_width // 2
    angles = np.arange(x.shape[1])[:, None, None] * config.rope_base ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)

  weights = {path: np.float64(array) for path, array in weights.items()}
  rows = np.concatenate([weights["embeddings"], weights["extra_embeddings"]])
  columns = rows
  if not config.tied_embeddings:
    columns = np.concatenate([weights["unembeddings"], weights["extra_unembeddings"]])
  logits = np.full((*TOKENS.shape, config.vocabulary + config.extra_tokens), np.nan)
  for b, row in enumerate(SEGMENTS):
    for document in set(row) - {0}:
      places = np.nonzero(row == document)[0]
      x = rows[TOKENS[b, places]][None]
      causal = np.tril(np.ones((1, len(places), len(places)), bool))
      for layer in range(config.layers):
        p = reference.below(weights, "prefix/", layer)
        normed = norm(p["attention_norm/scale"], x)
        query, key, value = (
          np.einsum("bld,dhk->blhk", normed, p[f"attention/{name}/kernel"]) for name in ("query", "key", "value")
        )
        attended = reference.attention(turn(query), turn(key), value, causal)
        x = x + np.einsum("blhk,hkd->bld", attended, p["attention/output/kernel"])
        normed = norm(p["feed_forward_norm/scale"], x)
        gate = normed @ p["feed_forward/gate/kernel"]
        hidden = gate / (1 + np.exp(-gate)) * (normed @ p["feed_forward/up/kernel"])
        x = x + hidden @ p["feed_forward/down/kernel"]
      logits[b, places] = norm(weights["norm/scale"], x)[0] @ columns.T
  return logits


@pytest.mark.parametrize("tied", [True, False])
def test_logits_match_numpy(forward, reference, random_parameters, tied):
  config = DecoderConfig(layers=2, tied_embeddings=tied, **SIZES)
  weights = random_parameters(initializer(config))
  expected = numpy_llama(reference, config, weights)
  found = np.asarray(forward(config)(weights))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found[SEGMENTS > 0], expected[SEGMENTS > 0], atol=1e-4)


def test_a_decoder_without_extra_tokens_has_the_same_logits_for_the_others(jit, random_parameters):
  config = DecoderConfig(layers=1, **SIZES)
  weights = random_parameters(initializer(config))
  bare = Decoder(DecoderConfig(layers=1, extra_tokens=0, **SIZES), jnp.float32)
  known = np.minimum(TOKENS, 10)
  without = {path: array for path, array in weights.items() if path != "extra_embeddings"}
  full = jit(Decoder(config, jnp.float32).apply)(nested(weights), known, SEGMENTS)
  np.testing.assert_array_equal(jit(bare.apply)(nested(without), known, SEGMENTS), full[..., :11])


@pytest.mark.parametrize(
  ("layers", "every", "offset"),
  [(3, 1, 0), (4, 2, 0), (5, 2, 1), (8, 3, 1), (7, 3, 0), (5, 7, 0), (6, 4, 5), (4, 4, 3)],
)
def test_shut_gates_leave_the_plain_decoder(forward, random_parameters, layers, every, offset):
  config, cross_attention = DecoderConfig(layers=layers, **SIZES), gated_every(every, offset)
  plain = random_parameters(initializer(config))
  gated = random_parameters(initializer(config, cross_attention), seed=1)
  weights = gated | grouped(plain, layers, cross_attention)
  assert weights.keys() == gated.keys()
  shut = {path: array * (not path.endswith("_gate")) for path, array in weights.items()}
  expected = np.asarray(forward(config)(plain))
  np.testing.assert_array_equal(forward(config, cross_attention)(shut), expected)
  assert np.abs(forward(config, cross_attention)(weights) - expected).max() > 1e-2


@pytest.mark.parametrize(("layers", "every", "offset"), [(8, 3, 1), (6, 2, 0)])
def test_gated_layers_stand_before_the_layers_they_are_said_to(forward, random_parameters, layers, every, offset):
  """One gate opened at a time: the output is that of a decoder whose only gated layer stands there."""
  config, cross_attention = DecoderConfig(layers=layers, **SIZES), gated_every(every, offset)
  plain = random_parameters(initializer(config))
  gated = random_parameters(initializer(config, cross_attention), seed=1)
  every_gated = gated | grouped(plain, layers, cross_attention)
  places = gated_layers(layers, cross_attention)
  plan = plan_groups(layers, cross_attention)
  assert len(places) == plan.groups + (plan.tail is not None)
  for number, place in enumerate(places):
    stack, index = ("groups", number) if number < plan.groups else ("tail", ...)
    one_open = dict(every_gated)
    for path in every_gated:
      if path.endswith("_gate"):
        one_open[path] = np.zeros_like(every_gated[path])
        if path.startswith(stack):
          one_open[path][index] = 0.7
    lone = gated_every(every=layers, offset=place)
    alone = grouped(plain, layers, lone)
    (holder,) = {"groups/", "tail/"} & {path.split("/")[0] + "/" for path in alone}
    for path, array in one_open.items():
      if path.startswith(f"{stack}/gated_cross_attention/"):
        own = array[index]
        alone[holder + path.removeprefix(f"{stack}/")] = own[None] if holder == "groups/" else own
    expected = forward(config, lone)(alone)
    np.testing.assert_allclose(forward(config, cross_attention)(one_open), expected, atol=1e-5)


@pytest.mark.parametrize(
  ("layers", "every", "offset", "count", "last"),
  [(24, 1, 0, 24, 23), (40, 4, 0, 10, 36), (80, 7, 0, 12, 77), (32, 4, 3, 8, 31), (8, 3, 1, 3, 7)],
)
def test_as_many_gated_layers_as_in_the_paper(layers, every, offset, count, last):
  places = gated_layers(layers, gated_every(every, offset))
  assert len(places) == count
  assert (places[0], places[-1]) == (offset, last)
  plan = plan_groups(layers, gated_every(every, offset))
  assert plan.prefix + plan.groups * plan.group_layers + (plan.tail or 0) == layers
  assert plan.groups + (plan.tail is not None) == count


def test_only_the_extra_rows_of_the_table_see_extra_tokens(jit, random_parameters):
  """The gradient of a token's input reaches its own row and no other."""
  config = DecoderConfig(layers=1, tied_embeddings=False, **SIZES)
  weights = random_parameters(initializer(config))
  decoder = Decoder(config, jnp.float32)

  def loss(parameters):
    return jnp.square(decoder.apply(nested(parameters), jnp.asarray(TOKENS), SEGMENTS)[0, :2]).sum()

  gradient = jit(jax.grad(loss))(weights)
  np.testing.assert_array_equal(np.nonzero(np.any(gradient["embeddings"], axis=1))[0], [1])
  np.testing.assert_array_equal(np.nonzero(np.any(gradient["extra_embeddings"], axis=1))[0], [1])
