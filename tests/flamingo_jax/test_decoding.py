"""Writing and scoring from caches against whole forward passes over the same text, for every family of decoders."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams, search
from flamingo_jax.inference.decoding import decode, stream
from flamingo_jax.inference.generate import generate
from flamingo_jax.inference.prefill import bucket, extend, prefill
from flamingo_jax.inference.sampling import Sampling
from flamingo_jax.inference.scoring import score_options
from flamingo_jax.inference.weights import unroll
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig, initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import nested
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig

VOCABULARY, ROWS, SLOTS, WHOLE, NEW = 24, 3, 2, 40, 5
IMAGE, END = VOCABULARY, VOCABULARY + 1
GATED = GatedCrossAttentionConfig(every=2, offset=1, heads=2, head_width=4, feed_forward_multiplier=1)
LANGUAGE = DecoderConfig(
  vocabulary=VOCABULARY, width=16, layers=4, heads=4, key_value_heads=2, feed_forward_width=20, rope_base=100.0
)
BASE = FlamingoConfig(
  vision=FeaturesConfig(width=12, positions=3),
  resampler=PerceiverResamplerConfig(layers=1, latents=3, heads=2, feed_forward_multiplier=1, frames=2),
  cross_attention=GATED,
  language=LANGUAGE,
  dtype="float32",
)


def family(language: dict, gated: dict | None = None) -> FlamingoConfig:
  return dataclasses.replace(
    BASE,
    language=dataclasses.replace(LANGUAGE, **language),
    cross_attention=dataclasses.replace(GATED, **gated or {}),
  )


PLAIN = dict(norm="layer", activation="gelu", gated_feed_forward=False, key_value_heads=4)
FAMILIES = {
  "llama": family({}),
  "neox": family(PLAIN | dict(layers=3, residual="parallel", rotary_share=0.5, bias=True, tied_embeddings=False)),
  "opt": family(PLAIN | dict(positions="learned", position_rows=WHOLE + 2, position_offset=2, bias=True, layers=2)),
  "mpt": family(
    dict(layers=3, norm="layer_without_bias", positions="alibi", query_key_norm=True, residual="shared"),
    dict(after=True),
  ),
  "chinchilla": family(PLAIN | dict(positions="relative", layers=2), dict(every=1, offset=0)),
  "previous media": family(dict(layers=3), dict(previous_media=True, offset=0)),
}
SMALL = family(dict(layers=2))


def text(random: np.random.Generator, rows: int, slots: int, shortest: int, longest: int) -> dict:
  """Ragged rows, each with up to so many media."""
  tokens = random.integers(0, VOCABULARY, (rows, longest), np.int32)
  present = np.arange(longest) < random.integers(shortest, longest + 1, (rows, 1))
  counts = random.permutation(np.arange(rows) % (slots + 1)) if rows > 1 else [slots]
  for row, count in enumerate(counts):
    tokens[row, np.sort(random.choice(shortest, count, replace=False))] = IMAGE
  tokens = np.where(present, tokens, 0)
  there = np.arange(slots) < np.asarray(counts)[:, None]
  frames = np.stack([there, there & (random.random(there.shape) < 0.5)], axis=-1)
  return dict(
    tokens=tokens,
    segments=present.astype(np.int32),
    media_index=np.where(present, np.cumsum(tokens == IMAGE, axis=1) - 1, -1).astype(np.int32),
    media=random.normal(size=(rows, slots, 2, 3, 12)).astype(np.float32),
    media_mask=frames,
  )


def together(first: dict, then: dict) -> dict:
  """Each row's text and media after those of the row before it that it goes on from, as one document."""
  rows, times = len(then["tokens"]), len(then["tokens"]) // len(first["tokens"])
  first = {name: np.repeat(array, times, axis=0) for name, array in first.items()}
  whole = {name: np.zeros((rows, WHOLE), np.int32) for name in ("tokens", "segments", "media_index")}
  slots = first["media"].shape[1]
  for row in range(rows):
    start = int(first["segments"][row].sum())
    own = then["media_index"][row]
    last = first["media_index"][row, start - 1]
    index = np.where(own < 0, last, own + slots)
    for name, after in (("tokens", then["tokens"][row]), ("segments", then["segments"][row]), ("media_index", index)):
      whole[name][row, :start] = first[name][row, :start]
      length = int(then["segments"][row].sum())
      whole[name][row, start : start + length] = after[:length]
  return whole | {name: np.concatenate([first[name], then[name]], axis=1) for name in ("media", "media_mask")}


