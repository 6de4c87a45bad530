"""Prompts to what a model says: answers that it writes, or how likely it finds given ones."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import EndOfChunk, Medium, Prompt, Text, media_of
from flamingo_jax.evaluation.sight import Read, Sight
from flamingo_jax.inference.beam import Beams, search
from flamingo_jax.inference.cache import Cache
from flamingo_jax.inference.decoding import decode
from flamingo_jax.inference.prefill import extend, prefill
from flamingo_jax.inference.scoring import score_options
from flamingo_jax.inference.weights import unroll
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.parallel.mesh import batch_sharding, place

AT_ONCE = 256  # candidates, over all rows, whose likelihood is computed together


class Words(Protocol):
  """What makes tokens of texts and back; no text encodes to one of the special tokens."""

  bos: int
  eos: int
  image: int
  end_of_chunk: int

  def encode(self, text: str) -> list[int]: ...

  def decode(self, tokens: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Speech:
  """How answers are written.

  Attributes:
    beams: width of the search; 1: greedy.
    length_penalty: of the search.
    new_tokens: at most.
  """

  beams: int
  length_penalty: float
  new_tokens: int


class Model:
  """A Flamingo that answers prompts, so many at a time. Call it under the mesh that its parameters lie on, if any."""

  def __init__(self, config: FlamingoConfig, parameters: Parameters, words: Words, read: Read, limits: "Limits"):
    """Lays a model out for answering.

    Args:
      config: of the model.
      parameters: all of them, by path.
      words: its tokenizer.
      read: a medium to the frames it has, uint8 [F, H, W, 3], as the encoder takes them.
      limits: what is done at once.
    """
    self.words, self.limits = words, limits
    self.sight = Sight(config, parameters, read, limits.media_memory)
    self.config = dataclasses.replace(config, vision=FeaturesConfig())  # media come to it as what the encoder saw
    rest = {path: array for path, array in parameters.items() if not path.startswith("vision/")}
    self.weights = unroll(self.config, rest)
    self.encode = functools.lru_cache(2**16)(lambda text: tuple(words.encode(text)))
    self.prefixes: dict[Prompt, Cache] = {}

  def tokens(self, prompt: Prompt) -> list[int]:
    """Of the pieces, without `<BOS>`. A text is text, whatever it says."""
    special = {Medium: (self.words.image,), EndOfChunk: (self.words.end_of_chunk,)}
    pieces = (self.encode(each.text) if isinstance(each, Text) else special[type(each)] for each in prompt)
    return [token for piece in pieces for token in piece]

  def check_length(self, prompt: Prompt, after: int) -> int | None:
    """How many of a prompt's chunks fit the context with the query and so many tokens after it.

    None: all of them; -1: not even the query does.
    """
    chunks, query = chunks_of(prompt)
    left = self.limits.context - 1 - len(self.tokens(query)) - after
    lengths = np.cumsum([len(self.tokens(chunk)) for chunk in reversed(chunks)])
    if left < 0:
      return -1
    return None if left >= lengths.max(initial=0) else int((lengths <= left).sum())

  def write(self, prompts: Sequence[Prompt], speech: Speech, *, shared: bool = False) -> list[str]:
    """The text that follows each prompt, up to the first `<EOC>` or the document's end.

    Args:
      prompts: at most `limits.rows`.
      speech: how.
      shared: all of them have the same chunks before their query, which are read once and remembered.
    """
    cache = self.read(prompts, shared)
    rules = dict(
      new_tokens=speech.new_tokens,
      stop=(self.words.end_of_chunk, self.words.eos),
      forbidden=(self.words.image,),
    )
    if speech.beams == 1:
      found = decode(self.config, self.weights, cache, **rules)
    else:
      beams = Beams(speech.beams, speech.length_penalty)
      found = search(self.config, self.weights, cache, beams=beams, **rules).best()
    return [self.words.decode(row) for row in found.lists()[: len(prompts)]]

  def rank(
    self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], *, shared: bool = False
  ) -> list[np.ndarray]:
    """log p of each of a prompt's options after it, float32; arguments as in `write`."""
    cache = self.read(prompts, shared)
    tokens = [[self.encode(option) for option in own] for own in filled(options, self.limits.rows)]
    step = max(AT_ONCE // self.limits.rows, 1)
    most = max(map(len, tokens))
    # A row with fewer options than the others is asked about its last again.
    slices = [[(own[start : start + step] or own[-1:]) for own in tokens] for start in range(0, most, step)]
    found = [score_options(self.config, self.weights, cache, some) for some in slices]
    rows = zip(*found, strict=True)
    return [np.concatenate(row)[: len(own)] for row, own in zip(rows, options, strict=False)]

  def read(self, prompts: Sequence[Prompt], shared: bool) -> Cache:
    """The prompts in a cache of `limits.rows` rows; those that are not there are the last one again."""
    rows = filled(prompts, self.limits.rows)
    if not shared:
      return prefill(self.config, self.weights, self.batch(rows, [self.words.bos]))
    chunks, _ = chunks_of(rows[0])
    prefix = tuple(piece for chunk in chunks for piece in chunk)
    if not prefix:
      return self.read(prompts, False)
    if prefix not in self.prefixes:
      self.prefixes[prefix] = prefill(self.config, self.weights, self.batch([prefix], [self.words.bos]))
    queries = [chunks_of(prompt)[1] for prompt in rows]
    return extend(self.config, self.weights, self.prefixes[prefix], self.batch(queries, []))

  def batch(self, rows: Sequence[Prompt], before: list[int]) -> dict:
    """Rows of tokens, padded behind, and what the encoder sees of their media (docs/batch.md)."""
    tokens = [[*before, *self.tokens(row)] for row in rows]
    shape = (len(rows), max(map(len, tokens)))
    text = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments")}
    for row, own in enumerate(tokens):
      text["tokens"][row, : len(own)], text["segments"][row, : len(own)] = own, 1
    index = np.cumsum(text["tokens"] == self.words.image, axis=1, dtype=np.int32) - 1
    return text | dict(media_index=index) | self.media([media_of(row) for row in rows])

  def media(self, rows: Sequence[tuple[Medium, ...]]) -> dict:
    """`media` [B, N, F, S, V] and `media_mask` [B, N, F]; nothing where no row has any."""
    slots = max(map(len, rows))
    if not slots:
      return {}
    seen = iter(self.sight.features([medium for row in rows for medium in row]))
    features = [[next(seen) for _ in row] for row in rows]
    # A frame's temporal embedding depends on how many the slot has, so all films have slots of the same length.
    frames = self.limits.frames if any(len(medium) > 1 for row in features for medium in row) else 1
    some = next(medium for row in features for medium in row)
    media = np.zeros((len(rows), slots, frames, *some.shape[1:]), some.dtype)
    mask = np.zeros(media.shape[:3], bool)
    for row, own in enumerate(features):
      for slot, medium in enumerate(own):
        media[row, slot, : len(medium)], mask[row, slot, : len(medium)] = medium, True
    mesh = jax.sharding.get_mesh()
    if mesh.empty or len(rows) == 1:
      return dict(media=media, media_mask=mask)
    return dict(media=place(media, batch_sharding(mesh)), media_mask=place(mask, batch_sharding(mesh)))


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a model does at once.

  Attributes:
    rows: prompts, over all devices.
    frames: of a film, at most.
    context: tokens of the longest prompt with its answer that the language model was made for.
    media_memory: GiB of features that are kept on each host.
  """

  rows: int
  frames: int
  context: int
  media_memory: float


def chunks_of(prompt: Prompt) -> tuple[list[Prompt], Prompt]:
  """The examples before the query, each with its `<EOC>`, and the query."""
  ends = [place + 1 for place, piece in enumerate(prompt) if isinstance(piece, EndOfChunk)]
  return [prompt[start:end] for start, end in zip([0, *ends], ends, strict=False)], prompt[ends[-1] if ends else 0 :]


def filled(rows: Sequence, count: int) -> list:
  """So many rows, of which the last is repeated."""
  if not 0 < len(rows) <= count:
    raise UserError(f"{len(rows)} prompts are asked at once; it is 1 to {count}.")
  return [*rows, *[rows[-1]] * (count - len(rows))]
