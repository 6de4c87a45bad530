"""Every field of a run, with its default. The other configs start from here and change what they need.

Overrides on the command line reach any field: `--config.optimizer.learning_rate=3e-4`.
"""

from ml_collections import ConfigDict

from configs import language, vision

SCALES = ("norm/", "bias$", "gain$")  # patterns of the paths of what no objective decays; "gain$": NFNets'


def training() -> dict:
  """What every objective has."""
  return dict(
    seed=0,  # of parameters, the order of the records, windows, augmentation
    total_steps=500_000,
    trainable=("^resampler/", "/gated_cross_attention/", "extra_"),  # patterns of parameter paths; the rest is frozen
    frozen_dtype="bfloat16",  # of frozen parameters on the devices
    mixture="accumulate",  # every update is of all streams; or "round_robin": of one after the other
    evaluate_every=5000,  # steps; also before the first step and after the last
    writers=(),  # "wandb", "mlflow": that are sent what is recorded, beside TensorBoard's files (docs/watch.md)
    optimizer=dict(
      learning_rate=1e-4,
      warmup_steps=5000,
      schedule="constant",  # after warm-up; or "linear" to zero at the last step, "exponential", "cosine" to a tenth
      weight_decay=0.1,
      no_decay=("^resampler/", *SCALES, "gate$", "extra_"),  # patterns of parameter paths
      beta1=0.9,
      beta2=0.999,
      epsilon=1e-8,
      clip_norm=1.0,  # of the gradients summed over streams
      adaptive_clip=0.0,  # largest norm of a unit's gradient, times that of its weights (NFNets); 0: no such clipping
      adaptive_clip_on=(),  # patterns of the paths that are clipped so, and not by clip_norm
    ),
    mesh=dict(replica=-1, fsdp=1, model=1),  # devices along each axis; -1: all that are left
    # How far each kind of array is cut: along "model" alone, or "fsdp" as well. The optimizer's are gradients too.
    sharding=dict(trainable="fsdp", optimizer="fsdp", frozen="fsdp"),
    checkpoint=dict(
      every=1000,  # steps; the last step is always saved
      keep=3,  # the newest, and beside them
      keep_every=0,  # steps, whose multiples are kept for good; 0: none
      best="",  # a metric of metrics.jsonl, such as "heldout/text_loss/captions", by which the best are kept
      best_mode="min",  # or "max"
      keep_best=1,
    ),
    guard=dict(  # docs/runs.md
      skips_in_a_row=10,  # updates of numbers that are not finite are left out; at so many in a row the run stops
      spike=0.0,  # losses so many standard deviations above the running mean are left out too; 0: none
      spike_window=100,  # updates, over which mean and deviation run
      hang_seconds=1800.0,  # without the end of a step, after which stacks are written and the process ends; 0: never
    ),
    start="",  # a run of the same objective, or an imported model, that this one begins with; empty: fresh parameters
    tokenizer=dict(  # a folder with tokenizer.json
      path="",
      bos=None,  # the id that begins a document; None: as the folder's config.json says, or 0 where it does not
      eos=None,  # the id that ends one
    ),
    evaluation=dict(batches=4, samples=2),  # held-out batches a stream, at most; samples a stream in the report
    streams=dict(),  # name -> stream(...)
  )


def stream(**changes) -> dict:
  """One stream of records; `source`, one folder or a tuple of several, and `layout` have no default."""
  defaults = dict(
    medium="image",  # or "video", or "features": what `flamingo data features` made of either
    weight=1.0,  # of this stream's loss in the sum
    batch_size=8,  # rows, over all devices
    length=256,  # L, tokens
    media=1,  # N, media slots a row; of a packed row, the most pairs or documents it may hold
    frames=1,  # F, frames a slot
    frames_per_second=1.0,  # 0: spread evenly over the clip
    pack=False,  # pairs, text: as many of them in a row as it has room for
    prompt="",  # pairs: stands, unlearnt, before each caption, as "Output:"; {} in it: the text before the medium
    p_next=0.5,  # pages: how often text attends to the next image instead of the previous
    labels="text",  # what is learnt: all text; or "chunks": as OpenFlamingo, only from an image to its <EOC>
    flip=False,  # left-right flips; off where pictures show text
    colour=0.0,  # strength of the colour jitter, 0 to 1
    crop=1.0,  # images: the smallest share of each side that a random crop keeps; 1: no crop
    shares=(),  # of several sources, how many rows each gives in its turn; empty: one each
    maximum_skipped=0.01,  # share of records with something unusable above which a run stops
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
        attention="auto",  # by "splash" on a TPU, "cudnn" on a GPU, "xla" elsewhere; or one of these three by name
        remat="products",  # what of a layer is kept for its gradient, from "none" (all) by "products", "dots" to "full"
        vision=vision.vit(),
        resampler=resampler(),
        cross_attention=cross_attention(),
        language=language.smollm2_135m(),
      ),
      few_shot=few_shot(),  # benchmarks that each evaluation puts to the model too
    )
  )


