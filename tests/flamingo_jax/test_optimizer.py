import math

import numpy as np
import pytest

from flamingo_jax.models.flamingo import initialize
from flamingo_jax.training.optimizer import OptimizerConfig, check_optimizer, clipping, decayed, learning_rate
from flamingo_jax.training.step import is_trainable

TRAINABLE = ("^resampler/", "/gated_cross_attention/", "extra_")


def rates(total: int, **settings) -> list[float]:
  schedule = learning_rate(OptimizerConfig(learning_rate=2.0, **settings), total)
  return [float(schedule(update)) for update in range(total)]


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_the_first_update_has_the_first_step_of_the_warm_up(warmup):
  expected = [2.0 * min(1.0, update / max(warmup, 1)) for update in range(1, 13)]
  np.testing.assert_allclose(rates(12, warmup_steps=warmup), expected, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_a_linear_schedule_falls_by_equal_steps_and_would_reach_zero_next(warmup):
  after = rates(12, warmup_steps=warmup, schedule="linear")[warmup:]
  assert after[0] == pytest.approx(2.0)
  np.testing.assert_allclose(np.diff(after), -2.0 / len(after), rtol=1e-4)
  assert after[-1] == pytest.approx(2.0 / len(after), rel=1e-4)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_a_cosine_schedule_falls_along_half_a_wave_to_a_tenth(warmup):
  """Hoffmann et al., 2022, section 3.1: a cycle as long as the run, ten times lower at its end."""
  after = np.asarray(rates(12, warmup_steps=warmup, schedule="cosine")[warmup:])
  angles = np.pi * np.arange(len(after)) / len(after)
  np.testing.assert_allclose(after, 0.2 + 1.8 * (1 + np.cos(angles)) / 2, rtol=1e-5)
  longer = rates(1001, warmup_steps=warmup, schedule="cosine")
  assert longer[-1] == pytest.approx(0.2, rel=1e-3)


def test_only_the_kernels_of_gated_layers_decay(tiny, random_parameters):
  """The paper decays neither the resampler (appendix B.1.2) nor, as is usual, norms, biases and gates."""
  paths = [path for path in random_parameters(lambda key: initialize(tiny, key)) if is_trainable(path, TRAINABLE)]
  chosen = decayed(OptimizerConfig(), paths)
  assert chosen.keys() == set(paths)
  kernels = {path for path in paths if "gated_cross_attention" in path and path.endswith("kernel")}
  assert {path for path, decays in chosen.items() if decays} == kernels
  assert len(kernels) == 2 * 6  # query, key, value, output, up and down, of the group and of the tail


def test_settings_that_cannot_be_are_named_together():
  wrong = dict(schedule="cubic", learning_rate=0.0, warmup_steps=-1, clip_norm=0.0, weight_decay=-0.1, epsilon=math.inf)
  wrong |= dict(beta1=1.0, beta2=2.0)
  fields = {fault.split(" is ")[0] for fault in check_optimizer(OptimizerConfig(**wrong), 10)}
  assert fields == {f"optimizer.{field}" for field in wrong}


def test_a_linear_schedule_has_room_after_the_warm_up():
  assert check_optimizer(OptimizerConfig(schedule="linear", warmup_steps=9), 10) == []
  (fault,) = check_optimizer(OptimizerConfig(schedule="linear", warmup_steps=10), 10)
  assert fault == "optimizer.warmup_steps is 10, but the run has 10 steps."


def unit_clipped(gradient, weights, axes):
  """Brock et al., 2021, equation 3, with the weights of each output as a unit."""
  size = np.sqrt(np.square(gradient).sum(axis=axes, keepdims=True))
  limit = 0.01 * np.maximum(np.sqrt(np.square(weights).sum(axis=axes, keepdims=True)), 1e-3)
  return np.where(size > limit, gradient * limit / np.maximum(size, 1e-6), gradient)


@pytest.mark.parametrize("epsilon", [0.0, -1e-8, np.inf])
def test_an_epsilon_that_could_not_divide_is_refused(epsilon):
  (fault,) = check_optimizer(OptimizerConfig(epsilon=epsilon), 10)
  assert fault == f"optimizer.epsilon is {epsilon}; it is above 0, and finite."


def test_adaptive_clipping_is_of_each_output_of_each_layer_and_the_norm_is_that_of_the_rest():
  shapes = {
    "vision/stem/conv_0/kernel": ((3, 3, 4, 5), (0, 1, 2)),
    "vision/stage_0/rest/reduce/kernel": ((2, 3, 3, 4, 5), (1, 2, 3)),
    "vision/stage_0/rest/reduce/gain": ((2, 5), (1,)),
    "vision/stage_0/rest/skip_gain": ((2,), ()),
    "vision/stage_0/first/squeeze_excite/squeeze/bias": ((5,), (0,)),
    "vision/stage_0/first/squeeze_excite/squeeze/kernel": ((4, 5), (0,)),
    "vision/encoder/layers/attention/query/kernel": ((2, 6, 3, 4), (1,)),
    "vision/encoder/layers/attention/query/bias": ((2, 3, 4), (1, 2)),
    "vision/encoder/layers/attention/output/kernel": ((2, 3, 4, 6), (1, 2)),
    "vision/groups/layers/attention/output/kernel": ((2, 3, 3, 4, 6), (2, 3)),
    "vision/groups/gated_cross_attention/feed_forward/up/kernel": ((2, 4, 5), (1,)),
    "vision/tail/gated_cross_attention/attention/output/kernel": ((3, 4, 6), (0, 1)),
    "vision/output/kernel": ((4, 5), (0,)),
    "text/encoder/layers/feed_forward/up/kernel": ((2, 4, 5), None),
    "image_projection/kernel": ((4, 5), None),
  }
  random = np.random.default_rng(0)
  weights = {path: random.normal(size=shape).astype(np.float32) for path, (shape, _) in shapes.items()}
  gradients = {path: (0.02 * random.normal(size=shape)).astype(np.float32) for path, (shape, _) in shapes.items()}
  clip = clipping(OptimizerConfig(clip_norm=0.05, adaptive_clip=0.01, adaptive_clip_on=("^vision/",)))
  found, _ = clip.update(gradients, clip.init(weights), weights)
  rest = [path for path in shapes if not path.startswith("vision/")]
  norm = np.sqrt(sum(np.square(gradients[path]).sum() for path in rest))
  assert norm > 0.05
  for path, (_, axes) in shapes.items():
    expected = gradients[path] * 0.05 / norm if path in rest else unit_clipped(gradients[path], weights[path], axes)
    np.testing.assert_allclose(found[path], expected, rtol=1e-5, err_msg=path)
    if path not in rest:
      assert np.abs(found[path] - gradients[path]).max() > 0


def test_adaptive_clipping_names_what_it_clips():
  assert check_optimizer(OptimizerConfig(adaptive_clip=0.01, adaptive_clip_on=("^vision/",)), 10) == []
  for settings in (dict(adaptive_clip=0.01), dict(adaptive_clip_on=("^vision/",))):
    (fault,) = check_optimizer(OptimizerConfig(**settings), 10)
    assert fault.endswith("set both, or neither.")
