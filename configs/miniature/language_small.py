"""First stage in miniature, half as wide and half as deep."""

from configs.miniature import language


def get_config():
  config = language.get_config()
  config.model.language.update(width=64, layers=2, heads=2, key_value_heads=2, feed_forward_width=192)
  return config
