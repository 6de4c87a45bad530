"""First stage in miniature: a vision encoder from scratch, by contrast, on coloured digits and what they are."""

from configs import base


def get_config():
  config = base.contrastive()
  config.total_steps = 400
  config.evaluate_every = 100
  config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
  config.model.vision.update(width=64, layers=3, heads=4, image_size=16, patch_size=4)
  config.model.text.update(width=64, layers=1, heads=2)
  config.model.update(vocabulary=368, embedding_width=64, length=12, joint_width=64)
  config.trainable = ("^vision/", "^text/", "projection", "^log")
  config.tokenizer.path = "data/miniature/tokenizer"
  config.tokenizer.update(bos=0, eos=1)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 40
  config.optimizer.schedule = "cosine"
  config.optimizer.no_decay = ("norm/", "bias$", "embeddings", "log_temperature")
  config.checkpoint.every = 200
  config.evaluation.batches = 2
  config.streams = dict(
    captions=base.stream(source="data/miniature/captions", layout="pairs", batch_size=128, length=12),
  )
  return config
