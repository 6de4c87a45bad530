"""Flamingo-80B: Chinchilla-70B with a gated layer before every 7th layer, each sharded over 16 devices."""

from configs import flamingo_3b, language


def get_config():
  config = flamingo_3b.get_config()
  config.frozen.language = config.tokenizer.path = "models/chinchilla_70b"
  config.model.language = language.chinchilla_70b()
  config.model.resampler.output_width = config.model.language.width
  config.model.cross_attention.update(every=7, heads=64)
  # ZeRO-1 over 4 x 16 chips: weights are cut over the 16 alone, so that none is gathered in the forward pass.
  config.mesh.update(fsdp=4, model=16)
  config.sharding.update(trainable="model", frozen="model")
  config.model.remat = "full"
  # On 1,536 chips there are 96 parts of a batch; these are its multiples next to the 3B's.
  for name, rows in dict(m3w=288, align=576, ltip=576, vtp=96).items():
    config.streams[name].batch_size = rows
  return config
