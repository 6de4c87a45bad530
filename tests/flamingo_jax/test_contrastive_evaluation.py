"""Held-out retrieval and zero-shot classification against NumPy that ranks one by one."""

import jax
import numpy as np
import pytest

from flamingo_jax.evaluation.contrastive import AMONG, ZeroShot, evaluate_contrastive, fingerprints, recalls
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, initialize
from flamingo_jax.models.encoder import EncoderConfig
from flamingo_jax.models.parameters import nested
from flamingo_jax.models.vision.vit import VitConfig
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = ContrastiveConfig(
  vision=VitConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1, image_size=8, patch_size=4),
  text=EncoderConfig(width=8, layers=1, heads=2, feed_forward_multiplier=1),
  vocabulary=20,
  embedding_width=6,
  length=6,
  joint_width=4,
  dtype="float32",
)


def unit_rows(seed: int, rows: int) -> np.ndarray:
  vectors = np.random.default_rng(seed).normal(size=(rows, 3))
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def share_found(queries, keys, words, pictures, k: int) -> float:
  hits = 0
  for place, query in enumerate(queries):
    ranked = sorted(range(len(keys)), key=lambda other: -(keys[other] @ query))
    hits += any((each[other] == each[place]).all() for other in ranked[:k] for each in (words, pictures))
  return hits / len(queries)


@pytest.mark.parametrize("at_once", [4, 100])
def test_recalls_are_those_of_ranking_one_by_one(at_once, monkeypatch):
  monkeypatch.setattr("flamingo_jax.evaluation.contrastive.AT_ONCE", at_once)
  images, texts = unit_rows(0, 30), unit_rows(1, 30)
  images[::2] = texts[::2]  # half of them find each other
  words = np.random.default_rng(2).integers(0, 3, (30, 3))  # and some say the same
  pictures = np.random.default_rng(3).integers(0, 3, (30, 4)).astype(np.uint32)  # and some show the same
  found = recalls(images, texts, words, pictures)
  expected = {f"text_at_{k}": share_found(images, texts, words, pictures, k) for k in AMONG}
  expected |= {f"picture_at_{k}": share_found(texts, images, words, pictures, k) for k in AMONG}
  assert found == pytest.approx(expected)
  assert 0.5 <= found["text_at_1"] < found["text_at_5"] < 1


def test_a_caption_that_stands_twice_is_right_for_both_pictures():
  vectors, pictures = np.eye(3)[[0, 0, 1]], np.arange(12, dtype=np.uint32).reshape(3, 4)
  assert recalls(vectors, vectors, np.asarray([[1, 2], [1, 2], [3, 0]]), pictures)["text_at_1"] == 1.0
  found = recalls(vectors, vectors, np.asarray([[1, 2], [1, 3], [3, 0]]), pictures)
  assert found["text_at_1"] == pytest.approx(2 / 3)


def test_any_of_the_five_captions_of_a_picture_is_right():
  """As COCO has them: every picture once for each of its captions."""
  vectors, words = np.repeat(np.eye(4), 5, axis=0), np.arange(20)[:, None]
  shown = np.repeat(np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8), 5, axis=0)
  assert set(recalls(vectors, vectors, words, fingerprints(shown)).values()) == {1.0}
  apart = np.arange(80, dtype=np.uint32).reshape(20, 4)
  assert recalls(vectors, vectors, words, apart)["text_at_1"] == 0.2


@pytest.fixture(scope="module")
def mesh():
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    yield mesh


@pytest.fixture(scope="module")
def weights(random_parameters):
  return random_parameters(lambda key: initialize(CONFIG, key))


def captions(seed: int, rows: int) -> dict[str, np.ndarray]:
  random = np.random.default_rng(seed)
  present = np.arange(6) < random.integers(2, 7, (rows, 1))
  return dict(
    tokens=np.where(present, random.integers(0, 20, (rows, 6)), 0).astype(np.int32),
    segments=present.astype(np.int32),
    loss_weights=present.astype(np.float32),
    media=random.integers(0, 256, (rows, 1, 1, 8, 8, 3), np.uint8),
    media_mask=np.ones((rows, 1, 1), bool),
  )


@jax.jit
def towers(weights, batch):
  return Contrastive(CONFIG).apply(nested(weights), batch)


def embedded(weights, batch):
  images, texts, scale = towers(weights, batch)
  return np.float64(images), np.float64(texts), float(scale.temperature)


