"""Which videos are worth learning from: every frame is decoded once, so that what is kept is whole."""

import dataclasses

import av
import numpy as np
from PIL import Image

from data_pipelines.build.filters import PictureRules, check_size
from data_pipelines.clips import Index, open_video, pixel_aspect_of, read_index, second, square_width, upright
from data_pipelines.media import MediaError

MOST_BYTES = 256 * 2**20  # a record holds the whole file, and protocol buffers end at 2 GB
AS_NEAR = 0.005  # seconds: containers round time stamps, and of two frames as near the first is to be the middle


class VideoError(Exception):
  """A video that cannot be used; `cause` says why in a word."""

  def __init__(self, cause: str, detail: str = ""):
    super().__init__(f"{cause}: {detail}" if detail else cause)
    self.cause = cause


@dataclasses.dataclass(frozen=True)
class Video:
  """What decoding a video shows: how long it lasts, and the frame in the middle of its clip, upright."""

  seconds: float
  middle: Image.Image


def examine_video(
  data: bytes, clip: tuple[float, float | None] = (0.0, None), rules: PictureRules | None = None
) -> Video:
  """Decodes a video to its end. A clip is in seconds from its first frame; None: to the end.

  Raises VideoError: `broken_video` (no video, damaged, it ends before its header says, or its frames grow over 50
  megapixels on the way), `empty_video` (no frame, or none in the clip), `too_large` (in bytes, or over 50 megapixels a
  frame, told from the header) and, under rules, `too_small` and `aspect_ratio`.
  """
  if len(data) > MOST_BYTES:
    raise VideoError("too_large", f"{len(data)} bytes; a record has at most {MOST_BYTES}")
  try:
    with open_video(data) as (container, stream):
      if not stream.width * stream.height:
        raise VideoError("broken_video", "no frame from which its size can be told")
      width, height = square_width(stream.width, pixel_aspect_of(stream)), stream.height
      cause = check_size(width, height, rules or PictureRules(1, float("inf")))
      if cause:
        raise VideoError(cause, f"{width} x {height} pixels")
      index = read_index(data)
      seconds = _seconds(index, stream)
      wanted = _middle_time(index, (clip[0], float("inf") if clip[1] is None else clip[1]))
      middle = _decode(container, stream, wanted, seconds)
      return Video(seconds, Image.fromarray(upright(middle, index.pixel_aspect)))
  except MediaError as error:
    raise VideoError(error.cause, error.detail) from error


def _seconds(index: Index, stream) -> float:
  """How long a video lasts, its last frame as long as one does on average; sound that goes on does not count."""
  frame_seconds = float(1 / stream.average_rate) if stream.average_rate else 0.0
  return float(np.ptp(index.times)) + frame_seconds


def _middle_time(index: Index, clip: tuple[float, float]) -> float:
  """When the frame is shown that is halfway between the first and the last of a clip."""
  begin, end = index.bounds(clip)
  inside = index.times[(begin <= index.times) & (index.times < end)]
  if not len(inside):
    raise VideoError("empty_video", f"no frame between {clip[0]} and {clip[1]} s of {np.ptp(index.times):.2f} s")
  distances = np.abs(inside - (inside[0] + inside[-1]) / 2)
  return inside[np.argmax(distances <= distances.min() + AS_NEAR)]


def _decode(container, stream, wanted: float, seconds: float) -> av.VideoFrame:
  """Decodes a video of so many seconds to its end; the frame that is shown nearest to a moment."""
  frames, middle, nearest = 0, None, float("inf")
  for packet in container.demux(stream):
    for frame in packet.decode():
      frames += 1
      distance = float("inf") if frame.pts is None else abs(second(frame.pts, stream) - wanted)
      if distance < nearest:
        middle, nearest = frame, distance
  # A file that was cut off decodes without complaint up to the cut. Not every container tells its number of frames.
  if frames < stream.frames and seconds < _told_seconds(stream) * (1 - 0.5 / stream.frames):
    raise VideoError("broken_video", f"{frames} frames of {stream.frames}")
  if middle is None:
    raise VideoError("broken_video", "none of its frames can be decoded")
  return middle


def _told_seconds(stream) -> float:
  """How long a video is by its header, which counts, as its number of frames does not, only what a trim has left."""
  return float("inf") if stream.duration is None else float(stream.duration * stream.time_base)
