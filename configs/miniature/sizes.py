"""Sweep in miniature: a smaller language model beside the larger one. Five seeds of each."""

from configs import sweep
from configs.miniature.findings import SHOTS


def get_sweep():
  sizes = [{"config": f"configs/miniature/{name}.py"} for name in ("flamingo", "flamingo_small")]
  return sweep.trials(
    config="configs/miniature/flamingo.py",
    changes=sweep.each_with(sizes, sweep.seeds(5)),
    outcome="few_shot/naming_*/8",
    best="max",
    also=[f"few_shot/naming_*/{shots}" for shots in SHOTS],
  )
