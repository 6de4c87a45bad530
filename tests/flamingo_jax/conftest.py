import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig, initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.vit import VitConfig


@pytest.fixture(scope="module", autouse=True)
def short_compilation(few_optimizations):
  """Of all tests here."""


@pytest.fixture(scope="session")
def jit():
  """`jax.jit` without fusion, which compiles in a third of the time; where XLA lacks the option, `jax.jit`."""
  quick = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False})
  try:
    quick(jnp.sin)(0.0)
  except jax.errors.JaxRuntimeError:
    return jax.jit
  return quick


@pytest.fixture(scope="session")
def tiny() -> FlamingoConfig:
  """A model of a few thousand parameters; its decoder has a prefix, a whole group and a ragged tail."""
  return FlamingoConfig(
    vision=VitConfig(width=16, layers=1, heads=2, feed_forward_multiplier=2, image_size=8, patch_size=4),
    resampler=PerceiverResamplerConfig(layers=2, latents=3, heads=2, feed_forward_multiplier=2, frames=2),
    cross_attention=GatedCrossAttentionConfig(every=2, offset=1, heads=2, head_width=4, feed_forward_multiplier=2),
    language=DecoderConfig(
      vocabulary=32, width=16, layers=4, heads=4, key_value_heads=2, feed_forward_width=24, rope_base=100.0
    ),
    dtype="float32",
  )


def random_like(boxed: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Random values for every parameter of a model given as shapes; no gate, bias or norm is left at its start."""
  random = np.random.default_rng(seed)
  parameters = {}
  for path, shape in flat(boxed).items():
    noise = random.normal(size=shape.shape)
    if path.endswith("_gate"):
      value = np.sign(noise) * random.uniform(0.4, 0.9, shape.shape)
    elif path.endswith("scale"):
      value = 1 + 0.2 * noise
    else:
      value = 0.3 * noise
    parameters[path] = np.asarray(value, np.float32)
  return parameters


@pytest.fixture(scope="session")
def random_parameters():
  """Random parameters by path for whatever `initialize(key)` would make."""
  return lambda initialize, seed=0: random_like(jax.eval_shape(initialize, jax.random.key(0)), seed)


@pytest.fixture(scope="session")
def parameters(tiny, random_parameters) -> dict[str, np.ndarray]:
  """Those of `tiny`, with open gates."""
  return random_parameters(lambda key: initialize(tiny, key))


@pytest.fixture(scope="session")
def logits(tiny, jit):
  """The compiled forward pass of `tiny`: (parameters, batch) -> logits."""
  return jit(lambda parameters, batch: Flamingo(tiny).apply(nested(parameters), batch))


@pytest.fixture(scope="session")
def make_batch(tiny):
  """Makes a random batch: each row starts with text, has all its media and, before each, its marker, then padding."""

  def make(seed: int = 0, rows: int = 2, length: int = 10, media: int = 2, frames: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    size, language = tiny.vision.image_size, tiny.language
    image, end = language.vocabulary, language.vocabulary + 1
    tokens = random.integers(0, language.vocabulary, (rows, length), np.int32)
    ends = random.integers(length // 2 + 1, length + 1, (rows, 1))
    present = np.arange(length) < ends
    markers = np.stack([np.sort(random.choice(np.arange(1, length // 2 + 1), media, False)) for _ in range(rows)])
    np.put_along_axis(tokens, markers, image, axis=1)
    np.put_along_axis(tokens, ends - 1, end, axis=1)
    index = (np.arange(length)[None, :, None] >= markers[:, None, :]).sum(-1) - 1
    return dict(
      tokens=np.where(present, tokens, 0).astype(np.int32),
      segments=present.astype(np.int32),
      media=random.integers(0, 256, (rows, media, frames, size, size, 3), np.uint8),
      media_mask=np.ones((rows, media, frames), bool),
      media_index=np.where(present, index, -1).astype(np.int32),
      loss_weights=(present & (random.random((rows, length)) < 0.8)).astype(np.float32),
    )

  return make


# The model's parts once more, in NumPy and float64.


def attention(query, key, value, mask=None):
  """Query [B, L, H, K], key and value [B, S, G, K], mask [B, L, S]; one head and one query at a time."""
  batch, length, heads, width = query.shape
  share = heads // key.shape[2]
  out = np.zeros_like(query, np.float64)
  for b in range(batch):
    for h in range(heads):
      for place in range(length):
        seen = np.ones(key.shape[1], bool) if mask is None else mask[b, place]
        if seen.any():
          scores = key[b, seen, h // share].astype(np.float64) @ query[b, place, h] / np.sqrt(width)
          shares = np.exp(scores - scores.max())
          out[b, place, h] = shares / shares.sum() @ value[b, seen, h // share]
  return out


def layer_norm(parameters, x):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
  return scaled * parameters["scale"] + parameters["bias"]


def cross_attention(parameters, x, context, mask=None):
  query = np.einsum("bld,dhk->blhk", x, parameters["query/kernel"])
  key = np.einsum("bsc,chk->bshk", context, parameters["key/kernel"])
  value = np.einsum("bsc,chk->bshk", context, parameters["value/kernel"])
  return np.einsum("blhk,hkd->bld", attention(query, key, value, mask), parameters["output/kernel"])


def feed_forward(parameters, x):
  hidden = np.maximum(x @ parameters["up/kernel"], 0) ** 2
  return hidden @ parameters["down/kernel"]


def below(parameters, prefix, layer=None):
  """The parameters under a prefix, in float64; of one layer if they are stacked."""
  chosen = {path.removeprefix(prefix): value for path, value in parameters.items() if path.startswith(prefix)}
  return {path: np.float64(value if layer is None else value[layer]) for path, value in chosen.items()}


@pytest.fixture(scope="session")
def reference():
  return types.SimpleNamespace(
    attention=attention,
    layer_norm=layer_norm,
    cross_attention=cross_attention,
    feed_forward=feed_forward,
    below=below,
  )
