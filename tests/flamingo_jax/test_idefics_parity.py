"""An imported IDEFICS against that of transformers, on small random instances."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop.importing import FORMATS
from flamingo_jax.interop.rules import assemble, check_tensors
from flamingo_jax.models.flamingo import Flamingo, grouped
from flamingo_jax.models.parameters import nested

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, SIZE = 30, 16
VISION = dict(embed_dim=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
VISION |= dict(image_size=SIZE, patch_size=8)
PERCEIVER = dict(resampler_depth=1, resampler_n_latents=3, resampler_n_heads=2, resampler_head_dim=4)
LANGUAGE = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def random_idefics(folder, added: int, **changes):
  """A model whose gates are open and whose weights are large enough to matter, also in `folder`."""
  torch.manual_seed(0)
  sizes = LANGUAGE | dict(cross_layer_interval=1, use_resampler=True, additional_vocab_size=added)
  config = transformers.IdeficsConfig(**sizes, vision_config=VISION, perceiver_config=PERCEIVER, **changes)
  model = transformers.IdeficsForVisionText2Text(config).eval().requires_grad_(False)
  for parameter in model.parameters():
    parameter += 0.3 * torch.randn(parameter.shape)
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize(("added", "activation"), [(2, "silu"), (4, "silu"), (4, "gelu"), (3, "relu")])
def test_idefics_of_transformers(jit, tmp_path, added, activation):
  """With more added tokens than two, all of them, and the activation of both kinds of layers."""
  theirs = random_idefics(tmp_path, added, hidden_act=activation)
  source = FORMATS["idefics"](tmp_path)
  check_tensors(source.tensors, source.rules, source.ignored)
  parameters = grouped(assemble(source.tensors, source.rules), source.config)
  random = np.random.default_rng(0)
  ids = np.arange(VOCABULARY + added)
  tokens = random.permutation(np.concatenate([ids[1:], ids[1:]]))[None]
  media = random.integers(0, 256, (1, 1, 1, SIZE, SIZE, 3), np.uint8)
  pixels = transformers.IdeficsImageProcessor(image_size=SIZE)
  pixels = (media[:, :, 0] / 255 - pixels.image_mean) / pixels.image_std
  expected = theirs(
    input_ids=torch.from_numpy(tokens),
    pixel_values=torch.from_numpy(np.moveaxis(pixels, -1, 2)).float(),
    image_attention_mask=torch.ones((*tokens.shape, 1), dtype=torch.long),
  ).logits.numpy()
  ours_of = ids.copy()
  ours_of[[VOCABULARY, VOCABULARY + 1]] = VOCABULARY + 1, VOCABULARY  # ours are <image>, <EOC>
  batch = dict(
    tokens=jnp.asarray(ours_of[tokens], jnp.int32),
    segments=np.ones(tokens.shape, np.int32),
    media=media,
    media_mask=np.ones(media.shape[:3], bool),
    media_index=np.zeros(tokens.shape, np.int32),
  )
  logits = np.asarray(jit(Flamingo(source.config).apply)(nested(parameters), batch))[..., ours_of]
  np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_an_idefics_without_both_of_its_tokens_is_refused(tmp_path):
  random_idefics(tmp_path, 1)
  with pytest.raises(UserError, match=r"config\.json: additional_vocab_size is 1; it is at least 2, for <fake_token_"):
    FORMATS["idefics"](tmp_path)


def test_an_activation_that_is_not_known_is_refused(tmp_path):
  random_idefics(tmp_path, 2, hidden_act="mish")
  with pytest.raises(UserError, match=r"config\.json: hidden_act is 'mish'; known are gelu, "):
    FORMATS["idefics"](tmp_path)
