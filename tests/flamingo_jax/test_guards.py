import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.training.guards import GuardConfig, check_guards, fresh_guard, judge

WINDOW = 8


def verdicts(losses: list[float], norms: list[float] | None = None, spike: float = 0.0):
  """Whether each loss moves the model, and the guard in the end."""
  guard, made, found = fresh_guard(), 0, []
  config = GuardConfig(spike=spike, spike_window=WINDOW)
  for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
    accepted, guard, causes = judge(guard, config, jnp.int32(made), jnp.float32(loss), jnp.float32(norm))
    assert bool(accepted) == (not any(map(int, causes.values())))
    made += int(accepted)
    found.append("".join(cause for cause, count in causes.items() if count))
  return found, guard


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_counted_in_a_row(number):
  found, guard = verdicts([1.0, number, 1.0, number, number, 1.0, 1.0], [1.0, 1.0, number, 1.0, 1.0, 1.0, number])
  assert found == ["", "nonfinite", "nonfinite", "nonfinite", "nonfinite", "", "nonfinite"]
  assert (int(guard.in_a_row), int(guard.skipped)) == (1, 5)


def test_mean_and_deviation_are_those_of_the_losses_until_the_window_is_full():
  losses = np.random.default_rng(0).normal(size=WINDOW).tolist()
  _, guard = verdicts(losses, spike=100.0)
  assert float(guard.mean) == pytest.approx(np.mean(losses), rel=1e-5)
  assert float(guard.variance) == pytest.approx(np.var(losses), rel=1e-4)


def test_after_that_they_forget_by_a_window():
  losses = np.random.default_rng(1).normal(size=5 * WINDOW)
  _, guard = verdicts(losses.tolist(), spike=100.0)
  weights = np.full(len(losses), 1 / WINDOW) * (1 - 1 / WINDOW) ** np.arange(len(losses))[::-1]
  weights[:WINDOW] = (1 - 1 / WINDOW) ** (len(losses) - WINDOW) / WINDOW
  mean = (weights * losses).sum()
  assert float(guard.mean) == pytest.approx(mean, rel=1e-4)
  assert float(guard.variance) == pytest.approx((weights * (losses - mean) ** 2).sum(), rel=1e-3)


def test_spikes_are_left_out_once_a_window_has_been_seen_and_do_not_move_the_mean():
  calm = (np.random.default_rng(2).normal(size=2 * WINDOW) * 0.1 + 3.0).tolist()
  found, guard = verdicts([*calm[: WINDOW - 1], 3.2, *calm[WINDOW:], 9.0, 3.0, 8.0, np.nan, 3.1], spike=5.0)
  assert found[: 2 * WINDOW] == [""] * (2 * WINDOW)
  assert found[2 * WINDOW :] == ["spike", "", "spike", "nonfinite", ""]
  assert float(guard.mean) == pytest.approx(3.0, abs=0.15)
  early, _ = verdicts([3.0, 3.01, 9.0], spike=5.0)
  assert early == ["", "", ""]


def test_spikes_may_be_left_out_from_any_start_on():
  calm = (np.random.default_rng(3).normal(size=3 * WINDOW) * 0.1 + 3.0).tolist()
  _, guard = verdicts(calm)
  for loss, cause in ((3.1, ""), (9.0, "spike")):
    _, _, causes = judge(
      guard, GuardConfig(spike=5.0, spike_window=WINDOW), len(calm), jnp.float32(loss), jnp.float32(1)
    )
    assert [name for name, count in causes.items() if count] == ([cause] if cause else [])


def test_losses_that_fall_are_no_spikes():
  found, _ = verdicts([3.0, 3.1] * WINDOW + [0.1], spike=3.0)
  assert set(found) == {""}


def test_settings_out_of_range_are_faults():
  assert check_guards(GuardConfig()) == []
  assert len(check_guards(GuardConfig(skips_in_a_row=0, spike=-1.0, spike_window=1, hang_seconds=-1.0))) == 4
