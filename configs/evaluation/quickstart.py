"""Few shots on the quickstart's held-out pictures: captions, and which caption belongs to which picture. Minutes."""

from configs import base


def get_config():
  config = base.evaluation()
  shared = dict(folder="data/quickstart/evaluation", shots=(0, 4, 8), queries=48, support=256)
  config.benchmarks = dict(
    captions=base.benchmark(task="pictures", new_tokens=24, **shared),
    matching=base.benchmark(task="matching", **shared),
    matching_rices=base.benchmark(task="matching", selection="nearest", **shared),
  )
  return config
