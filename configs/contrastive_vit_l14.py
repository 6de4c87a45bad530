"""CLIP's ViT-L/14, the encoder of OpenFlamingo and of one of the paper's ablations, trained on pairs of one's own.

The text tower is as large as CLIP's (Radford et al., 2021, table 20), but reads both ways; the batch is the paper's.
"""

from configs import base, vision


def get_config():
  config = base.contrastive()
  config.total_steps = 400_000
  config.trainable = ("",)  # everything
  config.tokenizer = dict(path="models/clip", bos=49406, eos=49407)
  config.model.vision = vision.clip_vit_l14()
  config.model.text = vision.encoder(width=768, layers=12, heads=12, attention_bias=True)
  config.model.update(vocabulary=49408, embedding_width=768, length=77, joint_width=768)
  config.model.remat = "full"
  config.optimizer.update(learning_rate=4e-4, warmup_steps=2000, schedule="linear", weight_decay=0.2)
  config.optimizer.update(no_decay=("norm/", "bias$", "embedding", "^log"), beta2=0.98, epsilon=1e-6)
  config.mesh = dict(replica=-1, fsdp=8, model=1)
  config.evaluation.batches = 1
  config.streams = dict(
    align=base.stream(source="data/align", layout="pairs", batch_size=16384, length=77, crop=0.9),
    ltip=base.stream(source="data/ltip", layout="pairs", batch_size=16384, length=77, crop=0.9),
  )
  return config
