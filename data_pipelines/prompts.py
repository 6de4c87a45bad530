"""A prompt that a person types: text with `<image>` where a picture stands and `<EOC>` where an example ends."""

import pathlib
import re

import numpy as np

from data_pipelines.clips import decode_clip
from data_pipelines.media import MediaError, decode_image
from data_pipelines.sequences import make_row
from data_pipelines.stream import Batch
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv")


def prompt_batch(
  text: str, files: list[str], tokenizer: Tokenizer, *, image_size: int, frames: int, frames_per_second: float
) -> Batch:
  """One prompt as a batch of one row, unpadded.

  Args:
    text: `<image>` stands for the next file, be it a picture or a video.
    files: paths of the media, in the order of their markers.
    tokenizer: of the model.
    image_size: pixels a side.
    frames: F, of a video; pictures have one, and the rest of their slot is masked.
    frames_per_second: at which videos are read.

  Raises:
    UserError: markers and files do not match, or a file cannot be read.
  """
  tokens = [tokenizer.bos]
  special = {"<image>": [tokenizer.image], "<EOC>": [tokenizer.end_of_chunk]}
  for piece in re.split("(<image>|<EOC>)", text):
    tokens += special.get(piece) or tokenizer.encode(piece)
  row = make_row(tokens, tokenizer, see_next=False)
  if len(row.media) != len(files):
    raise UserError(
      f"The prompt has {len(row.media)} <image> markers, but {len(files)} files were given: one for each."
    )
  is_video = [path.lower().endswith(VIDEO_SUFFIXES) for path in files]
  frames = frames if any(is_video) else 1
  media = np.zeros((max(len(files), 1), frames, image_size, image_size, 3), np.uint8)
  mask = np.zeros(media.shape[:2], bool)
  for slot, path in enumerate(files):
    pictures, exists = read_medium(path, is_video[slot], image_size, frames, frames_per_second)
    media[slot, : len(pictures)], mask[slot, : len(pictures)] = pictures, exists
  return dict(
    tokens=row.tokens[None],
    segments=np.ones_like(row.tokens)[None],
    loss_weights=row.loss_weights[None],
    media=media[None],
    media_mask=mask[None],
    media_index=row.media_index[None],
  )


def read_medium(
  path: str, is_video: bool, image_size: int, frames: int, frames_per_second: float
) -> tuple[np.ndarray, np.ndarray]:
  """A file's pictures uint8 [F, H, W, 3] and which of them exist, bool [F]."""
  encoded = read_file(path)
  try:
    if not is_video:
      return decode_image(encoded, image_size)[None], np.ones(1, bool)
    return decode_clip(encoded, image_size, frames=frames, per_second=frames_per_second, span=(0.0, np.inf), start=0.0)
  except MediaError as error:
    raise UserError(f"{path}: {error}. Give a PNG, JPEG, WebP or GIF picture, or an MP4, WebM or AVI video.") from error


def read_file(path: str) -> bytes:
  """All of a file. Raises UserError when it cannot be read."""
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
