import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import (
  Decoder,
  DecoderConfig,
  DecoderLayer,
  Media,
  SelfAttention,
  gated_layers,
  group_layers,
  plan_groups,
  ungroup_layers,
)
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.ops.attention import causal_mask
from flamingo_jax.ops.positions import segment_positions

SIZES = dict(vocabulary=11, width=8, heads=4, key_value_heads=2, feed_forward_width=12, rope_base=50.0)
TOKENS = np.asarray([[1, 12, 3, 4, 11, 6], [7, 0, 11, 0, 10, 5]], np.int32)
SEGMENTS = np.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)


# Plans of gated layers: layers, every, offset, after. The last ones have a gated layer after the last layer of all.
PLANS = [
  *[(3, 1, 0, False), (4, 2, 0, False), (5, 2, 1, False), (8, 3, 1, False)],
  *[(7, 3, 0, False), (5, 7, 0, False), (6, 4, 5, False), (4, 4, 3, False)],
  *[(8, 3, 1, True), (6, 3, 0, True), (5, 7, 0, True)],
  *[(3, 1, 0, True), (4, 2, 1, True), (7, 3, 0, True), (4, 4, 3, True)],
]


def gated_every(every: int, offset: int = 0, after: bool = False) -> GatedCrossAttentionConfig:
  return GatedCrossAttentionConfig(
    every=every, offset=offset, after=after, heads=2, head_width=4, feed_forward_multiplier=1
  )


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


@pytest.mark.parametrize(("layers", "every", "offset", "after"), PLANS)
def test_shut_gates_leave_the_plain_decoder(forward, random_parameters, layers, every, offset, after):
  config, cross_attention = DecoderConfig(layers=layers, **SIZES), gated_every(every, offset, after)
  plain = random_parameters(initializer(config))
  gated = random_parameters(initializer(config, cross_attention), seed=1)
  weights = gated | grouped(plain, layers, cross_attention)
  assert weights.keys() == gated.keys()
  shut = {path: array * (not path.endswith("_gate")) for path, array in weights.items()}
  expected = np.asarray(forward(config)(plain))
  np.testing.assert_array_equal(forward(config, cross_attention)(shut), expected)
  assert np.abs(forward(config, cross_attention)(weights) - expected).max() > 1e-2


@pytest.mark.parametrize(("layers", "every", "offset", "after"), PLANS)
def test_the_decoder_is_its_layers_one_after_the_other(
  forward, apply_layer, random_parameters, layers, every, offset, after
):
  """No scan and no groups: layer by layer, a gated one before or after each of its own."""
  config, cross_attention = DecoderConfig(layers=layers, **SIZES), gated_every(every, offset, after)
  weights = random_parameters(initializer(config, cross_attention))
  stored = ungroup_layers(weights)
  decoder = Decoder(config, jnp.float32, cross_attention)
  x = decoder.apply(nested(weights), TOKENS, method="embed")
  number = 0
  for layer in range(layers):
    gated = layer >= offset and (layer - offset) % every == 0
    if gated and not after:
      x = apply_layer(cross_attention, layer_of(stored, "gated_cross_attention/", number), x)
    x = apply_layer(config, layer_of(stored, "layers/", layer), x)
    if gated and after:
      x = apply_layer(cross_attention, layer_of(stored, "gated_cross_attention/", number), x)
    number += gated
  assert number == len(stored["gated_cross_attention/attention_gate"])
  expected = decoder.apply(nested(weights), x, method=lambda decoder, x: decoder.unembed(decoder.norm(x)))
  np.testing.assert_allclose(forward(config, cross_attention)(weights), expected, atol=1e-4)


def layer_of(stored: dict, prefix: str, number: int) -> dict:
  """The parameters of one layer of a stack."""
  return {path.removeprefix(prefix): array[number] for path, array in stored.items() if path.startswith(prefix)}


@pytest.fixture(scope="module")
def apply_layer(jit):
  """One layer on its own, gated or plain as its config says: (config, parameters, x) -> x."""

  @functools.cache
  def compiled(config):
    if isinstance(config, DecoderConfig):
      layer = DecoderLayer(config, jnp.float32)
      mask, positions = causal_mask(SEGMENTS), segment_positions(SEGMENTS)
      return jit(lambda parameters, x: layer.apply(nested(parameters), x, mask, positions)[0])
    layer, media = GatedCrossAttention(config, jnp.float32), some_media()
    return jit(lambda parameters, x: layer.apply(nested(parameters), x, media.latents, media.mask))

  def apply(config, parameters, x):
    same_for_all = dict(layers=1) if isinstance(config, DecoderConfig) else dict(every=1, offset=0, after=False)
    return compiled(dataclasses.replace(config, **same_for_all))(parameters, x)

  return apply


