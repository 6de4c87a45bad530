"""Reading prompts into a cache: from the start, or after what was read before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.inference.cache import Cache, empty_cache
from flamingo_jax.inference.forward import Text, next_logits, read
from flamingo_jax.inference.weights import Weights
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.ops.sharding import constrain

SHORTEST = 16  # tokens that a text is padded to at least
TEXT = ("tokens", "segments", "media_index")
MEDIA = ("media", "media_mask")


def prefill(config: FlamingoConfig, weights: Weights, prompts: Text) -> Cache:
  """Reads prompts: media are encoded, resampled and turned into keys and values once, text is read in one pass.

  Args:
    config: of the model.
    weights: of `unroll`.
    prompts: `tokens`, `segments`, `media_index`, `media`, `media_mask` of a batch (docs/batch.md), one document a row,
      padding behind. Rows may differ in length and in how many media they have. Text without media may leave these out.

  Returns:
    The cache, from which `extend`, `decode`, `search` and `score_options` go on. One of a single row, such as the
    support examples of a task, serves any number of rows at once.

  Raises:
    UserError: a prompt is empty, longer than the model's context, or has more markers than media.
  """
  return extend(config, weights, empty_cache(config.language.vocabulary + config.language.extra_tokens), prompts)


def extend(config: FlamingoConfig, weights: Weights, cache: Cache, text: Text) -> Cache:
  """Reads on after a cache, which stays as it is.

  Args:
    config: of the model.
    weights: of `unroll`.
    cache: of B / n rows: n rows of the text, one after another, go on from each.
    text: as in `prefill`. `media_index` counts the media given here, and -1 stands for what the row saw last.

  Raises:
    UserError: as `prefill`, or the rows of the cache do not divide those of the text.
  """
  check_text(text, cache.rows)
  check_context(config.language, cache, (np.asarray(text["segments"]) > 0).sum(axis=1))
  return extended(config, weights, cache, padded(text))


@functools.partial(jax.jit, static_argnums=0)
def extended(config: FlamingoConfig, weights: Weights, cache: Cache, text: Text) -> Cache:
  found = read(config, weights, cache, text)
  rows = len(found.lengths)
  last = found.states[jnp.arange(rows), found.lengths - 1][:, None]
  length = constrain(jnp.repeat(cache.length, rows // cache.rows, axis=0) + found.lengths, None)  # read by all hosts
  return Cache((*cache.text, found.text), found.media, length, next_logits(config, weights, last)[:, 0])


def bucket(length: int) -> int:
  """The length that a text of some length is padded to: SHORTEST, or a power of two, or one and a half times that.

  No more than half of it is wasted, and few programs are compiled.
  """
  size = SHORTEST
  while size < length:
    size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
  return size


def padded(text: Text) -> Text:
  """A text whose length is a bucket, with its media if it has any."""
  length = text["tokens"].shape[1]
  behind = ((0, 0), (0, bucket(length) - length))
  longer = {name: jnp.pad(jnp.asarray(text[name]), behind) for name in TEXT}
  return longer | {name: text[name] for name in MEDIA if name in text}


def check_text(text: Text, rows: int) -> None:
  """Raises UserError unless every row has text, behind it all padding, and a slot for each medium that it speaks of.

  A slot may be masked: a picture that could not be decoded keeps its number, and is not seen.
  """
  present = np.asarray(text["segments"]) > 0
  if not len(present) or len(present) % rows:
    raise UserError(f"The text has {len(present)} rows after a cache of {rows}; give a multiple of {rows}.")
  if not present.any(axis=1).all():
    raise UserError("The prompt is empty. Give text, an image, or both.")
  if (present[:, 1:] > present[:, :-1]).any():
    raise UserError("A prompt has padding before its text. Put padding behind.")
  slots = text["media"].shape[1] if "media" in text else 0
  asked = np.where(present, np.asarray(text["media_index"]), -1).max(axis=1) + 1
  if (asked > slots).any():
    row = int(asked.argmax())
    raise UserError(
      f"Row {row} of the prompts has markers of {asked[row]} media, but {slots} media: one for each marker."
    )


def check_context(language: DecoderConfig, cache: Cache, new: np.ndarray) -> None:
  """Raises UserError where text would be longer than a table of learned positions.

  Args:
    language: its config.
    cache: of what comes before.
    new: tokens [B] to be read after it.
  """
  if language.positions != "learned":
    return
  fit = language.position_rows - language.position_offset
  before = np.repeat(np.asarray(cache.length), len(new) // cache.rows)
  longest = int((before + new).argmax())
  if before[longest] + new[longest] > fit:
    raise UserError(
      f"{before[longest] + new[longest]} tokens are too many for this model, whose learned positions end after {fit}: "
      f"{before[longest]} were read before, so {max(fit - before[longest], 0)} more fit."
    )