def contrastive() -> ConfigDict:
  """A vision encoder from scratch, by matching pictures and captions."""
  config = training() | dict(
    objective="contrastive",
    frozen=dict(language=""),  # a model folder whose token embeddings the text tower reads; empty: fresh ones, trained
    trainable=("^vision/", "^text/(?!embeddings)", "projection", "^log"),
    model=dict(
      dtype="bfloat16",
      attention="auto",  # as in `flamingo`
      remat="none",  # likewise; for encoders that are trained and large
      vision=vision.vit(),
      text=vision.encoder(layers=2),
      vocabulary=49152,
      embedding_width=576,  # of the token embeddings
      length=32,  # the longest text, tokens
      joint_width=256,
      loss="softmax",  # or "sigmoid": SigLIP's
      label_smoothing=0.0,  # of the softmax: this share of each target is spread over all that is offered
      temperature=0.07,  # at the start; learned, and never below 0.01
      bias=-10.0,  # of the sigmoid's scores, at the start; learned
    ),
    zero_shot=dict(),  # name -> zero_shot(...): pictures that each evaluation classifies
  )
  config["optimizer"].update(no_decay=(*SCALES, "embeddings?$", "^log"))
  return ConfigDict(config)


def language_model() -> ConfigDict:
  """A language model from scratch, by predicting the next token of documents."""
  config = training() | dict(
    objective="language",
    trainable=("^language/",),
    model=dict(
      dtype="bfloat16",
      attention="auto",  # as in `flamingo`
      remat="products",  # likewise
      language=language.decoder(extra_tokens=0),  # Flamingo adds its own
    ),
  )
  config["optimizer"].update(no_decay=SCALES, schedule="cosine")
  return ConfigDict(config)


def zero_shot(**changes) -> dict:
  """One benchmark of pictures with candidates; `folder`, that of its data set (docs/evaluation.md), has no default."""
  defaults = dict(
    task="",  # such as "imagenet" or "matching"; empty: the benchmark's own name
    split="",  # what is classified; empty: as in the paper
    queries=0,  # so many, drawn from the split, the same each time; 0: all
    prompts=("{}",),  # that a class is put in; {} stands for its name
  )
  return defaults | changes


def few_shot() -> dict:
  """Few-shot benchmarks, and how they are evaluated (docs/evaluation.md)."""
  return dict(
    batch_size=8,  # queries, over all devices
    context=2048,  # tokens that the language model was made for; prompts that are longer are refused
    frames=30,  # of a film, at most; more than the resampler has embeddings for interpolate these (paper, A.3.2)
    frames_per_second=3.0,  # 0: spread evenly over the clip
    media_memory=8.0,  # GiB on each host for what the encoder saw
    wordnet="",  # folder of WordNet's database, which only WUPS needs
    benchmarks=dict(),  # name -> benchmark(...)
  )


def evaluation() -> ConfigDict:
  """What `flamingo evaluate` reads."""
  return ConfigDict(
    few_shot()
    | dict(
      control="",  # or "image_blind", "shuffled_images", "shuffled_shots"
      mesh=dict(replica=-1, fsdp=1, model=1),  # as in training
      tokenizer=dict(path="", bos=None, eos=None),  # of an imported Flamingo; path: where its folder has no tokenizer
    )
  )


def benchmark(**changes) -> dict:
  """One benchmark; `folder`, that of its data set, has no default."""
  defaults = dict(
    task="",  # a name of docs/evaluation.md; empty: the benchmark's own
    split="",  # what is evaluated; empty: as in the paper; "development": the paper's development queries
    shots=(0, 4, 8, 16, 32),
    selection="random",  # for each query; or "fixed": the same for all; or "nearest": RICES
    orders=1,  # of the shots, over which candidates' log-likelihoods are averaged; the paper's ensembles have 6
    support=0,  # examples that shots are chosen from, of each class where there are classes; 0: as in the paper
    queries=0,  # so many, drawn from the split; 0: all
    seeds=(0,),  # of shots and orders; each is a setting of its own
    beams=3,  # width of the search for an answer; 1: greedy
    length_penalty=1.0,
    new_tokens=32,  # of an answer, at most
  )
  return defaults | changes


def resampler(**changes) -> dict:
  """The paper's; None in its place: text reads the features themselves."""
  defaults = dict(
    family="perceiver",  # or "mlp": see mlp_resampler
    layers=6,
    latents=64,
    heads=16,
    head_width=0,  # 0: the vision encoder's width divided by the heads
    feed_forward_multiplier=4.0,
    frames=8,  # temporal embeddings; more frames than this interpolate them; 0: none
    media=0,  # embeddings of a medium's place among the others; 0: none
    activation="squared_relu",
    head_norm="",  # of queries and keys: "layer" or "rms"; empty: none
    output_width=0,  # the latents are projected to it; 0: they are not
  )
  return defaults | changes


def mlp_resampler(**changes) -> dict:
  """One feed-forward network over all features of a medium, in the resampler's place (paper, table 3)."""
  defaults = dict(
    family="mlp",
    latents=64,
    hidden_width=1024,
    frames=1,  # of a clip, at most
    activation="squared_relu",
    output_width=0,  # of a latent; 0: the vision encoder's width
  )
  return defaults | changes


def cross_attention(**changes) -> dict:
  """The paper's gated layers."""
  defaults = dict(
    every=1,  # they stand before language layers offset, offset + every, ...
    offset=0,
    after=False,  # they stand after those layers instead
    heads=16,
    head_width=128,
    feed_forward_multiplier=4.0,
    activation="squared_relu",
    gated_feed_forward=False,
    norm="layer",  # or "rms"
    norm_epsilon=1e-5,
    head_norm="",  # of queries and keys: "layer" or "rms"; empty: none
    gated=True,  # False: what they give is added as it is
    vector_gates=False,  # a gate for every channel instead of one for the layer
    previous_media=False,  # text reads all media up to its own, not its own alone
    blind_sees_all=False,  # as OpenFlamingo does with previous_media; only to compare with it
  )
  return defaults | changes