def test_losses_are_of_batches_and_retrieval_is_among_all_of_them(mesh, weights):
  """Of what is left when pictures that could not be decoded and rows without text are taken out."""
  batches = [captions(0, 6), captions(1, 4)]
  batches[0]["media_mask"][2] = False
  batches[1]["loss_weights"][0] = 0
  batches[1]["media"][1] = batches[0]["media"][0]
  found = evaluate_contrastive(CONFIG, {"captions": batches})(weights, mesh, True)
  rows = ([0, 1, 3, 4, 5], [1, 2, 3])
  kept = [{name: array[some] for name, array in batch.items()} for batch, some in zip(batches, rows, strict=True)]
  total, right, vectors = 0.0, 0, []
  for batch in kept:
    images, texts, temperature = embedded(weights, batch)
    scores = images @ texts.T / temperature
    for table in (scores, scores.T):
      total += (np.log(np.exp(table).sum(axis=1)) - np.diagonal(table)).sum() / 2
    right += (scores.argmax(axis=1) == np.arange(len(scores))).sum()
    vectors.append((images, texts, batch["tokens"], batch["media"]))
  images, texts, words, pictures = (np.concatenate(parts) for parts in zip(*vectors, strict=True))
  expected = dict(loss=total / 8, retrieval=right / 8, temperature=temperature)
  expected |= {f"text_at_{k}": share_found(images, texts, words, pictures, k) for k in AMONG}
  expected |= {f"picture_at_{k}": share_found(texts, images, words, pictures, k) for k in AMONG}
  assert found == pytest.approx({f"heldout/{part}/captions": value for part, value in expected.items()}, rel=1e-4)


def test_empty_rows_are_neither_asked_for_nor_offered(mesh, weights):
  """Those that fill the last held-out batch up."""
  whole, last = captions(0, 6), captions(1, 4)
  filled = {name: np.concatenate([array, np.zeros_like(array[:2])]) for name, array in last.items()}
  found, expected = (
    evaluate_contrastive(CONFIG, {"captions": [whole, batch]})(weights, mesh, True) for batch in (filled, last)
  )
  assert found == pytest.approx(expected, rel=1e-5)


def test_a_picture_is_classified_by_the_mean_of_its_names_under_all_prompts(mesh, weights):
  random = np.random.default_rng(3)
  pixels = {f"{place}.png": random.integers(0, 256, (8, 8, 3), np.uint8) for place in range(70)}
  names = ("aa", "b", "cc", "d", "e", "f", "gg")
  prompts = ("x{}", "y{}z")

  def encode(text: str) -> np.ndarray:
    return np.asarray([ord(letter) % 20 for letter in text], np.int32)

  def vector(picture: str, text: str):
    tokens = np.zeros((1, 6), np.int32)
    tokens[0, : len(text)] = encode(text)
    batch = dict(tokens=tokens, segments=(np.arange(6) < len(text))[None].astype(np.int32))
    images, texts, _ = embedded(weights, batch | dict(media=pixels[picture][None, None, None]))
    return images[0], texts[0]

  vectors = {name: [vector("0.png", prompt.replace("{}", name))[1] for prompt in prompts] for name in names}
  means = {name: np.mean(both, axis=0) for name, both in vectors.items()}
  means = {name: mean / np.linalg.norm(mean) for name, mean in means.items()}
  examples, hits = [], np.zeros(2)
  for place, path in enumerate(pixels):
    options = names if place % 2 else names[1:]  # each may have candidates of its own
    label = int(random.integers(len(options)))
    examples.append(Example(str(place), Medium(path), options=options, label=label))
    image, _ = vector(path, "a")
    ranked = sorted(options, key=lambda name: -(means[name] @ image))
    hits += [options[label] in ranked[:k] for k in AMONG]
  benchmark = ZeroShot("mine", examples, prompts, lambda medium: pixels[medium.path][None], encode)
  found = evaluate_contrastive(CONFIG, {}, [benchmark])(weights, mesh, False)
  assert found == pytest.approx({"zero_shot/mine/top_1": hits[0] / 70, "zero_shot/mine/top_5": hits[1] / 70})
  assert 0 < hits[0] < hits[1] < 70
  assert evaluate_contrastive(CONFIG, {}, [benchmark])(weights, mesh, True) == {}
