"""How well a contrastive model finds texts and pictures: held-out loss, retrieval, and classes by their names."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8, UInt32

from flamingo_jax.evaluation.held_out import Batches, HostBatch
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.sight import gathered
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, matching_loss, pairs_of
from flamingo_jax.models.parameters import Parameters, nested
from flamingo_jax.ops.sharding import constrain
from flamingo_jax.parallel.mesh import global_batch

AMONG = (1, 5)  # the best so many
AT_ONCE = 1024  # rows of scores that exist at one time
TOGETHER = 64  # pictures or texts that are embedded at one time

Read = Callable[[Medium], UInt8[np.ndarray, "F H W 3"]]


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """Pictures to be classified by the names of their classes.

  Attributes:
    name: of the benchmark, in metrics.
    examples: with media, options and labels.
    prompts: that a class is put to the model in; {} stands for its name.
    read: a medium's frames, of which the first is looked at.
    encode: a text as a row of training has it, int32 of any length up to the model's.
  """

  name: str
  examples: Sequence[Example]
  prompts: Sequence[str]
  read: Read
  encode: Callable[[str], Int[np.ndarray, " L"]]


def evaluate_contrastive(
  config: ContrastiveConfig, held_out: Batches, benchmarks: Sequence[ZeroShot] = ()
) -> Callable[[Parameters, Mesh, bool], dict[str, float]]:
  """Held-out loss and retrieval of each stream, and zero-shot classification.

  `heldout/retrieval/<stream>` is of pictures that find their text within their batch, as in training;
  `heldout/text_at_5/<stream>` of pictures that have a text of theirs among the best 5 of all batches, `picture_at_5` of
  texts likewise. `zero_shot/<name>/top_1` is of pictures whose class is named first; not before training.
  """
  model = Contrastive(config)
  embed = jax.jit(lambda parameters, batch: (*model.apply(nested(parameters), batch), pairs_of(batch)))
  loss = jax.jit(lambda *vectors: matching_loss(config, *vectors))
  told_apart = {
    name: [batch | {"pictures": fingerprints(batch["media"][:, 0, 0])} for batch in batches]
    for name, batches in held_out.items()
  }

  def evaluate_stream(parameters: Parameters, batches: list[HostBatch], mesh: Mesh) -> dict[str, float]:
    sums, kept = np.zeros(3), []
    for batch in batches:
      spread = global_batch(batch, mesh)
      images, texts, scale, paired = embed(parameters, spread)
      sums += np.asarray(jax.device_get(loss(images, texts, scale, paired)), np.float64)
      words = spread["tokens"] * (spread["segments"] > 0)
      kept.append([gathered(array) for array in (images, texts, words, spread["pictures"], paired)])
    *rows, paired = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    total, pairs, right = sums
    found = {"loss": total, "retrieval": right}
    means = {part: float(value / pairs) if pairs else 0.0 for part, value in found.items()}
    return means | {"temperature": float(scale.temperature)} | recalls(*(array[paired] for array in rows))

  def evaluate(parameters: Parameters, mesh: Mesh, baseline: bool) -> dict[str, float]:
    metrics = {
      f"heldout/{part}/{name}": value
      for name, batches in told_apart.items()
      for part, value in evaluate_stream(parameters, batches, mesh).items()
    }
    for benchmark in () if baseline else benchmarks:
      found = classify(model, parameters, benchmark)
      metrics |= {f"zero_shot/{benchmark.name}/{part}": value for part, value in found.items()}
    return metrics

  return evaluate


def fingerprints(pictures: UInt8[np.ndarray, "n H W 3"]) -> UInt32[np.ndarray, "n 4"]:
  """Equal for equal pixels."""
  digests = [hashlib.blake2b(picture.tobytes(), digest_size=16).digest() for picture in pictures]
  return np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 4)


def recalls(
  images: Float[np.ndarray, "n E"],
  texts: Float[np.ndarray, "n E"],
  words: Int[np.ndarray, "n L"],
  pictures: UInt32[np.ndarray, "n 4"],
) -> dict[str, float]:
  """How often a picture has its text among the best k of all, and a text its picture; 0 where there are no pairs.

  What belongs to a pair that says the same, token for token, or shows the same, is as good as one's own: of a picture
  with five captions any of these. Equals come in their own order.
  """
  if not len(images):
    return {f"{what}_at_{k}": 0.0 for what in ("text", "picture") for k in AMONG}
  same = np.stack([np.unique(each, axis=0, return_inverse=True)[1].reshape(-1) for each in (words, pictures)], axis=1)
  return {f"text_at_{k}": value for k, value in zip(AMONG, found_among(images, texts, same), strict=True)} | {
    f"picture_at_{k}": value for k, value in zip(AMONG, found_among(texts, images, same), strict=True)
  }


def found_among(
  queries: Float[np.ndarray, "n E"], keys: Float[np.ndarray, "n E"], same: Int[np.ndarray, "n 2"]
) -> list[float]:
  """The share of queries that have a key of the same text or picture among the best k, for each k of AMONG."""
  hits = np.zeros(len(AMONG))
  for start in range(0, len(queries), AT_ONCE):
    scores = queries[start : start + AT_ONCE] @ keys.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(AMONG)]
    right = (same[best] == same[start : start + AT_ONCE, None]).any(axis=-1)
    hits += [right[:, :k].any(axis=1).sum() for k in AMONG]
  return (hits / len(queries)).tolist()


def classify(model: Contrastive, parameters: Parameters, benchmark: ZeroShot) -> dict[str, float]:
  """Top-1 and top-5 accuracy by the cosine with the name of each candidate."""
  names = list(dict.fromkeys(option for example in benchmark.examples for option in example.options))
  places = {name: place for place, name in enumerate(names)}
  vectors = name_vectors(model, parameters, benchmark, names)
  hits = np.zeros(len(AMONG))
  for some, images in picture_vectors(model, parameters, benchmark):
    for example, image in zip(some, images, strict=True):
      scores = vectors[[places[option] for option in example.options]] @ image
      best = np.argsort(-scores, kind="stable")
      hits += [example.label in best[:k] for k in AMONG]
  return {f"top_{k}": float(share) for k, share in zip(AMONG, hits / len(benchmark.examples), strict=True)}


def name_vectors(
  model: Contrastive, parameters: Parameters, benchmark: ZeroShot, names: Sequence[str]
) -> Float[np.ndarray, "C E"]:
  """Of each name the mean over prompts, of length 1 again (Radford et al., 2021, section 3.1.4)."""

  @jax.jit
  def embed(parameters, tokens, segments):
    rows = (constrain(array, "batch", None) for array in (tokens, segments > 0))
    return model.apply(nested(parameters), *rows, method=Contrastive.texts)

  texts = [prompt.replace("{}", name) for name in names for prompt in benchmark.prompts]
  found = []
  for start in range(0, len(texts), TOGETHER):
    some = texts[start : start + TOGETHER]
    tokens, segments = np.zeros((2, TOGETHER, model.config.length), np.int32)
    for at, text in enumerate(some):
      row = benchmark.encode(text)
      tokens[at, : len(row)], segments[at, : len(row)] = row, 1
    found.append(gathered(embed(parameters, tokens, segments))[: len(some)])
  means = np.concatenate(found).reshape(len(names), len(benchmark.prompts), -1).mean(axis=1)
  return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def picture_vectors(
  model: Contrastive, parameters: Parameters, benchmark: ZeroShot
) -> Iterator[tuple[Sequence[Example], Float[np.ndarray, "n E"]]]:
  """The examples, some at a time, and what the model sees of each."""

  @jax.jit
  def embed(parameters, pixels):
    pixels = constrain(pixels, "batch", None, None, None)
    return model.apply(nested(parameters), pixels, method=Contrastive.images)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(benchmark.examples), TOGETHER):
      some = benchmark.examples[start : start + TOGETHER]
      pixels = np.stack([frames[0] for frames in pool.map(benchmark.read, [example.medium for example in some])])
      padded = np.concatenate([pixels, np.zeros((TOGETHER - len(some), *pixels.shape[1:]), np.uint8)])
      yield some, gathered(embed(parameters, padded))[: len(some)]