@pytest.mark.parametrize(("layers", "every", "offset", "after"), PLANS)
def test_grouping_is_undone_to_the_bit(random_parameters, layers, every, offset, after):
  config, cross_attention = DecoderConfig(layers=layers, **SIZES), gated_every(every, offset, after)
  weights = random_parameters(initializer(config, cross_attention))
  stored = ungroup_layers(weights)
  assert not {path.split("/")[0] for path in stored} & {"prefix", "groups", "tail"}
  assert {len(array) for path, array in stored.items() if path.startswith("layers/")} == {layers}
  again = group_layers(stored, layers, cross_attention)
  assert again.keys() == weights.keys()
  for path, array in again.items():
    np.testing.assert_array_equal(array, weights[path], strict=True)


@pytest.mark.parametrize(
  ("layers", "every", "offset", "count", "last"),
  [(24, 1, 0, 24, 23), (40, 4, 0, 10, 36), (80, 7, 0, 12, 77), (32, 4, 3, 8, 31), (8, 3, 1, 3, 7)],
)
@pytest.mark.parametrize("after", [False, True])
def test_as_many_gated_layers_as_in_the_paper(layers, every, offset, count, last, after):
  places = gated_layers(layers, gated_every(every, offset, after))
  assert len(places) == count
  assert (places[0], places[-1]) == (offset, last)
  plan = plan_groups(layers, gated_every(every, offset, after))
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


