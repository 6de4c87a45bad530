import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.flamingo import Flamingo, initialize
from flamingo_jax.models.language.decoder import Decoder, group_layers, ungroup_layers
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.training.objectives import flamingo_objective, mean


def without_mixing(parameters: dict) -> dict:
  """Self-attention of the language model adds nothing: a token sees its own medium and nothing else."""
  silent = {path: np.zeros_like(p) for path, p in parameters.items() if path.endswith("attention/output/kernel")}
  language = {path: p for path, p in silent.items() if path.startswith("language/") and "gated" not in path}
  assert len(language) == 3
  return parameters | language


def other_pixels(batch: dict, row: int, slot: int) -> dict:
  media = batch["media"].copy()
  media[row, slot] = 255 - media[row, slot]
  return batch | {"media": media}


def changed(logits, parameters: dict, batch: dict, other: dict) -> np.ndarray:
  """Which tokens' logits differ between two batches, bit for bit."""
  return np.asarray(logits(parameters, batch) != logits(parameters, other)).any(axis=-1)


def fresh_gates(jit, config) -> dict:
  """The gates as `initialize` makes them; the compiler leaves the other parameters out."""

  def gates(key):
    return {path: p for path, p in flat(initialize(config, key)).items() if path.endswith("_gate")}

  return jit(gates)(jax.random.key(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_step_0_the_logits_are_the_frozen_language_models(jit, tiny, parameters, make_batch, dtype):
  config, batch = dataclasses.replace(tiny, dtype=dtype), make_batch()
  parameters = parameters | fresh_gates(jit, config)
  decoder = Decoder(config.language, jnp.dtype(dtype))
  plain = jax.eval_shape(decoder.init, jax.random.key(0), batch["tokens"], batch["segments"])["params"]
  language = {path.removeprefix("language/"): p for path, p in parameters.items() if path.startswith("language/")}
  layers = group_layers(ungroup_layers(language), 4, None)
  alone = {path: array for path, array in layers.items() if "gated_cross_attention" not in path}
  assert alone.keys() == flat(plain).keys()
  found = jit(lambda p: Flamingo(config).apply(nested(p), batch))(parameters)
  expected = jit(lambda p: decoder.apply(nested(p), batch["tokens"], batch["segments"]))(alone)
  np.testing.assert_array_equal(found, expected)


def test_text_before_the_first_image_sees_no_media(parameters, logits, make_batch):
  batch = make_batch()
  before = batch["media_index"] == -1
  before &= np.cumsum(batch["media_index"] >= 0, axis=1) == 0
  assert before.any(axis=1).all()
  difference = changed(logits, parameters, batch, batch | {"media": 255 - batch["media"]})
  assert not difference[before].any()
  assert difference[batch["media_index"] >= 0].all()


def test_text_before_the_first_image_has_no_gradient_to_the_latents(jit, tiny, parameters, make_batch):
  batch = make_batch()
  before = np.cumsum(batch["media_index"] >= 0, axis=1) == 0
  latents = np.random.default_rng(0).normal(size=(2, 2, 3, 16)).astype(np.float32)

  @jit
  @jax.grad
  def gradient(latents, parameters, batch, positions):
    read = Flamingo(tiny).apply(nested(parameters), batch, latents, method=Flamingo.read)
    return (jnp.square(read) * positions[..., None]).sum()

  assert (np.asarray(gradient(latents, parameters, batch, before)) == 0).all()
  assert (np.asarray(gradient(latents, parameters, batch, ~before)) != 0).all()


def test_a_token_sees_its_own_medium_only(parameters, logits, make_batch):
  batch = make_batch(media=3)
  for slot in range(3):
    difference = changed(logits, without_mixing(parameters), batch, other_pixels(batch, 0, slot))
    np.testing.assert_array_equal(difference[0], batch["media_index"][0] == slot)
    assert not difference[1].any()


def test_an_image_followed_at_once_by_another_is_seen_by_its_own_marker_only(parameters, logits, make_batch):
  batch = make_batch() | {"segments": np.ones((2, 10), np.int32)}
  batch["media_index"] = np.asarray([[-1, -1, 0, 1, 1, 1, 1, 1, 1, 1]] * 2, np.int32)
  difference = changed(logits, without_mixing(parameters), batch, other_pixels(batch, 0, 0))
  assert np.nonzero(difference[0])[0].tolist() == [2]


def test_an_image_reaches_later_text_through_self_attention(parameters, logits, make_batch):
  batch = make_batch()
  first = int(np.argmax(batch["media_index"][0] == 0))
  difference = changed(logits, parameters, batch, other_pixels(batch, 0, 0))
  present = batch["segments"][0] > 0
  np.testing.assert_array_equal(difference[0], (np.arange(10) >= first) & present)


def test_one_rows_images_do_not_change_another_rows_logits(parameters, logits, make_batch):
  batch = make_batch(rows=3)
  other = other_pixels(other_pixels(batch, 1, 0), 1, 1)
  assert changed(logits, parameters, batch, other).any(axis=1).tolist() == [False, True, False]


def test_a_packed_row_equals_its_documents_in_rows_of_their_own(parameters, logits, make_batch):
  alone = make_batch()
  lengths = (alone["segments"] > 0).sum(axis=1)
  total = lengths.sum()
  packed = {name: np.zeros((1, total), np.int32) for name in ("tokens", "segments", "media_index")}
  starts = [0, lengths[0]]
  for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
    place = slice(start, start + length)
    index = alone["media_index"][row, :length]
    packed["tokens"][0, place] = alone["tokens"][row, :length]
    packed["segments"][0, place] = row + 1
    packed["media_index"][0, place] = np.where(index < 0, -1, index + 2 * row)
  packed["media"] = alone["media"].reshape(1, 4, *alone["media"].shape[2:])
  packed["media_mask"] = alone["media_mask"].reshape(1, 4, -1)
  found, expected = logits(parameters, packed), logits(parameters, alone)
  for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
    np.testing.assert_allclose(found[0, start : start + length], expected[row, :length], atol=1e-5)


def test_frames_that_do_not_exist_are_not_seen(parameters, logits, make_batch):
  batch = make_batch()
  batch["media_mask"][:, 0, 1] = False
  noise = np.where(batch["media_mask"][..., None, None, None], batch["media"], 255 - batch["media"])
  assert not changed(logits, parameters, batch, batch | {"media": noise}).any()


def test_a_medium_without_frames_is_like_no_medium(parameters, logits, make_batch):
  batch = make_batch()
  batch["media_mask"][0, 0] = False
  none = batch | {"media_index": np.where(batch["media_index"] == 0, -1, batch["media_index"])}
  none["media_index"][1] = batch["media_index"][1]
  assert not changed(logits, parameters, batch, none).any()


def numpy_loss(logits: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> float:
  logits = np.float64(logits)
  total = 0.0
  for b, at in np.ndindex(tokens.shape):
    if at:
      shares = np.exp(logits[b, at - 1] - logits[b, at - 1].max())
      total -= weights[b, at] * np.log(shares[tokens[b, at]] / shares.sum())
  return total


def test_without_loss_positions_loss_and_gradient_are_exactly_zero(jit, tiny, parameters, make_batch):
  batch = make_batch()
  batch["loss_weights"][:] = 0
  objective = flamingo_objective(tiny)

  def value(parameters):
    loss = objective.loss(parameters, batch)
    return mean(loss.total, loss.weight), (loss.total, loss.weight)

  (value, (total, weight)), gradient = jit(jax.value_and_grad(value, has_aux=True))(parameters)
  assert float(value) == float(total) == float(weight) == 0.0
  assert all((np.asarray(array) == 0).all() for array in gradient.values())


def test_reported_text_loss_leaves_out_the_added_tokens(jit, tiny, parameters, logits, make_batch):
  batch = make_batch(seed=3)
  parts = jit(lambda p: flamingo_objective(tiny).loss(p, batch).parts)(parameters)
  ordinary = batch["loss_weights"] * (batch["tokens"] < tiny.language.vocabulary)
  assert ordinary.sum() < batch["loss_weights"].sum()
  total, weight = parts["text_loss"]
  assert float(total) == pytest.approx(numpy_loss(logits(parameters, batch), batch["tokens"], ordinary), rel=1e-5)
  assert float(weight) == ordinary[:, 1:].sum()


def test_the_loss_of_a_bfloat16_model_is_in_float32(jit, tiny, parameters, make_batch):
  """Thirty slightly different models: a loss in bfloat16 would take one or two values."""
  objective = flamingo_objective(dataclasses.replace(tiny, dtype="bfloat16"))
  batch = make_batch()

  @jit
  def loss(step, parameters, batch):
    scaled = parameters | {"language/extra_embeddings": parameters["language/extra_embeddings"] * (1 + step * 2e-3)}
    found = objective.loss(scaled, batch)
    return mean(found.total, found.weight)

  values = [loss(step, parameters, batch) for step in range(30)]
  assert values[0].dtype == jnp.float32
  assert np.ptp(values) < 0.25
  assert len({float(value) for value in values}) > 15


def test_a_vision_encoder_that_is_trained_keeps_no_more_activations_than_the_policy_says(tiny, make_batch):
  deep = dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, layers=8))

  def temporaries(remat: str) -> int:
    model = Flamingo(dataclasses.replace(deep, remat=remat))
    parameters = flat(jax.eval_shape(lambda key: initialize(deep, key), jax.random.key(0)))
    shapes = {path: jax.ShapeDtypeStruct(shape.shape, shape.dtype) for path, shape in parameters.items()}
    batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct((64, *array.shape[1:]), array.dtype), make_batch())

    def seen(parameters: dict, batch: dict) -> jax.Array:
      return model.apply(nested(parameters), batch["media"], batch["media_mask"], method="see").sum()

    slope = jax.jit(jax.grad(seen))
    return slope.lower(shapes, batch).compile().memory_analysis().temp_size_in_bytes

  assert temporaries("full") < 0.5 * temporaries("none")
