"""OpenFlamingo-4B: RedPajama-INCITE-3B with a gated layer before every 2nd layer."""

from configs import language, openflamingo_3b


def get_config():
  config = openflamingo_3b.get_config()
  config.frozen.language = config.tokenizer.path = "models/redpajama_3b"
  config.model.language = language.redpajama_3b()
  config.model.cross_attention.update(every=2, offset=1)
  return config
