"""First stage of the quickstart: a small vision encoder, trained by contrast on captioned pictures."""

from configs import base


def get_config():
  config = base.contrastive()
  config.total_steps = 90
  config.evaluate_every = 45
  config.frozen_dtype = config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
  config.model.length = 24
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 20
  config.optimizer.schedule = "linear"
  config.optimizer.no_decay = ("norm/", "bias$", "embeddings", "log_temperature")
  config.checkpoint.every = 45
  config.frozen.language = config.tokenizer.path = "data/quickstart/language_model"
  config.tokenizer.update(bos=0, eos=0)  # <|endoftext|>; the GGUF file names those of a chat
  config.evaluation.batches = 1
  config.streams = dict(
    captions=base.stream(
      source="data/quickstart/streams/captions", layout="pairs", batch_size=96, length=24, colour=0.3, crop=0.5
    ),
  )
  return config
