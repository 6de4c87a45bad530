import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.evaluation.held_out import (
  LossMeter,
  evaluate_flamingo,
  gates,
  no_media,
  other_media,
  plain_text,
)
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.objectives import Loss, Objective, flamingo_objective


def random_media(seed: int) -> dict[str, np.ndarray]:
  """A batch of up to 6 rows and 4 slots, some empty; every medium's pixels are its own number, from 1."""
  random = np.random.default_rng(seed)
  rows, slots, frames = random.integers(1, (7, 5, 4))
  mask = random.random((rows, slots, frames)) < random.uniform(0.1, 1.0)
  numbers = np.arange(1, rows * slots + 1).reshape(rows, slots)
  media = np.where(mask[..., None, None, None], numbers[:, :, None, None, None, None], 0)
  tokens = random.integers(0, 9, (rows, 5))
  return dict(media=media.astype(np.uint8), media_mask=mask, tokens=tokens, media_index=tokens % slots)


def test_no_example_gets_a_medium_of_its_own():
  lopsided = 0
  for seed in range(200):
    lopsided += check_exchange(random_media(seed))
  assert 20 < lopsided < 180  # both kinds of batches were among them


def check_exchange(batch: dict[str, np.ndarray]) -> bool:
  """Whether one example holds more than half of all media, so that some have to go."""
  changed = other_media(batch)
  rows, slots = batch["media_mask"].shape[:2]
  owner = {row * slots + slot + 1: row for row, slot in np.ndindex(rows, slots)}
  had, has = batch["media_mask"].any(axis=-1), changed["media_mask"].any(axis=-1)
  assert not (has & ~had).any()
  given = []
  for row, slot in np.argwhere(has):
    (number,) = np.unique(changed["media"][row, slot][changed["media_mask"][row, slot]])
    assert owner[number] != row
    source = batch["media_mask"].reshape(rows * slots, -1)[number - 1]
    np.testing.assert_array_equal(changed["media_mask"][row, slot], source)
    given.append(number)
  assert len(set(given)) == len(given)
  most, count = had.sum(axis=1).max(), had.sum()
  # All are exchanged where that can be; else as many as there are media of the smaller examples, in both directions.
  assert has.sum() == (count if 2 * most <= count else 2 * (count - most))
  assert all(changed[name] is batch[name] for name in ("tokens", "media_index"))
  return 2 * most > count


def test_without_media_the_text_is_the_same_and_pixels_say_nothing(parameters, logits, make_batch):
  batch = make_batch()
  blind = no_media(batch)
  assert all(blind[name] is batch[name] for name in ("tokens", "segments", "loss_weights"))
  found = np.asarray(logits(parameters, blind))
  np.testing.assert_array_equal(found, logits(parameters, blind | {"media": 255 - batch["media"]}))
  assert (found != logits(parameters, batch)).any()


