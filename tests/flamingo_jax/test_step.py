"""One update on a linear regression whose gradient is known in closed form, and on the tiny Flamingo.

Here there is one device; `test_mesh.py` runs the regression's tests once more on eight.
"""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.models.parameters import flat
from flamingo_jax.parallel.mesh import MeshConfig, global_batch, make_mesh
from flamingo_jax.training.config import Frozen, TrainingConfig
from flamingo_jax.training.objectives import Loss, Objective, flamingo_objective
from flamingo_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from flamingo_jax.training.placing import begin_from, place_frozen
from flamingo_jax.training.step import initial_state, make_train_step, split_shapes

WEIGHTS = {"pages": 1.0, "captions": 0.2, "videos": 0.03}
ROWS = {"pages": 8, "captions": 12, "videos": 4}
STEPS = 8


def initialize(key):
  """A frozen linear map and a trained one, under the logical names of a feed-forward block."""

  def box(shape, axes):
    return nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)(key, shape)

  head = dict(kernel=box((6, 2), ("mlp", "embed")), bias=box((2,), ("norm",)))
  return dict(body=dict(kernel=box((4, 6), ("embed", "mlp"))), head=head)


def loss(parameters, batch):
  hidden = batch["inputs"] @ parameters["body/kernel"]
  residual = hidden @ parameters["head/kernel"] + parameters["head/bias"] - batch["targets"]
  weights = batch["loss_weights"]
  largest = (weights * jnp.abs(residual).max(axis=1)).sum()
  return Loss((weights * jnp.square(residual).sum(axis=1)).sum(), weights.sum(), {"largest": (largest, weights.sum())})


OBJECTIVE = Objective("regression", initialize, loss)
TRAINING = TrainingConfig(trainable=("^head/",), frozen_dtype="float32")


def make_batches(step: int = 0) -> dict[str, dict[str, np.ndarray]]:
  """Rows whose weights differ, so that a mean of means over devices is not the mean."""
  random = np.random.default_rng(step)
  return {
    name: dict(
      inputs=random.normal(size=(rows, 4)).astype(np.float32),
      targets=random.normal(size=(rows, 2)).astype(np.float32),
      loss_weights=random.uniform(0.0, 3.0, rows).astype(np.float32),
      segments=np.ones((rows, 2), np.int32),
    )
    for name, rows in ROWS.items()
  }


def numpy_stream(parameters, batch):
  """Mean loss of a stream, its gradient by hand, and the mean of the largest residuals; float64."""
  inputs, targets, weights = (np.float64(batch[name]) for name in ("inputs", "targets", "loss_weights"))
  hidden = inputs @ parameters["body/kernel"]
  residual = hidden @ parameters["head/kernel"] + parameters["head/bias"] - targets
  shares = weights[:, None] / weights.sum()
  slope = 2 * shares * residual
  gradient = {"head/kernel": hidden.T @ slope, "head/bias": slope.sum(axis=0)}
  return (shares * residual**2).sum(), gradient, (shares[:, 0] * np.abs(residual).max(axis=1)).sum()


def numpy_gradients(parameters, batches):
  """The gradient of each stream's part of the weighted sum."""
  streams = {name: numpy_stream(parameters, batch)[1] for name, batch in batches.items()}
  return [{path: WEIGHTS[name] * g for path, g in gradient.items()} for name, gradient in streams.items()]


def summed(gradients):
  return {path: sum(gradient[path] for gradient in gradients) for path in gradients[0]}


def norm(gradient):
  return np.sqrt(sum((g**2).sum() for g in gradient.values()))


def clipped(gradient, limit):
  return {path: g * min(1.0, limit / norm(gradient)) for path, g in gradient.items()}


def double(parameters):
  return {path: np.float64(array) for path, array in jax.device_get(parameters).items()}


@pytest.fixture(scope="module")
def mesh():
  """One device, or eight with every axis in use."""
  mesh = make_mesh(MeshConfig() if jax.device_count() == 1 else MeshConfig(replica=-1, fsdp=2, model=2))
  with jax.set_mesh(mesh):
    yield mesh


@pytest.fixture(scope="module")
def start(mesh):
  """Makes what a run starts from: (step function, state, frozen) for an optimizer."""

  def make(optimizer, rate=lambda step: 1.0):
    body = np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32)
    frozen = place_frozen(OBJECTIVE, Frozen({"body/kernel": body}), mesh, TRAINING)
    state = initial_state(OBJECTIVE, optimizer, mesh, TRAINING.trainable, seed=0)
    return jax.jit(make_train_step(OBJECTIVE, optimizer, rate, WEIGHTS)), state, frozen

  return make


def placed(batches, mesh):
  return {name: global_batch(batch, mesh) for name, batch in batches.items()}


