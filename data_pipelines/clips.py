"""Encoded videos to frames, by PyAV: which frames a clip has, told by when they are shown; only these become pixels."""

import contextlib
import io
from collections.abc import Iterable, Iterator

import av
import numpy as np
from PIL import Image

from data_pipelines.media import DECODE_ERRORS, MediaError, check_pixels, pad, scale

# Containers that hold their own frames: others of FFmpeg, such as concat and HLS, are lists of files to open.
CONTAINERS = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg", "protocol_whitelist": "none"}


def decode_clip(
  encoded: bytes, size: int, *, frames: int, per_second: float, span: tuple[float, float], start: float
) -> tuple[np.ndarray, np.ndarray]:
  """`read_clip`, padded with the mean: uint8 [F, size, size, 3], zero where there is no frame; which are, bool [F]."""
  pictures = read_clip(encoded, size, frames=frames, per_second=per_second, span=span, start=start)
  clip = np.zeros((frames, size, size, 3), np.uint8)
  clip[: len(pictures)] = pad(pictures, size)
  return clip, np.arange(frames) < len(pictures)


def read_clip(
  encoded: bytes, size: int, *, frames: int, per_second: float, span: tuple[float, float], start: float
) -> np.ndarray:
  """Frames of a video, at a fixed rate or spread over all of it; of a clip too short for all of them, those there are.

  Args:
    encoded: the file.
    size: of the longer side that frames are scaled to, pixels.
    frames: F, how many at most.
    per_second: how many frames a second of video; 0: as many as there are, up to F, spread evenly.
    span: the part of the video to draw from, seconds from its first frame; an end of infinity is the file's own.
    start: in [0, 1), where the clip starts among all its possible places.

  Returns:
    uint8 [n, H, W, 3], n from 1 to F.

  Raises:
    MediaError: `broken_video` if the file is no video or ends within a frame, `too_large` if its frames claim too
      many pixels, `empty_video` if the span has no frame.
  """
  times = frame_times(encoded)
  begin, end = times[0] + span[0], times[0] + span[1]
  inside = times[(begin <= times) & (times < end)]
  if not len(inside):
    raise MediaError("empty_video", f"no frame between {span[0]:.2f} and {span[1]:.2f} s of {np.ptp(times):.2f} s")
  with open_video(encoded) as (container, stream):
    timed = ((second(frame.pts, stream), frame) for frame in container.decode(stream) if frame.pts is not None)
    shown = ((time, frame) for time, frame in timed if begin <= time < end)
    clip = nearest(shown, moments(inside, frames, per_second, start))
    return np.stack([scale(frame.to_ndarray(format="rgb24"), size) for frame in clip])


@contextlib.contextmanager
def open_video(encoded: bytes) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
  """A file and its first video stream. Whatever FFmpeg finds wrong on the way is a MediaError."""
  try:
    with av.open(io.BytesIO(encoded), options=CONTAINERS) as container:
      if not container.streams.video:
        raise MediaError("broken_video", "no video stream")
      stream = container.streams.video[0]
      check_pixels(stream.codec_context.width, stream.codec_context.height)
      cap_pixels(stream)
      stream.codec_context.thread_count = 1  # films are spread over threads already
      yield container, stream
  except (av.FFmpegError, *DECODE_ERRORS) as error:
    raise MediaError("broken_video", str(error)) from error


def cap_pixels(stream: av.VideoStream) -> None:
  """Lets FFmpeg refuse frames of more pixels than a header may claim: they may grow on the way."""
  stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}


def frame_times(encoded: bytes) -> np.ndarray:
  """When each frame is shown, float64 [T], seconds, rising; told by the packets, without decoding."""
  seconds = []
  with open_video(encoded) as (container, stream):
    for packet in container.demux(stream):
      if packet.is_corrupt:  # cut off: it would decode to a frame with holes, and the film would just be shorter
        raise MediaError("broken_video", f"it ends within a frame, after {len(seconds)} frames")
      stamp = packet.dts if packet.pts is None else packet.pts
      if stamp is not None and not packet.is_discard:
        seconds.append(second(stamp, stream))
  if not seconds:
    raise MediaError("empty_video", "no frame at all")
  return np.sort(seconds)


def second(stamp: int, stream: av.VideoStream) -> float:
  return float(stamp * stream.time_base)


def moments(times: np.ndarray, frames: int, per_second: float, start: float) -> np.ndarray:
  """The seconds at which frames are wanted: float64 [n], rising, n from 1 to F."""
  first, last = times[0], times[-1]
  if not per_second:
    count = min(frames, len(times))
    return times[((np.arange(count) + 0.5) / count * len(times)).astype(int)]
  begin = first + start * max(last - first - (frames - 1) / per_second, 0.0)
  wanted = begin + np.arange(frames) / per_second
  return wanted[wanted <= last + 0.5 / per_second]


def nearest(shown: Iterable[tuple[float, av.VideoFrame]], wanted: np.ndarray) -> list[av.VideoFrame]:
  """For each of the rising moments the frame that is nearest to it; no more is decoded than that takes.

  Raises:
    MediaError: `broken_video` if there is no frame at all, though the file's index has some.
  """
  chosen, before = [], None
  for time, frame in shown:
    while len(chosen) < len(wanted) and wanted[len(chosen)] <= time:
      moment = wanted[len(chosen)]
      chosen.append(before[1] if before is not None and moment - before[0] <= time - moment else frame)
    if len(chosen) == len(wanted):
      return chosen
    before = time, frame
  if before is None:
    raise MediaError("broken_video", "none of its frames can be decoded")
  return chosen + [before[1]] * (len(wanted) - len(chosen))
