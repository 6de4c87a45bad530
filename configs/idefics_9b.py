"""IDEFICS-9B (Laurençon et al., 2023): CLIP ViT-H/14 and Llama-7B with a gated layer before every 4th layer."""

from configs import base, language, vision


def get_config():
  config = base.flamingo()
  config.frozen = dict(vision="models/clip_vit_h14", language="models/llama_7b")
  config.tokenizer = dict(path="models/llama_7b", bos=1, eos=2)
  config.model.vision = vision.clip_vit_h14()
  config.model.resampler.update(heads=16, head_width=96, frames=0, activation="relu", head_norm="layer")
  config.model.language = language.llama_7b()
  # A gated layer is a Llama's, but for the gates and for the norms of its heads.
  config.model.cross_attention.update(
    every=4,
    heads=32,
    feed_forward_multiplier=11_008 / 4096,
    activation="silu",
    gated_feed_forward=True,
    norm="rms",
    norm_epsilon=1e-6,
    head_norm="rms",
  )
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_steps = 2000
  config.total_steps = 200_000
  config.mesh = dict(replica=-1, fsdp=16, model=1)
  # Weights are the shares of training tokens that each dataset had; slots and batch sizes are ours.
  config.streams = dict(
    obelics=base.stream(
      source="data/obelics", layout="interleaved", weight=0.7385, batch_size=768, length=1024, media=8, p_next=0.0
    ),
    wikipedia=base.stream(
      source="data/wikipedia", layout="interleaved", weight=0.0615, batch_size=64, length=1024, media=8, p_next=0.0
    ),
    laion=base.stream(source="data/laion_2b", layout="pairs", weight=0.1718, batch_size=1024, length=64),
    pmd=base.stream(source="data/pmd", layout="pairs", weight=0.0282, batch_size=256, length=64),
  )
  return config
