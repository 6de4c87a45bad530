"""Flamingo-80B: Chinchilla-70B with a gated layer before every 7th layer, each sharded over 16 devices."""

from configs import flamingo_3b, language


def get_config():
  config = flamingo_3b.get_config()
  config.frozen.language = config.tokenizer.path = "models/chinchilla_70b"
  config.model.language = language.chinchilla_70b()
  config.model.resampler.output_width = config.model.language.width
  config.model.cross_attention.update(every=7, heads=64)
  config.mesh.update(fsdp=1, model=16)
  return config
