"""Flamingo in miniature with an MLP in the resampler's place, of as many latents."""

from configs import base
from configs.miniature import flamingo


def get_config():
  config = flamingo.get_config()
  config.model.resampler = base.mlp_resampler(latents=4, hidden_width=64)
  return config
