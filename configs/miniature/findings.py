"""Sweep in miniature: each part of the recipe left out or changed, after the paper's table 3. Five seeds of each."""

from configs import sweep

SHOTS = (0, 1, 2, 4, 8)


def get_sweep():
  changes = [
    {},  # the recipe
    {"streams.pages.weight": 0.0},  # no interleaved pages
    {"streams.captions.weight": 0.0},  # no captions
    {"mixture": "round_robin", "total_steps": 3000},  # as many batches of each
    {"model.cross_attention.gated": False},
    {"model.cross_attention.every": 2},
    {"model.cross_attention.previous_media": True},  # all pictures before, not the last one alone
    {"config": "configs/miniature/mlp.py"},  # an MLP for the resampler
    {"trainable": ("^resampler/", "^language/", "extra_")},  # the language model trained, too
    {"config": "configs/miniature/flamingo_small.py"},  # a language model half as wide and half as deep
  ]
  return sweep.trials(
    config="configs/miniature/flamingo.py",
    changes=sweep.each_with(sweep.seeds(5), changes),
    outcome="few_shot/naming_*/8",
    best="max",
    also=[f"few_shot/naming_*/{shots}" for shots in SHOTS]
    + ["heldout/text_loss/captions", "heldout/text_loss/pages", "visual_gain/captions/other_media"],
  )