@pytest.fixture(scope="module")
def weights_of(random_parameters):
  """(config) -> parameters by path, and the same unrolled."""

  @functools.cache
  def make(config: FlamingoConfig):
    parameters = random_parameters(lambda key: initialize(config, key), seed=3)
    return parameters, unroll(config, parameters)

  return make


@pytest.fixture(scope="module")
def forward(jit):
  """(config) -> the compiled pass over whole texts: (parameters, batch) -> logits."""
  return functools.cache(lambda config: jit(lambda p, batch: Flamingo(config).apply(nested(p), batch)))


def plainly(logits, parameters: dict, batch: dict, new: int) -> list[list[int]]:
  """The most likely tokens, a whole forward pass for each."""
  batch = {name: array.copy() for name, array in batch.items()}
  rows, ends = np.arange(len(batch["tokens"])), (batch["segments"] > 0).sum(axis=1)
  for count in range(new):
    at = ends + count
    batch["tokens"][rows, at] = np.asarray(logits(parameters, batch))[rows, at - 1].argmax(axis=-1)
    batch["segments"][rows, at], batch["media_index"][rows, at] = 1, batch["media_index"][rows, at - 1]
  return [batch["tokens"][row, ends[row] : ends[row] + new].tolist() for row in rows]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_after_a_shared_prefix_is_as_without_any_cache(name, weights_of, forward):
  """One prefix, read once, and after it ragged rows with none, one or two media of their own."""
  config = FAMILIES[name]
  parameters, weights = weights_of(config)
  for seed in range(3):
    random = np.random.default_rng(seed)
    prefix, queries = text(random, 1, SLOTS, 9, 14), text(random, ROWS, SLOTS, 4, 9)
    cache = extend(config, weights, prefill(config, weights, prefix), queries)
    whole = together(prefix, queries)
    logits = np.asarray(forward(config)(parameters, whole))
    last = logits[np.arange(ROWS), whole["segments"].sum(axis=1) - 1]
    np.testing.assert_allclose(cache.logits, last, atol=2e-5 * np.abs(last).max())
    found = decode(config, weights, cache, new_tokens=NEW, stop=()).lists()
    assert found == plainly(forward(config), parameters, whole, NEW)


@pytest.mark.parametrize("name", ["opt", "mpt", "previous media"])
def test_options_score_as_whole_forward_passes(name, weights_of, forward):
  config, random = FAMILIES[name], np.random.default_rng(5)
  parameters, weights = weights_of(config)
  prompts = text(random, ROWS, SLOTS, 6, 12)
  options = [[random.integers(0, VOCABULARY, size).tolist() for size in sizes] for sizes in ([3, 1], [4], [2, 5, 1])]
  found = score_options(config, weights, prefill(config, weights, prompts), options)
  assert [len(row) for row in found] == [2, 1, 3]
  for row, own in enumerate(options):
    one = {name: array[row : row + 1] for name, array in prompts.items()}
    for option, score in zip(own, found[row], strict=True):
      after = dict(tokens=np.asarray([option]), segments=np.ones((1, len(option)), np.int32))
      after |= dict(media_index=np.full((1, len(option)), -1), media=one["media"][:, :0])
      whole = together(one, after | dict(media_mask=one["media_mask"][:, :0]))
      likely = np.asarray(jax.nn.log_softmax(forward(config)(parameters, whole)))[0]
      start = int(one["segments"].sum())
      expected = sum(likely[start + place - 1, token] for place, token in enumerate(option))
      assert score == pytest.approx(expected, abs=1e-4)