def test_numpy_finds_the_same_gradient_of_the_weighted_sum_of_means(mesh, start):
  step, state, frozen = start(optax.sgd(1.0))
  batches = make_batches()
  after, metrics = step(state, frozen, placed(batches, mesh))
  parameters = double(state.trainable | frozen)
  expected = summed(numpy_gradients(parameters, batches))
  for path, gradient in expected.items():
    np.testing.assert_allclose(state.trainable[path] - after.trainable[path], gradient, rtol=1e-4, atol=1e-5)
  assert float(metrics["gradient_norm"]) == pytest.approx(norm(expected), rel=1e-5)
  assert (int(state.step), int(after.step)) == (0, 1)


def test_numpy_finds_the_same_losses_for_the_log(mesh, start):
  step, state, frozen = start(optax.sgd(1.0))
  batches = make_batches()
  _, metrics = step(state, frozen, placed(batches, mesh))
  parameters, total = double(state.trainable | frozen), 0.0
  for name, batch in batches.items():
    value, _, largest = numpy_stream(parameters, batch)
    total += WEIGHTS[name] * value
    assert float(metrics[f"loss/{name}"]) == pytest.approx(value, rel=1e-5)
    assert float(metrics[f"largest/{name}"]) == pytest.approx(largest, rel=1e-5)
    assert float(metrics[f"loss_weight/{name}"]) == pytest.approx(batch["loss_weights"].sum(), rel=1e-6)
  assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)


def numpy_adamw(config: OptimizerConfig, parameters: dict, clip) -> dict:
  """AdamW as published (Loshchilov and Hutter, 2019, algorithm 2), on the regression; only the kernel decays.

  `clip` takes the streams' gradients, and gives their sum.
  """
  parameters = dict(parameters)
  first = {path: np.zeros_like(parameters[path]) for path in ("head/kernel", "head/bias")}
  second = dict(first)
  for t in range(1, STEPS + 1):
    rate = config.learning_rate * min(1.0, t / config.warmup_steps)
    gradient = clip(numpy_gradients(parameters, make_batches(t)))
    for path, g in gradient.items():
      first[path] = config.beta1 * first[path] + (1 - config.beta1) * g
      second[path] = config.beta2 * second[path] + (1 - config.beta2) * g**2
      unbiased, spread = first[path] / (1 - config.beta1**t), second[path] / (1 - config.beta2**t)
      decay = config.weight_decay * parameters[path] if path == "head/kernel" else 0.0
      parameters[path] = parameters[path] - rate * (unbiased / (np.sqrt(spread) + config.epsilon) + decay)
  return parameters


@pytest.mark.parametrize("clip_norm", [3.0, 1e6])
def test_numpy_adamw_moves_the_parameters_alike(mesh, start, clip_norm):
  """Warm-up, clipping of the sum, bias correction, decoupled decay of what `no_decay` leaves."""
  config = OptimizerConfig(learning_rate=0.05, warmup_steps=4, no_decay=("bias$",), epsilon=0.1, clip_norm=clip_norm)
  rate = learning_rate(config, STEPS)
  step, state, frozen = start(make_optimizer(config, rate), rate)
  before, rates, norms = double(state.trainable | frozen), [], []
  for t in range(1, STEPS + 1):
    state, metrics = step(state, frozen, placed(make_batches(t), mesh))
    rates.append(float(metrics["learning_rate"]))
    norms.append(float(metrics["gradient_norm"]))
  assert (min(norms) > clip_norm) == (clip_norm == 3.0)
  np.testing.assert_allclose(rates, [0.0125, 0.025, 0.0375, *[0.05] * 5], rtol=1e-6)
  expected = numpy_adamw(config, before, lambda streams: clipped(summed(streams), clip_norm))
  each = numpy_adamw(config, before, lambda streams: summed([clipped(stream, clip_norm) for stream in streams]))
  for path, array in state.trainable.items():
    np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-5)
    if clip_norm == 3.0:  # the sum cannot be told from its parts where nothing is clipped
      assert np.abs(array - each[path]).max() > 1e-3


def test_numpy_agrees_that_a_stream_without_loss_weight_adds_nothing(mesh, start):
  """Neither NaN nor the loss of the other streams' gradients."""
  step, state, frozen = start(optax.sgd(1.0))
  batches = make_batches()
  batches["captions"]["loss_weights"][:] = 0
  after, metrics = step(state, frozen, placed(batches, mesh))
  assert float(metrics["loss/captions"]) == float(metrics["largest/captions"]) == 0.0
  others = {name: batch for name, batch in batches.items() if name != "captions"}
  expected = summed(numpy_gradients(double(state.trainable | frozen), others))
  for path, gradient in expected.items():
    np.testing.assert_allclose(state.trainable[path] - after.trainable[path], gradient, rtol=1e-4, atol=1e-5)


def test_trained_parameters_start_as_the_whole_model_would(mesh):
  state = initial_state(OBJECTIVE, optax.sgd(1.0), mesh, TRAINING.trainable, seed=3)
  everything = flat(initialize(jax.random.key(3)))
  assert state.trainable.keys() == {"head/kernel", "head/bias"}
  for path, array in state.trainable.items():
    np.testing.assert_allclose(array, everything[path], rtol=1e-6)


def test_a_pattern_that_names_no_parameter_is_refused(mesh):
  with pytest.raises(UserError, match=r"'\^heat/' names no parameter. They start with: body, head"):
    split_shapes(OBJECTIVE, mesh, ("^head/", "^heat/"))


