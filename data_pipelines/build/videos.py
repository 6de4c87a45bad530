"""Which videos are worth learning from: every frame is decoded once, so that what is kept is whole."""

import dataclasses

import av
from PIL import Image

from data_pipelines.build.filters import PictureRules, check_size
from data_pipelines.clips import open_video, pixel_aspect_of, square_width, upright
from data_pipelines.media import MediaError

MOST_BYTES = 256 * 2**20  # a record holds the whole file, and protocol buffers end at 2 GB


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
  """Decodes a video to its end. A clip is in seconds; None: to the end.

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
      return _decode(container, stream, clip)
  except MediaError as error:
    raise VideoError(error.cause, error.detail) from error


def _decode(container, stream, clip: tuple[float, float | None]) -> Video:
  frame_seconds = float(1 / stream.average_rate) if stream.average_rate else 0.0
  length = container.duration / av.time_base if container.duration else 0.0
  wanted = (clip[0] + (clip[1] or length)) / 2
  frames, end, middle, nearest = 0, 0.0, None, float("inf")
  for packet in container.demux(stream):
    if packet.is_corrupt:  # cut off within a frame, which may still decode
      raise VideoError("broken_video", f"it ends within a frame, after {frames} frames")
    for frame in packet.decode():
      time = float(frame.time or 0)
      frames += 1
      end = max(end, time + frame_seconds)
      if clip[0] <= time < (clip[1] or float("inf")) and abs(time - wanted) < nearest:
        middle, nearest = frame, abs(time - wanted)
  # A file that was cut off decodes without complaint up to the cut. Not every container tells its number of frames.
  if frames < stream.frames:
    raise VideoError("broken_video", f"{frames} frames of {stream.frames}")
  if not end or middle is None:
    raise VideoError("empty_video", f"no frame between {clip[0]} and {clip[1] or end} s")
  return Video(end, Image.fromarray(upright(middle, pixel_aspect_of(stream))))