def test_plain_text_closes_rows_up_over_markers():
  image, end = 32, 33
  batch = dict(
    tokens=np.asarray([[1, image, 5, 6, end, image, 7, end], [image, 3, 4, end, 0, 0, 0, 0]]),
    segments=np.asarray([[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]]),
    loss_weights=np.asarray([[0.0, 0, 0.5, 0.6, 1, 0, 0.7, 1], [0, 0.3, 0.4, 1, 0, 0, 0, 0]]),
    media=np.zeros((2, 1, 1, 2, 2, 3), np.uint8),
    media_mask=np.ones((2, 1, 1), bool),
    media_index=np.zeros((2, 8), int),
  )
  plain = plain_text(batch, vocabulary=32)
  assert plain["tokens"].tolist() == [[1, 5, 6, 7, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0, 0, 0]]
  assert plain["segments"].tolist() == [[1, 1, 1, 2, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
  assert plain["loss_weights"].tolist() == [[0, 0.5, 0.6, 0.7, 0, 0, 0, 0], [0.3, 0.4, 0, 0, 0, 0, 0, 0]]
  assert not plain["media_mask"].any()
  assert (plain["media_index"] == -1).all()


def numpy_text_loss(logits: np.ndarray, batch: dict, vocabulary: int) -> float:
  """Mean negative log-likelihood of ordinary tokens, one at a time."""
  total = weight = 0.0
  for row, place in np.argwhere((batch["loss_weights"] > 0) & (batch["tokens"] < vocabulary)):
    if place:
      scores = np.float64(logits[row, place - 1])
      chosen = scores[batch["tokens"][row, place]]
      total += batch["loss_weights"][row, place] * (np.log(np.exp(scores - scores.max()).sum()) + scores.max() - chosen)
      weight += batch["loss_weights"][row, place]
  return total / weight


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def evaluate(tiny, make_batch):
  """The evaluation of the tiny model on one held-out and one training batch of a stream."""
  held_out, seen = {"pages": [make_batch(seed=5, rows=3)]}, {"pages": [make_batch(seed=6, rows=3)]}
  return evaluate_flamingo(flamingo_objective(tiny), tiny, held_out, seen)


def shut(parameters: dict) -> dict:
  return {path: np.zeros_like(array) if path.endswith("_gate") else array for path, array in parameters.items()}


def test_with_shut_gates_the_visual_gain_is_exactly_zero(evaluate, parameters, mesh):
  metrics = evaluate(shut(parameters), mesh, False)
  assert metrics["visual_gain/pages/other_media"] == metrics["visual_gain/pages/no_media"] == 0.0
  assert {value for name, value in metrics.items() if name.startswith("gates/")} == {0.0}


def test_with_open_gates_the_visual_gain_is_the_difference_of_numpy_losses(
  evaluate, parameters, mesh, logits, make_batch, tiny
):
  metrics = evaluate(parameters, mesh, False)
  batch = make_batch(seed=5, rows=3)

  def loss(batch):
    return numpy_text_loss(np.asarray(logits(parameters, batch)), batch, tiny.language.vocabulary)

  right = loss(batch)
  assert metrics["heldout/text_loss/pages"] == pytest.approx(right, rel=1e-5)
  for control, change in (("other_media", other_media), ("no_media", no_media)):
    expected = right - loss(change(batch))
    assert abs(expected) > 1e-3
    assert metrics[f"visual_gain/pages/{control}"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
  seen = make_batch(seed=6, rows=3)
  assert metrics["train/text_loss/pages"] == pytest.approx(loss(seen), rel=1e-5)
  assert metrics["train/loss/pages"] != metrics["train/text_loss/pages"]


def test_the_baseline_is_the_language_models_loss_on_text_without_markers(
  evaluate, parameters, mesh, logits, make_batch, tiny
):
  """Each row's ordinary tokens written next to one another by hand; the gates are shut, as at step 0."""
  batch, vocabulary = make_batch(seed=5, rows=3), tiny.language.vocabulary
  text = {name: np.zeros((3, 10), batch[name].dtype) for name in ("tokens", "segments", "loss_weights")}
  for row in range(3):
    kept = [at for at in range(10) if batch["segments"][row, at] and batch["tokens"][row, at] < vocabulary]
    for name, array in text.items():
      array[row, : len(kept)] = batch[name][row, kept]
  closed = batch | text | {"media_index": np.full((3, 10), -1, np.int32)}
  expected = numpy_text_loss(np.asarray(logits(shut(parameters), closed)), closed, vocabulary)
  baseline = evaluate(shut(parameters), mesh, True)
  assert baseline.keys() == {"train/text_loss/pages", "heldout/text_loss/pages"}
  assert baseline["heldout/text_loss/pages"] == pytest.approx(expected, rel=1e-5)
  with_markers = numpy_text_loss(np.asarray(logits(shut(parameters), batch)), batch, vocabulary)
  assert abs(with_markers - expected) > 1e-3


def test_empty_rows_weigh_nothing(evaluate, parameters, mesh, make_batch, tiny):
  """Those that fill the last held-out batch up."""
  batch = make_batch(seed=5, rows=3)
  empty = {name: np.full_like(array, -1 if name == "media_index" else 0) for name, array in batch.items()}
  filled = {name: np.concatenate([array, empty[name]]) for name, array in batch.items()}
  split = {"pages": [filled]}
  metrics = evaluate_flamingo(flamingo_objective(tiny), tiny, split, split)(parameters, mesh, False)
  expected = evaluate(parameters, mesh, False)
  assert metrics["heldout/loss/pages"] == pytest.approx(expected["heldout/loss/pages"], rel=1e-6)
  for control in ("other_media", "no_media"):
    name = f"visual_gain/pages/{control}"
    assert metrics[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize(("layers", "every", "offset"), [(4, 2, 1), (8, 2, 0), (7, 3, 1), (5, 7, 2), (9, 1, 0)])
def test_gates_are_named_by_the_layer_they_stand_before(tiny, layers, every, offset):
  """Each gate is set to its layer's number over 100; what stands in `tail` comes last."""
  model = dataclasses.replace(
    tiny,
    language=dataclasses.replace(tiny.language, layers=layers),
    cross_attention=GatedCrossAttentionConfig(every=every, offset=offset),
  )
  places = [layer for layer in range(layers) if layer >= offset and (layer - offset) % every == 0]
  whole = (layers - offset) // every
  parameters = {}
  for kind, scale in (("attention", 0.01), ("feed_forward", -0.01)):
    values = scale * np.asarray(places, np.float32)
    if whole:
      parameters[f"language/groups/gated_cross_attention/{kind}_gate"] = values[:whole]
    if whole < len(places):
      parameters[f"language/tail/gated_cross_attention/{kind}_gate"] = values[-1]
  expected = {f"gates/attention/{layer}": np.tanh(0.01 * layer) for layer in places}
  expected |= {f"gates/feed_forward/{layer}": -np.tanh(0.01 * layer) for layer in places}
  assert gates(parameters, model) == pytest.approx(expected, rel=1e-5)
  without = dataclasses.replace(model.cross_attention, gated=False)
  assert gates({}, dataclasses.replace(model, cross_attention=without)) == {}


def test_gates_of_channels_tell_how_far_they_are_open(tiny):
  model = dataclasses.replace(
    tiny,
    language=dataclasses.replace(tiny.language, layers=3),
    cross_attention=GatedCrossAttentionConfig(every=2, vector_gates=True),
  )
  draws = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
  parameters = {}
  for kind in ("attention", "feed_forward"):
    parameters[f"language/groups/gated_cross_attention/{kind}_gate"] = draws[:1]
    parameters[f"language/tail/gated_cross_attention/{kind}_gate"] = draws[1:]
  found = gates(parameters, model)
  for layer, values in zip((0, 2), draws, strict=True):
    assert found[f"gates/attention/{layer}"] == pytest.approx(sum(abs(np.tanh(values))) / 5, rel=1e-5)


def weighted(parameters, batch):
  weight = batch["weights"].sum()
  return Loss(
    (parameters["scale"] * batch["values"] * batch["weights"]).sum(), weight, {"none": (weight, 0.0 * weight)}
  )


def test_means_are_over_all_batches_and_not_of_their_means(mesh):
  """Batches of other shapes and weights; what has no weight at all is 0."""
  random = np.random.default_rng(0)
  batches = [
    dict(values=random.normal(size=rows).astype(np.float32), weights=random.random(rows).astype(np.float32) * rows)
    for rows in (3, 8, 3)
  ]
  objective = Objective("weighted", lambda key: {}, weighted)
  parameters = {"scale": jnp.float32(2.0)}
  found = LossMeter(objective)(jax.device_put(parameters), batches, mesh)
  values, weights = (np.concatenate([batch[name] for batch in batches]) for name in ("values", "weights"))
  assert found == pytest.approx({"loss": 2 * np.average(values, weights=weights), "none": 0.0}, rel=1e-5)
