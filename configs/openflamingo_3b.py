"""OpenFlamingo-3B (Awadalla et al., 2023): CLIP ViT-L/14 and MPT-1B with a gated layer before every layer."""

from configs import base, language, vision


def get_config():
  config = base.flamingo()
  config.frozen = dict(vision="models/clip_vit_l14", language="models/mpt_1b")
  config.tokenizer.path = "models/mpt_1b"
  config.model.vision = vision.clip_vit_l14()
  config.model.resampler.update(heads=8, head_width=64, frames=0, activation="gelu")
  config.model.cross_attention.update(heads=8, head_width=64, activation="gelu")
  config.model.language = language.mpt_1b()
  config.mesh = dict(replica=-1, fsdp=8, model=1)
  # 60M pages and 120M pairs. How they were cut into batches depended on the machines; these sizes are ours.
  config.total_steps = 60_000_000 // 1024
  config.streams = dict(
    mmc4=base.stream(
      source="data/mmc4",
      layout="interleaved",
      batch_size=1024,
      length=256,
      media=6,
      p_next=0.0,  # it attends to the previous image always
      labels="chunks",
      flip=True,
    ),
    laion=base.stream(
      source="data/laion_2b", layout="pairs", weight=0.2, batch_size=2048, length=32, labels="chunks", flip=True
    ),
  )
  return config
