"""Files that a person drops on the page: each is read with limits at once, shown, or refused with its reason."""

import pathlib

import numpy as np

from data_pipelines.clips import read_clip
from data_pipelines.media import MediaError, read_image
from data_pipelines.prompts import VIDEO_SUFFIXES
from flamingo_jax.errors import UserError

MOST_BYTES = 64 * 2**20
SIDE = 240  # of what the page shows, pixels
RIGHT = "Give a JPEG, PNG, WebP, GIF, AVIF, BMP or TIFF picture, or an MP4, MOV, WebM, MKV or AVI video."


def is_video(path: pathlib.Path) -> bool:
  """By its name, as prompts tell it."""
  return path.suffix.lower() in VIDEO_SUFFIXES


def read_upload(path: pathlib.Path, frames: int, frames_per_second: float) -> np.ndarray:
  """The frames of a file to show, uint8 [F, H, W, 3]; a picture has one.

  Args:
    path: of the file.
    frames: how many of a video at most.
    frames_per_second: at which the model reads videos.

  Raises:
    UserError: the file is too large, damaged, or neither picture nor video.
  """
  size = path.stat().st_size
  if size > MOST_BYTES:
    raise UserError(
      f"{path.name}: has {size / 2**20:.0f} MiB; at most {MOST_BYTES // 2**20} are read. Make it smaller."
    )
  encoded = path.read_bytes()
  try:
    if not is_video(path):
      return read_image(encoded, SIDE)[None]
    times = dict(per_second=frames_per_second, span=(0.0, np.inf), start=0.0)
    return read_clip(encoded, SIDE, frames=frames, **times)
  except MediaError as error:
    raise UserError(f"{path.name}: {reason(error, encoded, is_video(path))}") from error


def reason(error: MediaError, encoded: bytes, video: bool) -> str:
  """What was found instead of a picture or a video, and what would be right."""
  kind = "video" if video else "picture"
  if error.cause == "too_large":
    return f"is too large ({error.detail}). Scale it down."
  if not encoded:
    return f"is empty. {RIGHT}"
  if holds_text(encoded):
    return f"holds text, not a {kind}. {RIGHT}"
  if "cannot identify" in error.detail or "Invalid data" in error.detail:
    return f"holds no {kind} of a format that is read here. {RIGHT}"
  return f"is a damaged {kind} ({error.detail}). Give the whole file."


def holds_text(encoded: bytes) -> bool:
  """Whether its beginning reads as UTF-8 without control characters."""
  beginning = encoded[:512].decode("utf-8", "ignore")
  return len(beginning.encode()) >= min(len(encoded), 509) and all(
    letter.isprintable() or letter in "\t\r\n" for letter in beginning
  )