POSITIONS = {
  "learned": dict(positions="learned", position_rows=9, position_offset=2),
  "alibi": dict(positions="alibi"),
  "rotary": dict(positions="rotary"),
  "part of each head rotary": dict(positions="rotary", rotary_share=0.5, head_width=4),
  "relative": dict(positions="relative", key_value_heads=4),
}


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_documents_compute_what_they_would_alone(jit, random_parameters, positions):
  config = DecoderConfig(layers=2, **SIZES | POSITIONS[positions])
  weights = random_parameters(initializer(config))
  logits = jit(Decoder(config, jnp.float32).apply)
  packed = np.asarray([[1, 5, 3, 9, 4, 12, 6, 0]], np.int32)
  segments = np.asarray([[1, 1, 2, 2, 2, 2, 2, 0]], np.int32)
  alone = np.asarray([[1, 5, 0, 0, 0, 0, 0, 0], [3, 9, 4, 12, 6, 0, 0, 0]], np.int32)
  present = np.asarray([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
  found, expected = logits(nested(weights), packed, segments)[0], logits(nested(weights), alone, present)
  np.testing.assert_allclose(found[:2], expected[0, :2], atol=1e-5)
  np.testing.assert_allclose(found[2:7], expected[1, :5], atol=1e-5)
  as_one = logits(nested(weights), packed, (segments > 0).astype(np.int32))[0]
  assert np.abs(found[2:7] - as_one[2:7]).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_order_of_earlier_tokens_matters(jit, random_parameters, positions):
  """One layer of attention without positions would give the last token the same whatever the order."""
  config = DecoderConfig(layers=1, **SIZES | POSITIONS[positions])
  weights = random_parameters(initializer(config))
  logits = jit(Decoder(config, jnp.float32).apply)
  orders = np.asarray([[1, 5, 3, 9], [5, 1, 3, 9]], np.int32)
  first, second = logits(nested(weights), orders, np.ones_like(orders))[:, -1]
  assert np.abs(first - second).max() > 1e-3


def test_with_one_norm_for_both_is_parallel_with_two_equal_norms(jit, random_parameters):
  shared = DecoderConfig(layers=2, residual="shared", **SIZES)
  parallel = dataclasses.replace(shared, residual="parallel")
  weights = random_parameters(initializer(shared))
  assert not any("feed_forward_norm" in path for path in weights)
  twice = weights | {"prefix/feed_forward_norm/scale": weights["prefix/attention_norm/scale"]}
  found, expected, sequential = (
    jit(Decoder(config, jnp.float32).apply)(nested(parameters), TOKENS, SEGMENTS)
    for config, parameters in (
      (shared, weights),
      (parallel, twice),
      (dataclasses.replace(shared, residual="sequential"), twice),
    )
  )
  np.testing.assert_array_equal(found, expected)
  assert np.abs(found - sequential).max() > 1e-2


def transformer_xl(p: dict, x: np.ndarray, heads: int, width: int) -> np.ndarray:
  """Attention with relative positions (Dai et al., 2019, section 3.3), [L, D] to [L, D], written term by term.

  Query i and key j of a head score (q_i + u) k_j + (q_i + v) W r_{i-j}, where r is the sinusoid of a distance.
  """
  length, model_width = x.shape
  attended = np.zeros((length, heads, width))
  for head in range(heads):
    for i in range(length):
      query = x[i] @ p["query/kernel"][:, head]
      scores = np.zeros(i + 1)
      for j in range(i + 1):
        key = x[j] @ p["key/kernel"][:, head]
        r = np.zeros(model_width)
        for place in range(model_width // 2):
          angle = (i - j) / 10_000 ** (2 * place / model_width)
          r[place], r[model_width // 2 + place] = np.sin(angle), np.cos(angle)
        content = (query + p["content_bias"][head]) @ key
        distance = (query + p["distance_bias"][head]) @ (r @ p["distance/kernel"][:, head])
        scores[j] = (content + distance) / np.sqrt(width)
      shares = np.exp(scores - scores.max())
      attended[i, head] = shares / shares.sum() @ (x[: i + 1] @ p["value/kernel"][:, head])
  return np.einsum("lhk,hkd->ld", attended, p["output/kernel"])


@pytest.fixture(scope="module")
def relative_attention(jit, random_parameters):
  """Transformer-XL's attention over two documents in a row: its config, parameters, and x -> attended."""
  config = DecoderConfig(**SIZES | dict(positions="relative", key_value_heads=4, head_width=3))
  attention = SelfAttention(config, jnp.float32)
  segments = np.asarray([[1, 1, 1, 1, 1, 1, 2, 2, 2]])
  mask, positions = causal_mask(segments), segment_positions(segments)
  x = np.zeros((1, 9, config.width), np.float32)
  weights = random_parameters(lambda key: attention.init(key, x, mask, positions)["params"])
  return config, weights, jit(lambda x: attention.apply(nested(weights), x, mask, positions))


def test_relative_positions_are_those_of_transformer_xl(relative_attention):
  config, weights, attend = relative_attention
  x = np.random.default_rng(7).normal(size=(1, 9, config.width)).astype(np.float32)
  double = {path: np.float64(array) for path, array in weights.items()}
  documents = [transformer_xl(double, np.float64(x[0, own]), 4, 3) for own in (slice(0, 6), slice(6, 9))]
  np.testing.assert_allclose(attend(x)[0], np.concatenate(documents), atol=1e-5)


@pytest.mark.parametrize("changed", [0, 4, 5, 6, 8])
def test_later_keys_and_other_documents_are_shut_from_relative_positions(relative_attention, changed):
  """Their scores are of no real distance. What one token was is seen from itself to the end of its document."""
  config, _, attend = relative_attention
  x = np.random.default_rng(8).normal(size=(1, 9, config.width)).astype(np.float32)
  other = x.copy()
  other[0, changed] += 1
  differs = np.any(np.asarray(attend(x)) != np.asarray(attend(other)), axis=-1)[0]
  np.testing.assert_array_equal(np.nonzero(differs)[0], range(changed, 6 if changed < 6 else 9))


def test_a_chinchilla_layer_has_thirteen_times_the_squared_width():
  """Four maps of attention, one of distances, eight in the feed-forward block; without norms and the two biases."""
  config = DecoderConfig(
    vocabulary=32_000,
    width=2048,
    layers=24,
    heads=16,
    key_value_heads=16,
    feed_forward_width=4 * 2048,
    activation="gelu",
    gated_feed_forward=False,
    positions="relative",
    extra_tokens=0,
  )
  shapes = flat(jax.eval_shape(initializer(config), jax.random.key(0)))
  counts = {path: int(np.prod(array.shape)) for path, array in shapes.items()}
  kernels = sum(count for path, count in counts.items() if path.endswith("kernel"))
  assert kernels == 24 * 13 * 2048**2
  assert kernels + counts["embeddings"] == pytest.approx(1.37e9, rel=0.01)
  small = {path.removeprefix("prefix/") for path in counts if not path.endswith("kernel")} - {"embeddings"}
  biases = {"attention/content_bias", "attention/distance_bias"}
  assert small == {"norm/scale", "attention_norm/scale", "feed_forward_norm/scale"} | biases


@pytest.mark.parametrize(("table", "token"), [("embeddings", 3), ("extra_embeddings", 11), ("position_embeddings", 3)])
def test_gradients_of_a_token_that_stands_everywhere_are_summed_in_float32(jit, table, token):
  """In bfloat16 a sum of thousands stops growing at some 256 times what is added to it."""
  rows = 2048
  config = DecoderConfig(**SIZES, layers=1, extra_tokens=2, positions="learned", position_rows=4)
  decoder = Decoder(config, jnp.bfloat16)
  tokens = np.full((rows, 1), token, np.int32)
  shapes = flat(
    jax.eval_shape(lambda key: decoder.init(key, tokens, np.ones_like(tokens))["params"], jax.random.key(0))
  )
  parameters = {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in shapes.items()}
  added = 1 + 0.5 * np.random.default_rng(0).normal(size=(rows, 1, config.width))
  added = jnp.asarray(added, jnp.bfloat16)

  def see(parameters):
    def embedded(decoder):
      return decoder.place(decoder.embed(tokens), np.zeros_like(tokens))

    return (decoder.apply(nested(parameters), method=embedded).astype(jnp.float32) * added).sum()

  found = np.asarray(jit(jax.grad(see))(parameters)[table])
  np.testing.assert_allclose(found.sum(axis=0), np.asarray(added, np.float64).sum(axis=(0, 1)), rtol=1e-3)
