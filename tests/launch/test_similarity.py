"""Scores of pictures and texts against the embeddings of the batches that training reads."""

import io
import types

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import byte_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, initialize
from flamingo_jax.models.encoder import EncoderConfig
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.vision.vit import VitConfig
from launch import similarity

TOKENIZER = byte_tokenizer()
CONFIG = ContrastiveConfig(
  vision=VitConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1, image_size=8, patch_size=4),
  text=EncoderConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1),
  vocabulary=TOKENIZER.image,
  embedding_width=6,
  length=24,
  joint_width=4,
  dtype="float32",
)
COUNT = similarity.ROWS + 3  # more than are scored at once


def picture(seed: int) -> bytes:
  file = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 12, 3), np.uint8)
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


PAIRS = [(picture(index), f"picture number {index}"[: 8 + index % 12].strip()) for index in range(COUNT)]


@pytest.fixture(scope="module")
def parameters():
  shapes = flat(jax.eval_shape(lambda key: initialize(CONFIG, key), jax.random.key(0)))
  random = np.random.default_rng(0)
  return {path: jax.numpy.asarray(random.normal(size=shape.shape), "float32") for path, shape in shapes.items()}


@pytest.fixture
def score(parameters, monkeypatch):
  run = types.SimpleNamespace(model=CONFIG, tokenizer=lambda: TOKENIZER, name="contrastive")
  monkeypatch.setattr(similarity, "open_run", lambda workdir: run)
  monkeypatch.setattr(similarity, "trained_parameters", lambda experiment, workdir: parameters)
  similarity._model.cache_clear()
  yield similarity.similarity_model("run")
  similarity._model.cache_clear()


def test_scores_are_the_cosines_of_what_a_stream_reads(score, parameters, tmp_path):
  write_shards(tmp_path / "pairs", (Example(("", text), (data,), "s", "CC0") for data, text in PAIRS), {})
  stream = Stream(
    config=StreamConfig("pairs", "pairs", batch_size=COUNT, length=CONFIG.length),
    sources=Sources((open_shards(tmp_path / "pairs"),)),
    tokenizer=TOKENIZER,
    image_size=8,
    seed=0,
    training=False,
  )
  batch = next(iter(stream.batches(0)))
  arrays = {name: batch[name] for name in ("tokens", "segments", "media")}
  images, texts, _ = (np.asarray(each) for each in Contrastive(CONFIG).apply(nested(parameters), arrays))
  cosines = (images * texts).sum(-1) / np.linalg.norm(images, axis=-1) / np.linalg.norm(texts, axis=-1)
  found = score(PAIRS)
  assert len(found) == COUNT
  np.testing.assert_allclose(sorted(found), sorted(cosines), atol=1e-5)  # a stream has an order of its own
  np.testing.assert_allclose([score([pair])[0] for pair in PAIRS[::9]], found[::9], atol=1e-5)
  assert np.ptp(found) > 0.1


def test_a_run_that_is_not_contrastive_is_refused(monkeypatch):
  monkeypatch.setattr(similarity, "open_run", lambda _: types.SimpleNamespace(model=None, name="flamingo"))
  with pytest.raises(UserError, match="holds a flamingo run; similarity comes from a contrastive one"):
    similarity.similarity_model("runs/mine")
