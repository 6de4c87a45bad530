"""Flamingo-80B fine-tuned to caption COCO: the vision encoder is trained too, at 480 pixels (paper, appendix B.2.2).

The language model stays frozen. The paper chooses learning rate (3e-8 to 1e-5), batch (8 or 16) and augmentation for
each task; these are one choice of them.
"""

from configs import base, flamingo_80b


def get_config():
  config = flamingo_80b.get_config()
  config.start = "runs/flamingo_80b"
  config.trainable += ("^vision/",)
  config.total_steps = 10_000
  config.evaluate_every = 1000
  config.model.vision.image_size = 480
  config.optimizer.update(learning_rate=1e-5, warmup_steps=0, schedule="exponential")
  config.streams = dict(
    captions=base.stream(
      source="data/coco_captions", layout="pairs", prompt="Output:", batch_size=16, length=64, flip=True, colour=0.1
    )
  )
  return config
