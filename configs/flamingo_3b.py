"""Flamingo-3B: Chinchilla-1.4B with a gated layer before every layer (paper, tables 1 and 5).

Neither Chinchilla nor the paper's datasets are public; put your own in their places.
"""

from configs import base, language, vision


def get_config():
  config = base.flamingo()
  config.frozen = dict(vision="models/nfnet_f6", language="models/chinchilla_1_4b")
  config.tokenizer = dict(path="models/chinchilla_1_4b", bos=1, eos=2)
  config.model.vision = vision.nfnet_f6()
  config.model.language = language.chinchilla_1_4b()
  config.model.resampler.output_width = config.model.language.width  # as the paper's counts of gated layers say
  config.mesh = dict(replica=-1, fsdp=8, model=1)
  # Weights are the paper's; it gives batch sizes for its ablations alone, and those are here.
  config.streams = dict(
    m3w=stream("data/m3w", layout="interleaved", weight=1.0, batch_size=256, length=256, media=5),
    align=stream("data/align", layout="pairs", weight=0.2, batch_size=512, length=32),
    ltip=stream("data/ltip", layout="pairs", weight=0.2, batch_size=512, length=32),
    vtp=stream("data/vtp", layout="pairs", medium="video", weight=0.03, batch_size=64, length=64, frames=8),
  )
  return config


def stream(source: str, **changes) -> dict:
  """Records with the augmentation that the paper names; how strong its colours vary is not said."""
  return base.stream(source=source, flip=True, colour=0.1, **changes)
