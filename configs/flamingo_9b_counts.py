"""Flamingo-9B with as many parameters as the paper counts: 32 layers, a gated layer before every 4th, 8 in all."""

from configs import flamingo_9b, language


def get_config():
  config = flamingo_9b.get_config()
  config.model.language = language.chinchilla_7b_by_count()
  return config
