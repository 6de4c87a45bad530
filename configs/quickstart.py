"""The quickstart: SmolLM2-135M learns to see. Minutes on two cores, on real pages, pictures and videos."""

from configs import base


def get_config():
  config = base.flamingo()
  config.total_steps = 70
  config.evaluate_every = 35
  config.frozen_dtype = config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
  config.frozen.language = config.tokenizer.path = "data/quickstart/language_model"
  config.tokenizer.update(bos=0, eos=0)  # <|endoftext|>; the GGUF file names those of a chat
  config.frozen.vision = "runs/quickstart/vision"
  config.model.resampler.update(layers=2, latents=16, heads=4)
  config.model.cross_attention.update(every=6, heads=8, head_width=64)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 15
  config.checkpoint.every = 35
  # The paper's weights are 1.0, 0.2 and 0.03; here captions are what teaches the model to look, in few steps.
  config.streams = dict(
    pages=base.stream(
      source="data/quickstart/streams/pages",
      layout="interleaved",
      weight=1.0,
      batch_size=2,
      length=128,
      media=4,
      colour=0.1,
    ),
    captions=base.stream(
      source="data/quickstart/streams/captions", layout="pairs", weight=1.0, batch_size=20, length=24, colour=0.1
    ),
    videos=base.stream(
      source="data/quickstart/streams/videos",
      layout="pairs",
      medium="video",
      weight=0.03,
      batch_size=2,
      length=32,
      frames=8,
      frames_per_second=3.0,
    ),
  )
  return config
