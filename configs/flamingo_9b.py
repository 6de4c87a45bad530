"""Flamingo-9B as table 1 of the paper has it: 40 layers, a gated layer before every 4th, 10 in all.

Such a model is larger than the paper's counts say; `flamingo_9b_counts.py` is the one that fits them.
"""

from configs import flamingo_3b, language


def get_config():
  config = flamingo_3b.get_config()
  config.frozen.language = config.tokenizer.path = "models/chinchilla_7b"
  config.model.language = language.chinchilla_7b()
  config.model.resampler.output_width = config.model.language.width
  config.model.cross_attention.update(every=4, heads=32)
  config.mesh.fsdp = 16
  return config
