"""A sweep to copy: learning rates and gated layers of the tiny run, two seeds each."""

from configs import sweep


def get_sweep():
  settings = sweep.grid({"optimizer.learning_rate": (3e-3, 1e-2), "model.cross_attention.every": (1, 2)})
  return sweep.trials(
    config="configs/tiny.py",
    changes=sweep.each_with(settings, sweep.seeds(2)),
    outcome="heldout/text_loss/captions",
  )
