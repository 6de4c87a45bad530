"""The quickstart's model fine-tuned to caption pictures of half again the size; minutes on two cores."""

from configs import base, quickstart


def get_config():
  config = quickstart.get_config()
  config.start = "runs/quickstart/flamingo"
  config.trainable += ("^vision/",)
  config.total_steps = config.evaluate_every = config.checkpoint.every = 20
  config.model.vision.image_size = 96  # pixels a side; the quickstart's vision encoder was trained at 64
  config.optimizer.update(learning_rate=3e-4, warmup_steps=0, schedule="exponential")
  config.optimizer.no_decay += ("embeddings$",)  # of positions
  config.streams = dict(
    captions=base.stream(
      source="data/quickstart/streams/captions",
      layout="pairs",
      prompt="Output:",
      batch_size=16,
      length=28,
      colour=0.1,
    )
  )
  return config
