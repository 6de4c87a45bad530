"""Encoded videos to frames, by PyAV: which frames a clip has, told by when they are shown; only these become pixels."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import av
import cv2
import numpy as np
from PIL import Image

from data_pipelines.media import DECODE_ERRORS, MediaError, check_pixels, pad, scale

Frame = TypeVar("Frame")

# Containers that hold their own frames: others of FFmpeg, such as concat and HLS, are lists of files to open.
CONTAINERS = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg", "protocol_whitelist": "none"}
TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}  # by quarters of a circle


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
    MediaError: `broken_video` if the file is no video, ends within a frame or changes its frames' shape, `too_large`
      if its frames claim too many pixels, `empty_video` if the span has no frame.
  """
  index = read_index(encoded)
  times = index.times
  begin, end = index.bounds(span)
  inside = times[(begin <= times) & (times < end)]
  if not len(inside):
    raise MediaError("empty_video", f"no frame between {span[0]:.2f} and {span[1]:.2f} s of {np.ptp(times):.2f} s")
  wanted = moments(inside, frames, per_second, start)
  drawn = [time for time, _ in nearest(zip(inside, inside, strict=True), wanted)]
  clip = nearest(decoded(encoded, index.entry(drawn[0]), frozenset(drawn)), drawn)
  if [time for time, _ in clip] != drawn:  # its packets promise what does not come, or not from that one on
    whole = decoded(encoded, 0, frozenset(inside))
    clip = nearest(((time, frame) for time, frame in whole if begin <= time < end), wanted)
  pictures = [scale(upright(frame, index.pixel_aspect), size) for _, frame in clip]
  if len({picture.shape for picture in pictures}) > 1:
    raise MediaError("broken_video", "its frames change their shape")
  return np.stack(pictures)


def upright(frame: av.VideoFrame, pixel_aspect: float) -> np.ndarray:
  """A frame as it is to be seen: uint8 [H, W, 3], its pixels made square, then turned as the film says.

  Raises MediaError: `too_large` if it claims too many square pixels, `broken_video` if FFmpeg makes no picture of it.
  """
  width = square_width(frame.width, pixel_aspect)
  check_pixels(width, frame.height)
  try:
    pixels = frame.to_ndarray(format="rgb24", width=width)
  except av.FFmpegError as error:
    raise MediaError("broken_video", str(error)) from error
  turn = TURNS.get(round(frame.rotation / 90) % 4)
  return pixels if turn is None else cv2.rotate(pixels, turn)


def pixel_aspect_of(stream: av.VideoStream) -> float:
  """The width of a film's pixels over their height; 1 where it does not say."""
  return float(stream.sample_aspect_ratio or 1)


def square_width(width: int, pixel_aspect: float) -> int:
  """How many square pixels are as wide as so many of that aspect."""
  return max(round(width * pixel_aspect), 1)


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


@dataclasses.dataclass(frozen=True)
class Index:
  """What the packets of a film tell of it without being decoded.

  Attributes:
    times: when each frame is shown, float64 [T], seconds, rising.
    entries: the second and the number of every packet with which decoding can begin.
    pixel_aspect: the width of its pixels over their height.
  """

  times: np.ndarray
  entries: tuple[tuple[float, int], ...]
  pixel_aspect: float

  def bounds(self, span: tuple[float, float]) -> tuple[float, float]:
    """When a span begins and ends whose seconds are counted from the first frame."""
    return self.times[0] + span[0], self.times[0] + span[1]

  def entry(self, time: float) -> int:
    """The last packet with which a decoder can begin and still show all frames of that second."""
    return max((number for begins, number in self.entries if begins < time), default=0)


def read_index(encoded: bytes) -> Index:
  """Raises MediaError: `broken_video` if a packet is cut off, `empty_video` if there is none."""
  times, entries = [], []
  with open_video(encoded) as (container, stream):
    pixel_aspect = pixel_aspect_of(stream)
    for number, packet in enumerate(container.demux(stream)):
      if packet.is_corrupt:  # cut off: it would decode to a frame with holes, and the film would just be shorter
        raise MediaError("broken_video", f"it ends within a frame, after {len(times)} frames")
      stamp = packet.dts if packet.pts is None else packet.pts
      if stamp is None:
        continue
      if packet.is_keyframe:
        entries.append((second(stamp, stream), number))
      if not packet.is_discard:
        times.append(second(stamp, stream))
  if not times:
    raise MediaError("empty_video", "no frame at all")
  return Index(np.sort(times), tuple(entries), pixel_aspect)


def decoded(encoded: bytes, entry: int, needed: frozenset[float]) -> Iterator[tuple[float, av.VideoFrame]]:
  """Frames and when they are shown, in that order, from a packet on; at least those of the seconds `needed`.

  Of the others, those from which no frame is predicted are left out: more than half of most films.
  """
  with open_video(encoded) as (container, stream):
    stream.codec_context.open(strict=False)  # before it is told what to leave out: AV1's would keep to the first
    for packet in itertools.islice(container.demux(stream), entry, None):
      left_out = packet.pts is not None and second(packet.pts, stream) not in needed
      stream.codec_context.skip_frame = "NONREF" if left_out else "DEFAULT"
      for frame in packet.decode():
        if frame.pts is not None:
          yield second(frame.pts, stream), frame


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


def nearest(shown: Iterable[tuple[float, Frame]], wanted: Sequence[float] | np.ndarray) -> list[tuple[float, Frame]]:
  """For each of the rising moments the frame that is nearest to it, and when; no more are taken than that needs.

  Raises:
    MediaError: `broken_video` if there is no frame at all, though the file's index has some.
  """
  chosen, before = [], None
  for time, frame in shown:
    while len(chosen) < len(wanted) and wanted[len(chosen)] <= time:
      moment = wanted[len(chosen)]
      is_before_nearer = before is not None and moment - before[0] <= time - moment
      chosen.append(before if is_before_nearer else (time, frame))
    if len(chosen) == len(wanted):
      return chosen
    before = time, frame
  if before is None:
    raise MediaError("broken_video", "none of its frames can be decoded")
  return chosen + [before] * (len(wanted) - len(chosen))
