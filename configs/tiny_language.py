"""A language run for tests: the text of the quickstart's pages, in seconds; `tiny.py` can freeze what it trains."""

from configs import base, tiny


def get_config():
  flamingo = tiny.get_config()
  config = base.language_model()
  config.total_steps = 40
  config.evaluate_every = 20
  config.model.dtype = "float32"
  config.model.language = flamingo.model.language.copy_and_resolve_references()
  config.model.language.extra_tokens = 0
  config.tokenizer.path = "data/quickstart/language_model"
  config.tokenizer.update(bos=0, eos=0)  # <|endoftext|>; the GGUF file names those of a chat
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_steps = 5
  config.checkpoint.every = 20
  config.evaluation.update(batches=1, samples=1)
  config.streams = dict(
    pages=base.stream(
      source="data/quickstart/streams/pages", layout="text", batch_size=8, length=64, media=4, pack=True
    )
  )
  return config
