"""The paper's vision encoder: NFNet-F6 and a BERT, trained by contrast on ALIGN and LTIP (section 2.4, appendix B.1.3).

Neither dataset is public; put your own in their places. What the paper does not state, and is ours: the size of its
BERT (here BERT-base), betas, and the strength of colour changes. Its batch of 16,384 is taken to be that of each
gradient that is accumulated.
"""

from configs import base, vision


def get_config():
  config = base.contrastive()
  config.total_steps = 1_200_000
  config.trainable = ("",)  # everything
  config.tokenizer = dict(path="models/bert", bos=101, eos=102)
  config.model.vision = vision.nfnet("F6", image_size=288)
  config.model.text = vision.encoder(width=768, layers=12, heads=12, attention_bias=True, norm_epsilon=1e-12)
  config.model.update(vocabulary=30522, embedding_width=768, length=32, joint_width=1376, label_smoothing=0.1)
  config.model.remat = "full"
  config.optimizer.update(learning_rate=1e-3, warmup_steps=0, schedule="linear", weight_decay=0.0, no_decay=())
  config.optimizer.update(clip_norm=10.0, adaptive_clip=1e-2, adaptive_clip_on=("^vision/",))
  config.evaluation.batches = 1
  config.streams = dict(align=stream("data/align"), ltip=stream("data/ltip"))
  return config


def stream(source: str) -> dict:
  return base.stream(source=source, layout="pairs", batch_size=16384, length=32, flip=True, colour=0.1)
