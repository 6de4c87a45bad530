"""First stage in miniature: a language model from scratch, on text in which names are given and used."""

from configs import base


def get_config():
  config = base.language_model()
  config.total_steps = 3000
  config.evaluate_every = 500
  config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
  config.model.remat = "none"
  config.model.language.update(
    vocabulary=368, width=128, layers=4, heads=4, key_value_heads=4, feed_forward_width=384, rope_base=1000.0
  )
  config.tokenizer.path = "data/miniature/tokenizer"
  config.tokenizer.update(bos=0, eos=1)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.beta2 = 0.98
  config.checkpoint.every = 500
  config.evaluation.batches = 2
  config.streams = dict(
    text=base.stream(source="data/miniature/text", layout="text", batch_size=32, length=96, media=8, pack=True)
  )
  return config
