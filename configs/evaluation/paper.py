"""The paper's sixteen benchmarks, its ImageNet and Kinetics700: splits, shots and decoding of its main tables.

Each reads a folder that you fill (docs/evaluation.md). Where answers are kept back, predictions are written and not
scored.
"""

from configs import base

OPEN_ENDED = ("coco", "flickr30k", "vatex", "youcook2", "vqav2", "okvqa", "textvqa", "vizwiz")
FILM_QUESTIONS = ("msvdqa", "msrvttqa", "ivqa", "nextqa")


def get_config():
  config = base.evaluation()
  config.wordnet = "/usr/share/wordnet"
  ranked = dict(
    star=dict(),
    visdial=dict(shots=(0, 4, 8, 16)),
    hateful_memes=dict(),
    rareact=dict(shots=(0,)),
    imagenet=dict(shots=(16,), selection="nearest"),
    kinetics=dict(shots=(16,), selection="nearest"),
  )
  config.benchmarks = {name: base.benchmark(folder=f"data/{name}") for name in OPEN_ENDED + FILM_QUESTIONS} | {
    name: base.benchmark(folder=f"data/{name}", **changes) for name, changes in ranked.items()
  }
  return config
