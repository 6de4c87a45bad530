"""A model that is ready to write, and what it writes after a prompt, token by token."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from data_pipelines.prompts import prompt_batch
from data_pipelines.stream import Batch
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.held_out import gates
from flamingo_jax.inference.beam import Beams, search
from flamingo_jax.inference.cache import Cache
from flamingo_jax.inference.decoding import Continuations, stream
from flamingo_jax.inference.prefill import MEDIA, TEXT, prefill
from flamingo_jax.inference.sampling import Sampling
from flamingo_jax.inference.weights import Weights, unroll
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from launch.demo.prompt import Part, media_files, prompt_text
from launch.evaluate import open_checkpoint
from launch.experiment import TokenizerConfig
from launch.generate import open_run, video_rate
from launch.pretrained import is_model_folder
from launch.report.page import SPECIAL, Piece, Run

MOST_NEW_TOKENS, MOST_BEAMS = 512, 10


@dataclasses.dataclass(frozen=True)
class Writer:
  """A model with all that writing takes.

  Attributes:
    path: of its checkpoint.
    step: updates done; 0: it was imported.
    config: of the model.
    weights: of `unroll`.
    tokenizer: of the model.
    frames_per_second: at which it reads videos.
    gates: of each gated layer, `gates/attention/<layer>` and `gates/feed_forward/<layer>`, as evaluations tell them.
  """

  path: str
  step: int
  config: FlamingoConfig
  weights: Weights
  tokenizer: Tokenizer
  frames_per_second: float
  gates: dict[str, float]


def open_writer(path: str) -> Writer:
  """Reads the newest checkpoint of a run, or an imported Flamingo.

  Raises:
    UserError: it is neither, or cannot see pictures.
  """
  read = open_checkpoint(path, TokenizerConfig(""))
  rate = 1.0 if is_model_folder(path) else video_rate(open_run(path))
  opened = gates(read.parameters, read.config)
  weights = unroll(read.config, jax.device_put(read.parameters))
  return Writer(path, read.identity["step"], read.config, weights, read.tokenizer, rate, opened)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt that the model can read.

  Attributes:
    batch: of one row.
    runs: its text, cut where the medium that it sees changes.
    media: uint8 [F, H, W, 3] of each slot, as the model gets it.
  """

  batch: Batch
  runs: tuple[Run, ...]
  media: tuple[np.ndarray, ...]

  @property
  def tokens(self) -> int:
    return self.batch["tokens"].shape[1]


@dataclasses.dataclass(frozen=True)
class Written:
  """What was written so far.

  Attributes:
    text: of all tokens; `flamingo generate` strips it.
    tokens: how many.
    ended: whether the model ended it; if it did not, there was no room for more.
  """

  text: str
  tokens: int
  ended: bool


def make_prompt(writer: Writer, parts: Sequence[Part]) -> Prompt:
  """Decodes the media of a prompt and encodes its text.

  Raises:
    UserError: a file cannot be read.
  """
  tokenizer = writer.tokenizer
  batch = prompt_batch(
    prompt_text(parts),
    media_files(parts),
    tokenizer,
    image_size=writer.config.vision.image_size,
    frames=writer.config.frames,
    frames_per_second=writer.frames_per_second,
  )
  shown = zip(batch["media"][0], batch["media_mask"][0], strict=True)
  media = tuple(frames[exist] for frames, exist in shown if exist.any())
  return Prompt(batch, prompt_runs(batch["tokens"][0], batch["media_index"][0], tokenizer), media)


def prompt_runs(tokens: np.ndarray, media_index: np.ndarray, tokenizer: Tokenizer) -> tuple[Run, ...]:
  """Tokens [L] as text, cut where `media_index` [L] changes; special tokens stand alone."""
  names = tokenizer.pieces(tokens)
  rows = zip(media_index.tolist(), names, tokens.tolist(), strict=True)
  runs = []
  for slot, row in itertools.groupby(rows, key=lambda row: row[0]):
    pieces: list[Piece] = []
    for name, group in itertools.groupby(row, key=lambda row: row[1] if row[1] in SPECIAL else ""):
      own = [token for _, _, token in group]
      pieces += [Piece(name, special=True)] * len(own) if name else [Piece(tokenizer.decode(own), special=False)]
    runs.append(Run(slot, tuple(pieces)))
  return tuple(runs)


def write(writer: Writer, prompt: Prompt, how: Sampling | Beams, new_tokens: int, seed: int) -> Iterator[Written]:
  """What the model writes after a prompt, as far as it has come, up to `<EOC>` or the end of the document.

  Beams are shown when their search is over. The last is what `flamingo generate` writes.

  Raises:
    UserError: `new_tokens`, the width of a search or the prompt is out of range.
  """
  if not 1 <= new_tokens <= MOST_NEW_TOKENS:
    raise UserError(f"New tokens: {new_tokens}; choose 1 to {MOST_NEW_TOKENS}.")
  if isinstance(how, Beams) and how.width > MOST_BEAMS:
    raise UserError(f"Beams: {how.width}; choose 2 to {MOST_BEAMS}.")
  tokenizer, cache = writer.tokenizer, read_prompt(writer, prompt.batch)
  stop, forbidden = (tokenizer.end_of_chunk, tokenizer.eos), (tokenizer.image,)
  limits = dict(new_tokens=new_tokens, stop=stop, forbidden=forbidden)
  found: Iterable[tuple[int, Continuations]]
  if isinstance(how, Beams):
    found = [(new_tokens, search(writer.config, writer.weights, cache, beams=how, **limits).best())]
  else:
    key = jax.random.key(seed)
    found = enumerate(stream(writer.config, writer.weights, cache, sampling=how, key=key, **limits), 1)
  for room, continuations in found:
    [tokens] = continuations.lists()
    yield Written(tokenizer.decode(tokens), len(tokens), len(tokens) < room)


def read_prompt(writer: Writer, batch: Batch) -> Cache:
  """The cache of a prompt, whose slots are made a power of two by some that nothing sees: few are compiled."""
  slots = batch["media"].shape[1]
  counts = isinstance(writer.config.resampler, PerceiverResamplerConfig) and writer.config.resampler.media
  room = slots if counts else 1 << (slots - 1).bit_length()  # a resampler that counts media has a table of so many
  spare = {name: np.pad(batch[name], [(0, 0), (0, room - slots)] + [(0, 0)] * (batch[name].ndim - 2)) for name in MEDIA}
  return prefill(writer.config, writer.weights, {name: batch[name] for name in TEXT} | spare)