def test_a_prefix_of_one_row_is_as_one_repeated(weights_of):
  """For writing, for a beam search and for options alike, though it is kept once."""
  config, random = SMALL, np.random.default_rng(6)
  _, weights = weights_of(config)
  prefix = text(random, 1, SLOTS, 9, 14)
  queries = {name: array for name, array in text(random, ROWS, 0, 4, 9).items() if not name.startswith("media_m")}
  del queries["media"]
  shared = prefill(config, weights, prefix)
  copied = prefill(config, weights, {name: np.repeat(array, ROWS, axis=0) for name, array in prefix.items()})
  one, many = (extend(config, weights, cache, queries) for cache in (shared, copied))
  assert one.text[0].layers[0].key.shape[0] == one.media[0].layers[0].key.shape[0] == 1
  np.testing.assert_allclose(one.logits, many.logits, atol=1e-4)
  limits = dict(new_tokens=NEW, stop=(END,))
  assert decode(config, weights, one, **limits).lists() == decode(config, weights, many, **limits).lists()
  first, second = (search(config, weights, cache, **limits) for cache in (one, many))
  np.testing.assert_array_equal(first.tokens, second.tokens)
  options = [[[1, 2, 3], [4]]] * ROWS
  for own, other in zip(
    score_options(config, weights, one, options), score_options(config, weights, many, options), strict=True
  ):
    np.testing.assert_allclose(own, other, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, FAMILIES["previous media"]], ids=["own medium", "previous media"])
def test_rows_do_not_change_each_other(config, weights_of):
  """Another neighbour, with more or fewer media, leaves what a row writes as it was, drawn or searched."""
  _, weights = weights_of(config)
  first, second = (text(np.random.default_rng(seed), ROWS, SLOTS, 6, 12) for seed in (10, 9))
  mixed = {name: np.concatenate([array[:1], second[name][1:]]) for name, array in first.items()}
  assert (first["media_mask"].any(axis=-1).sum(axis=1) != mixed["media_mask"].any(axis=-1).sum(axis=1)).any()
  caches = [prefill(config, weights, prompts) for prompts in (first, mixed)]
  np.testing.assert_array_equal(caches[0].logits[0], caches[1].logits[0])
  drawn = dict(sampling=Sampling(temperature=1.5), key=jax.random.key(0))
  for how in ({}, drawn):
    own, other = (decode(config, weights, cache, new_tokens=NEW, stop=(), **how).lists() for cache in caches)
    assert own[0] == other[0]
    assert own[1:] != other[1:]
  own, other = (search(config, weights, cache, new_tokens=NEW, stop=(END,)) for cache in caches)
  np.testing.assert_array_equal(own.tokens[0], other.tokens[0])


def test_thirty_frames_are_read_through_stretched_embeddings(tiny, parameters, make_batch, logits):
  """A model of two temporal embeddings writes after videos of thirty frames."""
  batch = make_batch(seed=9, rows=2, frames=30)
  prompts = {name: array for name, array in batch.items() if name != "loss_weights"}
  found = generate(tiny, parameters, prompts, new_tokens=2, stop=(), forbidden=())
  whole = prompts | {name: np.pad(prompts[name], ((0, 0), (0, 2))) for name in ("tokens", "segments", "media_index")}
  assert found == plainly(logits, parameters, whole, 2)
  backwards = prompts | dict(media=prompts["media"][:, :, ::-1])
  cache, other = (prefill(tiny, unroll(tiny, parameters), batch) for batch in (prompts, backwards))
  assert np.abs(cache.logits - other.logits).max() > 1e-3


def test_what_decoding_keeps_does_not_grow_with_the_shots(weights_of):
  """Beyond the text itself: one medium a row, however many there were."""
  config, random = SMALL, np.random.default_rng(10)
  _, weights = weights_of(config)
  few, many = (prefill(config, weights, text(random, 1, slots, 12, 14)) for slots in (1, 8))
  assert [heads.key.shape for heads in few.media[0].layers] == [heads.key.shape for heads in many.media[0].layers]
  assert few.media[0].seen.shape == (1, config.resampler.latents)


@pytest.mark.parametrize("how", [{}, dict(sampling=Sampling(1.5, top_k=9, top_p=0.9), key=jax.random.key(4))])
def test_a_stream_has_after_each_token_what_writing_so_many_gives(how, weights_of):
  """Rows that end early too, of which some end with the first token."""
  config = SMALL
  _, weights = weights_of(config)
  cache = prefill(config, weights, text(np.random.default_rng(7), 6, SLOTS, 6, 12))
  free = decode(config, weights, cache, new_tokens=NEW, stop=(), **how).lists()
  for stop in ((), (free[0][0], free[1][2])):
    limits = dict(stop=stop, forbidden=(IMAGE,), **how)
    found = [part.lists() for part in stream(config, weights, cache, new_tokens=NEW, **limits)]
    assert found == [
      decode(config, weights, cache, new_tokens=count, **limits).lists() for count in range(1, len(found) + 1)
    ]
    assert found[-1] == decode(config, weights, cache, new_tokens=NEW, **limits).lists()
  assert not all(len(row) == NEW for row in found[-1])


