"""Flamingo in miniature: names for handwritten digits that only the prompt explains."""

from configs import base


def get_config():
  config = base.flamingo()
  config.total_steps = 1500
  config.evaluate_every = 300
  config.frozen_dtype = config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
  config.model.remat = "none"
  config.frozen.vision = "runs/miniature/vision"
  config.frozen.language = "runs/miniature/language"
  config.tokenizer.path = "data/miniature/tokenizer"
  config.tokenizer.update(bos=0, eos=1)
  config.model.vision.update(width=64, layers=3, heads=4, image_size=16, patch_size=4)
  config.model.resampler.update(layers=1, latents=4, heads=4, frames=0)
  config.model.cross_attention.update(heads=4, head_width=32)
  config.model.language.update(
    vocabulary=368, width=128, layers=4, heads=4, key_value_heads=4, feed_forward_width=384, rope_base=1000.0
  )
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 30
  config.checkpoint.every = 300
  config.evaluation.batches = 4
  # Text is about the picture before it, as in the prompts: pages that are read the other way would name the next one.
  config.streams = dict(
    captions=base.stream(source="data/miniature/captions", layout="pairs", batch_size=32, length=10),
    pages=base.stream(
      source="data/miniature/pages", layout="interleaved", batch_size=16, length=88, media=9, p_next=0.0
    ),
  )
  config.few_shot.update(context=128, frames=1, batch_size=32)
  config.few_shot.benchmarks = {
    f"naming_{number}": base.benchmark(
      task="matching", folder=f"data/miniature/naming-{number}", shots=(0, 1, 2, 4, 8), queries=64, support=400
    )
    for number in range(4)
  }
  return config
