"""A run for tests: all three streams of real data, about a million parameters, a minute on two cores.

Its frozen parts are random, so it learns nothing worth having; it exercises everything else.
"""

from configs import base


def get_config():
  config = base.flamingo()
  config.total_steps = 40
  config.evaluate_every = 20
  config.frozen_dtype = config.model.dtype = "float32"
  config.frozen.vision = config.frozen.language = "random"
  config.tokenizer.path = "data/quickstart/language_model"
  config.tokenizer.update(bos=0, eos=0)  # <|endoftext|>; the GGUF file names those of a chat
  config.model.remat = "none"
  config.model.vision.update(width=32, layers=2, heads=2, image_size=32, patch_size=8)
  config.model.resampler.update(layers=1, latents=4, heads=2, frames=4)
  config.model.cross_attention.update(every=2, heads=2, head_width=8)
  config.model.language.update(width=16, layers=6, heads=2, key_value_heads=1, feed_forward_width=32)
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_steps = 5
  config.checkpoint.every = 5
  config.evaluation.update(batches=1, samples=1)
  config.streams = dict(
    pages=base.stream(
      source="data/quickstart/streams/pages", layout="interleaved", batch_size=8, length=64, media=3, flip=True
    ),
    captions=base.stream(
      source="data/quickstart/streams/captions", layout="pairs", weight=0.2, batch_size=8, length=24, colour=0.1
    ),
    videos=base.stream(
      source="data/quickstart/streams/videos",
      layout="pairs",
      medium="video",
      weight=0.03,
      batch_size=8,
      length=32,
      frames=4,
      frames_per_second=4.0,
    ),
  )
  return config