def test_a_stream_ends_with_its_last_row(weights_of):
  config = SMALL
  _, weights = weights_of(config)
  cache = prefill(config, weights, text(np.random.default_rng(7), 1, SLOTS, 6, 12))
  [free] = decode(config, weights, cache, new_tokens=NEW, stop=()).lists()
  found = list(stream(config, weights, cache, new_tokens=NEW, stop=tuple(free[:1])))
  assert [part.lists() for part in found] == [[[]]]


def test_few_lengths_are_compiled():
  lengths = [bucket(length) for length in range(1, 2049)]
  assert all(length <= padded <= max(16, 1.5 * length + 1) for length, padded in enumerate(lengths, 1))
  assert len(set(lengths)) == 15


# What is refused.


@pytest.fixture(scope="module")
def opt(weights_of):
  """A model of WHOLE positions, its weights, and a prompt."""
  config = FAMILIES["opt"]
  prompt = dict(tokens=np.ones((1, 12), np.int32), segments=np.ones((1, 12), np.int32))
  return config, weights_of(config)[1], prompt | dict(media_index=np.full((1, 12), -1))


def test_text_beyond_the_learned_positions_is_refused_with_what_fits(opt):
  config, weights, prompt = opt
  long = {name: np.repeat(array, 4, axis=1) for name, array in prompt.items()}
  with pytest.raises(UserError, match=r"48 tokens are too many .* end after 40: 0 were read before, so 40 more fit"):
    prefill(config, weights, long)
  cache = prefill(config, weights, prompt)
  with pytest.raises(UserError, match="12 were read before, so 28 more fit"):
    extend(config, weights, cache, {name: np.repeat(array, 3, axis=1) for name, array in prompt.items()})
  with pytest.raises(UserError, match="so 28 more fit"):
    decode(config, weights, cache, new_tokens=30, stop=())
  with pytest.raises(UserError, match="so 28 more fit"):
    score_options(config, weights, cache, [[[1], [1] * 30]])


def test_more_markers_than_media_are_refused(opt):
  config, weights, prompt = opt
  index = prompt["media_index"].copy()
  index[0, 5:] = 1
  with pytest.raises(UserError, match="Row 0 of the prompts has markers of 2 media, but 0 media"):
    prefill(config, weights, prompt | dict(media_index=index))
  media = dict(media=np.zeros((1, 1, 1, 3, 12), np.float32), media_mask=np.ones((1, 1, 1), bool))
  with pytest.raises(UserError, match="has markers of 2 media, but 1 media"):
    prefill(config, weights, prompt | media | dict(media_index=index))


def test_other_faults_are_told(opt):
  config, weights, prompt = opt
  segments = prompt["segments"].copy()
  segments[0, 0] = 0
  with pytest.raises(UserError, match="padding before its text"):
    prefill(config, weights, prompt | dict(segments=segments))
  cache = prefill(config, weights, prompt)
  with pytest.raises(UserError, match="new_tokens is 0"):
    decode(config, weights, cache, new_tokens=0, stop=())
  with pytest.raises(UserError, match="drawing needs a key"):
    decode(config, weights, cache, new_tokens=1, stop=(), sampling=Sampling(temperature=1.0))
  with pytest.raises(UserError, match="new_tokens is 0"):
    next(stream(config, weights, cache, new_tokens=0, stop=()))
  with pytest.raises(UserError, match="width of a beam search is 0"):
    search(config, weights, cache, new_tokens=1, stop=(), beams=Beams(width=0))
  with pytest.raises(UserError, match="needs 40 tokens to choose from"):
    search(config, weights, cache, new_tokens=1, stop=(END,), beams=Beams(width=20))
  with pytest.raises(UserError, match="Prompt 0 has no options, or one without a token"):
    score_options(config, weights, cache, [[[1], []]])
  with pytest.raises(UserError, match="3 rows after a cache of 2"):
    extend(config, weights, cache.repeated(2), {name: np.repeat(array, 3, axis=0) for name, array in prompt.items()})
