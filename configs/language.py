"""Language models, as the fields of `model.language`. Each has two rows more for the tokens that Flamingo adds.

A preset describes the model as it was published, so that a folder which `flamingo import` wrote from it fits.
"""


def decoder(**changes) -> dict:
  """Every field, as SmolLM2-135M has it."""
  defaults = dict(
    vocabulary=49152,  # rows of the token table as published; some are padded beyond what the tokenizer knows
    width=576,
    layers=30,
    heads=9,
    key_value_heads=3,
    head_width=0,  # 0: the width divided by the heads
    feed_forward_width=1536,
    activation="silu",  # or "gelu", "gelu_tanh", "relu", "squared_relu"
    gated_feed_forward=True,
    bias=False,  # of every linear map in the layers
    norm="rms",  # or "layer", "layer_without_bias"
    norm_epsilon=1e-5,
    query_key_norm=False,  # over all heads together
    residual="sequential",  # or "parallel": attention beside feed-forward; "shared": with one norm for both
    positions="rotary",  # or "learned", "alibi", "relative" (Transformer-XL)
    rope_base=100_000.0,
    rotary_share=1.0,  # how much of each head is rotated
    position_rows=0,  # of the learned table
    position_offset=0,  # the row of the first token
    tied_embeddings=True,
    extra_tokens=2,  # rows of a small table of their own: <image> and <EOC>
  )
  return defaults | changes


def smollm2_135m() -> dict:
  """The quickstart's."""
  return decoder()


def chinchilla(layers: int, width: int) -> dict:
  """Hoffmann et al., 2022: heads of 128 channels, relative positions, feed-forward blocks four times as wide."""
  heads = width // 128
  return decoder(
    vocabulary=32_000,
    width=width,
    layers=layers,
    heads=heads,
    key_value_heads=heads,
    feed_forward_width=4 * width,
    activation="gelu",
    gated_feed_forward=False,
    positions="relative",
  )


def chinchilla_1_4b() -> dict:
  return chinchilla(layers=24, width=2048)


def chinchilla_7b() -> dict:
  """As table 1 of the Flamingo paper describes it; that is 8.9B parameters, where the paper counts 7.1B."""
  return chinchilla(layers=40, width=4096)


def chinchilla_7b_by_count() -> dict:
  """The depth that gives 7.1B at that width."""
  return chinchilla(layers=32, width=4096)


def chinchilla_70b() -> dict:
  return chinchilla(layers=80, width=8192)


def llama(layers: int, width: int, feed_forward_width: int, norm_epsilon: float) -> dict:
  """Touvron et al., 2023, the first Llama."""
  heads = width // 128
  return decoder(
    vocabulary=32_000,
    width=width,
    layers=layers,
    heads=heads,
    key_value_heads=heads,
    feed_forward_width=feed_forward_width,
    norm_epsilon=norm_epsilon,
    rope_base=10_000.0,
    tied_embeddings=False,
  )


def llama_7b() -> dict:
  return llama(layers=32, width=4096, feed_forward_width=11_008, norm_epsilon=1e-6)


def llama_65b() -> dict:
  return llama(layers=80, width=8192, feed_forward_width=22_016, norm_epsilon=1e-5)


def mpt(layers: int, width: int, heads: int, vocabulary: int, query_key_norm: bool = False) -> dict:
  """MosaicML's: ALiBi and no biases at all."""
  return decoder(
    vocabulary=vocabulary,
    width=width,
    layers=layers,
    heads=heads,
    key_value_heads=heads,
    feed_forward_width=4 * width,
    activation="gelu",
    gated_feed_forward=False,
    norm="layer_without_bias",
    query_key_norm=query_key_norm,
    positions="alibi",
  )


def mpt_1b() -> dict:
  """mpt-1b-redpajama-200b, of the type `mosaic_gpt`: before MPT was in transformers."""
  return mpt(layers=24, width=2048, heads=16, vocabulary=50_368, query_key_norm=True)


def mpt_7b() -> dict:
  return mpt(layers=32, width=4096, heads=32, vocabulary=50_432)


def gpt_neox(**changes) -> dict:
  """EleutherAI's, with queries, keys and values from one map."""
  shared = dict(
    activation="gelu", gated_feed_forward=False, bias=True, norm="layer", rope_base=10_000.0, tied_embeddings=False
  )
  return decoder(**shared, **changes)


def redpajama_3b() -> dict:
  """RedPajama-INCITE-Base-3B."""
  return gpt_neox(vocabulary=50_432, width=2560, layers=32, heads=32, key_value_heads=32, feed_forward_width=10_240)


def pythia_1_4b() -> dict:
  return gpt_neox(
    vocabulary=50_304,
    width=2048,
    layers=24,
    heads=16,
    key_value_heads=16,
    feed_forward_width=8192,
    residual="parallel",
    rotary_share=0.25,
  )


def opt_1_3b() -> dict:
  return decoder(
    vocabulary=50_272,
    width=2048,
    layers=24,
    heads=32,
    key_value_heads=32,
    feed_forward_width=8192,
    activation="relu",
    gated_feed_forward=False,
    bias=True,
    norm="layer",
    positions="learned",
    position_rows=2050,
    position_offset=2,
  )


def gpt2() -> dict:
  """The smallest of the four."""
  return decoder(
    vocabulary=50_257,
    width=768,
    layers=12,
    heads=12,
    key_value_heads=12,
    feed_forward_width=3072,
    activation="gelu_tanh",
    gated_feed_forward=False,
    bias=True,
    norm="layer",
    positions="learned",
    position_rows=1024,
  )
