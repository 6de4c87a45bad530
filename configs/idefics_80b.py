"""IDEFICS-80B: Llama-65B with a gated layer before every 4th layer, each sharded over 16 devices."""

from configs import idefics_9b, language


def get_config():
  config = idefics_9b.get_config()
  config.frozen.language = config.tokenizer.path = "models/llama_65b"
  config.model.language = language.llama_65b()
  config.model.cross_attention.update(heads=64, feed_forward_multiplier=22_016 / 8192, norm_epsilon=1e-5)
  config.mesh.update(fsdp=1, model=16)
  return config
