"""A study to copy: Optuna looks for a learning rate, its warm-up and a weight of the captions for the tiny run."""

from configs import sweep


def get_sweep():
  return sweep.study(
    config="configs/tiny.py",
    space={
      "optimizer.learning_rate": sweep.log_uniform(1e-3, 1e-1),
      "optimizer.warmup_steps": sweep.whole(1, 20),
      "streams.captions.weight": sweep.uniform(0.1, 1.0),
    },
    count=20,
    outcome="heldout/text_loss/captions",
    pruner="median",
  )
