"""Every field of a run, with its default. The other configs start from here and change what they need.

Overrides on the command line reach any field: `--config.optimizer.learning_rate=3e-4`.
"""

from ml_collections import ConfigDict


def training() -> dict:
  """What every objective has."""
  return dict(
    seed=0,  # of parameters, the order of the records, windows, augmentation
    total_steps=500_000,
    trainable=("^resampler/", "/gated_cross_attention/", "extra_"),  # patterns of parameter paths; the rest is frozen
    frozen_dtype="bfloat16",  # of frozen parameters on the devices
    evaluate_every=5000,  # steps; also before the first step and after the last
    optimizer=dict(
      learning_rate=1e-4,
      warmup_steps=5000,
      schedule="constant",  # after warm-up; or "linear": to zero at the last step
      weight_decay=0.1,
      no_decay=("^resampler/", "norm/", "bias$", "gate$", "extra_"),  # patterns of parameter paths
      beta1=0.9,
      beta2=0.999,
      epsilon=1e-8,
      clip_norm=1.0,  # of the gradients summed over streams
    ),
    mesh=dict(replica=-1, fsdp=1, model=1),  # devices along each axis; -1: all that are left
    checkpoint=dict(every=1000, keep=1),
    start="",  # a folder of `flamingo import` or a run, whose trained parts this run begins with; empty: fresh ones
    tokenizer=dict(path="", bos=0, eos=0),  # a folder with tokenizer.json; ids that begin and end a document
    evaluation=dict(batches=4, samples=2),  # held-out batches a stream; samples a stream in the report
    streams=dict(),  # name -> stream(...)
  )


def stream(**changes) -> dict:
  """One stream of records; `source` and `layout` have no default."""
  defaults = dict(
    medium="image",  # or "video"
    weight=1.0,  # of this stream's loss in the sum
    batch_size=8,  # rows, over all devices
    length=256,  # L, tokens
    media=1,  # N, media slots a row
    frames=1,  # F, frames a slot
    frames_per_second=1.0,
    p_next=0.5,  # pages: how often text attends to the next image instead of the previous
    flip=False,  # left-right flips; off where pictures show text
    colour=0.0,  # strength of the colour jitter, 0 to 1
    crop=1.0,  # images: the smallest share of each side that a random crop keeps; 1: no crop
  )
  return defaults | changes


def flamingo() -> ConfigDict:
  """A visual language model on a frozen vision encoder and a frozen language model."""
  return ConfigDict(
    training()
    | dict(
      objective="flamingo",
      frozen=dict(vision="", language=""),  # a model folder, a finished run's work directory, or "random" (tests only)
      model=dict(
        dtype="bfloat16",  # of activations and matrix products
        vision=dict(width=256, layers=4, heads=4, feed_forward_multiplier=4, image_size=64, patch_size=8),
        resampler=dict(layers=6, latents=64, heads=16, feed_forward_multiplier=4, frames=8, activation="squared_relu"),
        cross_attention=dict(
          every=1, offset=0, heads=16, head_width=128, feed_forward_multiplier=4, activation="squared_relu"
        ),
        language=smollm2_135m(),
      ),
    )
  )


def contrastive() -> ConfigDict:
  """A vision encoder from scratch, by matching pictures and captions."""
  config = training() | dict(
    objective="contrastive",
    frozen=dict(language=""),  # a model folder whose token embeddings the text tower reads, frozen
    trainable=("^vision/", "^text/(?!embeddings)", "projection", "log_temperature"),
    model=dict(
      dtype="bfloat16",
      vision=dict(width=256, layers=4, heads=4, feed_forward_multiplier=4, image_size=64, patch_size=8),
      text=dict(width=256, layers=2, heads=4, feed_forward_multiplier=4),
      vocabulary=49152,
      embedding_width=576,  # of the token embeddings
      length=32,  # the longest text, tokens
      joint_width=256,
      temperature=0.07,  # at the start; learned
    ),
  )
  return ConfigDict(config)


def smollm2_135m() -> dict:
  """SmolLM2-135M, and two rows for the tokens that Flamingo adds."""
  return dict(
    vocabulary=49152,
    width=576,
    layers=30,
    heads=9,
    key_value_heads=3,
    feed_forward_width=1536,
    rope_base=100_000.0,
    norm_epsilon=1e-5,
    tied_embeddings=True,
    extra_tokens=2,
  )