USUAL = TrainingConfig().trainable


@pytest.fixture(scope="module")
def trained(tiny, parameters, make_batch):
  return train_tiny(tiny, parameters, make_batch(), USUAL)


def train_tiny(tiny, parameters, batch, trainable: tuple[str, ...]):
  """The tiny Flamingo before and after 20 updates on one batch."""
  settings = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
  config = TrainingConfig(trainable=trainable, frozen_dtype="float32", optimizer=settings)
  rate = learning_rate(config.optimizer, 20)
  objective, optimizer = flamingo_objective(tiny), make_optimizer(config.optimizer, rate)
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    _, names, _ = split_shapes(objective, mesh, config.trainable)
    held = {path: parameters[path].copy() for path in names}
    frozen = place_frozen(objective, Frozen(held), mesh, config)
    open_gates = {path: array for path, array in parameters.items() if path not in names}
    state = before = begin_from(open_gates, initial_state(objective, optimizer, mesh, config.trainable, seed=3))
    step = jax.jit(make_train_step(objective, optimizer, rate, {"pages": 1.0}))
    batches, losses = {"pages": global_batch(batch, mesh)}, []
    for _ in range(20):
      state, metrics = step(state, frozen, batches)
      losses.append(float(metrics["loss"]))
  return types.SimpleNamespace(before=before, after=state, frozen=frozen, held=held, losses=losses)


def test_frozen_parameters_are_bit_for_bit_the_same_after_20_steps(trained, parameters):
  assert trained.losses[-1] < trained.losses[0]
  assert trained.frozen.keys() | trained.after.trainable.keys() == parameters.keys()
  assert not trained.frozen.keys() & trained.after.trainable.keys()
  for path, array in trained.frozen.items():
    np.testing.assert_array_equal(array, parameters[path])


@pytest.mark.parametrize(
  ("trainable", "parts"),
  [
    (("gate$",), {"language"}),
    (("^resampler/",), {"resampler"}),
    ((*USUAL, "^vision/"), {"resampler", "language", "vision"}),
    ((*USUAL, "^language/embeddings$"), {"resampler", "language"}),
    (("^vision/encoder/layers/attention/",), {"vision"}),
  ],
)
def test_what_trains_is_a_list_of_patterns_and_the_rest_does_not_move(tiny, parameters, make_batch, trainable, parts):
  found = train_tiny(tiny, parameters, make_batch(), trainable)
  before, after = found.before.trainable, found.after.trainable
  assert {path.split("/")[0] for path in after} == parts
  assert all((np.asarray(after[path]) != before[path]).any() for path in after)
  assert found.frozen.keys() == parameters.keys() - after.keys()
  assert all(np.array_equal(array, parameters[path]) for path, array in found.frozen.items())
  slots = jax.tree_util.tree_leaves_with_path(found.after.optimizer_state)
  keys = {entry.key for path, _ in slots for entry in path if isinstance(entry, jax.tree_util.DictKey)}
  assert keys == after.keys()


def test_optimizer_slots_are_of_trained_parameters_only(trained):
  leaves = jax.tree_util.tree_leaves_with_path(trained.after.optimizer_state)
  keys = {entry.key for path, _ in leaves for entry in path if isinstance(entry, jax.tree_util.DictKey)}
  assert keys == trained.after.trainable.keys()
  sizes = sum(leaf.size for _, leaf in leaves if leaf.ndim) + sum(
    2 for path in keys if trained.after.trainable[path].ndim == 0
  )
  assert sizes == 2 * sum(array.size for array in trained.after.trainable.values())


def test_of_the_language_model_only_the_extra_rows_and_the_gated_layers_train(trained):
  """Its logits are tied, so that the table of embeddings is on both ends of it."""
  language = {path for path in trained.after.trainable if path.startswith("language/")}
  assert {path for path in language if "gated_cross_attention" not in path} == {"language/extra_embeddings"}
  assert "language/embeddings" in trained.frozen
  rows = "language/extra_embeddings"
  assert (trained.after.trainable[rows] != trained.before.trainable[rows]).any(axis=1).all()
  assert not any(path.startswith("vision/") for path in trained.after.trainable)


def test_every_trained_parameter_moves(trained):
  """In 20 steps the gates open, and through them everything behind them learns."""
  still = [
    path
    for path, array in trained.after.trainable.items()
    if np.array_equal(array, trained.before.trainable[path]) and array.size
  ]
  assert still == []


def test_untied_logits_have_extra_rows_of_their_own(tiny):
  untied = dataclasses.replace(tiny, language=dataclasses.replace(tiny.language, tied_embeddings=False))
  shapes, frozen, _ = split_shapes(flamingo_objective(untied), make_mesh(MeshConfig()), TrainingConfig().trainable)
  assert shapes["language/extra_unembeddings"].shape == shapes["language/extra_embeddings"].shape == (2, 16)
  assert frozen["language/unembeddings"].shape == frozen["language/embeddings"].shape == (32, 16)
