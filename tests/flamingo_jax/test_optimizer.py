import numpy as np
import pytest

from flamingo_jax.models.flamingo import initialize
from flamingo_jax.training.optimizer import OptimizerConfig, check_optimizer, decayed, learning_rate
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


def test_only_the_kernels_of_gated_layers_decay(tiny, random_parameters):
  """The paper decays neither the resampler (appendix B.1.2) nor, as is usual, norms, biases and gates."""
  paths = [path for path in random_parameters(lambda key: initialize(tiny, key)) if is_trainable(path, TRAINABLE)]
  chosen = decayed(OptimizerConfig(), paths)
  assert chosen.keys() == set(paths)
  kernels = {path for path in paths if "gated_cross_attention" in path and path.endswith("kernel")}
  assert {path for path, decays in chosen.items() if decays} == kernels
  assert len(kernels) == 2 * 6  # query, key, value, output, up and down, of the group and of the tail


def test_settings_that_cannot_be_are_named_together():
  config = OptimizerConfig(schedule="cosine", learning_rate=0.0, warmup_steps=-1, clip_norm=0.0)
  fields = {fault.split(" is ")[0] for fault in check_optimizer(config, 10)}
  assert fields == {f"optimizer.{field}" for field in ("schedule", "learning_rate", "warmup_steps", "clip_norm")}


def test_a_linear_schedule_has_room_after_the_warm_up():
  assert check_optimizer(OptimizerConfig(schedule="linear", warmup_steps=9), 10) == []
  (fault,) = check_optimizer(OptimizerConfig(schedule="linear", warmup_steps=10), 10)
  assert fault == "optimizer.warmup_steps is 10, but the run has 10 steps."
