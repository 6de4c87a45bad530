"""OpenFlamingo-9B: MPT-7B with a gated layer before every 4th layer."""

from configs import language, openflamingo_3b


def get_config():
  config = openflamingo_3b.get_config()
  config.frozen.language = config.tokenizer.path = "models/mpt_7b"
  config.model.language = language.mpt_7b()
  config.model.cross_attention.update(every=4, offset=3)
  config.mesh.fsdp = 16
  return config
