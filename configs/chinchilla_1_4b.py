"""Chinchilla-1.4B, the language model that Flamingo-3B freezes (Hoffmann et al., 2022).

Neither its weights nor MassiveText are public; put documents of your own in their place.
"""

from configs import base, language


def get_config():
  config = base.language_model()
  config.model.language = language.chinchilla_1_4b() | dict(extra_tokens=0)
  config.tokenizer = dict(path="models/tokenizer", bos=0, eos=1)  # of `flamingo data train-tokenizer`
  # Twenty tokens a parameter (their table 3), in the batches of a quarter of a million that Gopher-1.4B had.
  config.total_steps = 107_000
  # A cosine as long as the run, to a tenth (their section 3.1 and figure A1); the peak is Gopher-1.4B's, as is beta2.
  config.optimizer.update(learning_rate=2e-4, warmup_steps=1500, schedule="cosine", beta2=0.95)
  config.mesh = dict(replica=-1, fsdp=8, model=1)
  config.streams = dict(
    text=base.stream(source="data/massive_text", layout="text", batch_size=128, length=2048, media=32, pack=True)
  )
  return config
