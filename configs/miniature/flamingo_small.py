"""Flamingo in miniature on the smaller language model."""

from configs.miniature import flamingo, language_small


def get_config():
  config = flamingo.get_config()
  config.model.language = language_small.get_config().model.language
  config.model.language.extra_tokens = 2
  config.frozen.language = "runs/miniature/language_small"
  return config
