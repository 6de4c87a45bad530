"""Encoded bytes to pixels: pictures by Pillow, videos by PyAV. Everything that is wrong with them has a name."""

import dataclasses
import functools
import io
import struct
import zlib

import av
import numpy as np
from PIL import Image, ImageOps

# 50 megapixels: what a picture may claim in its header before anything of it is decoded.
Image.MAX_IMAGE_PIXELS = 50_000_000
PADDING = (128, 128, 128)  # the mean value after normalization to -1..1

# All that Pillow's decoders are known to raise on a damaged file.
DECODE_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  TypeError,
  OverflowError,
  struct.error,
  zlib.error,
)

CAUSES = ("broken_image", "broken_video", "empty_video", "empty_text", "bad_record")


class MediaError(Exception):
  """A medium that cannot be used; `cause` is one of CAUSES."""

  def __init__(self, cause: str, detail: str):
    super().__init__(f"{cause}: {detail}")
    self.cause = cause


@dataclasses.dataclass(frozen=True)
class Crop:
  """A part of a picture, of the same aspect: `side` of its width and height, at `x` and `y` of what is left over."""

  side: float
  x: float
  y: float

  def box(self, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, upper, right and lower pixel."""
    kept = max(round(width * self.side), 1), max(round(height * self.side), 1)
    left, upper = int(self.x * (width - kept[0] + 1)), int(self.y * (height - kept[1] + 1))
    return left, upper, left + kept[0], upper + kept[1]


def decode_image(encoded: bytes, size: int, crop: Crop | None = None) -> np.ndarray:
  """A picture of any format as uint8 [size, size, 3]: aspect kept, transparency on white, padded with the mean.

  Raises:
    MediaError: `broken_image` if it is truncated, of no known format, or claims too many pixels.
  """
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow refuses twice as many, and warns of these
        raise ValueError(f"{image.width} x {image.height} pixels; at most {Image.MAX_IMAGE_PIXELS} are decoded")
      if crop is None:
        image.draft("RGB", (size, size))  # a JPEG decodes at the nearest larger fraction of its size
      upright = flatten(ImageOps.exif_transpose(image))
      return fit(upright if crop is None else upright.crop(crop.box(*upright.size)), size)
  except (*DECODE_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise MediaError("broken_image", str(error)) from error


def flatten(image: Image.Image) -> Image.Image:
  """RGB; what is transparent shows white, as on a page."""
  if image.mode.startswith("I"):  # 16 bits a pixel, of which Pillow would show all above 255 as white
    image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")
  return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
  """Scales the longer side to `size` and pads the shorter one on both sides."""
  return np.asarray(ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=PADDING))


def decode_clip(
  encoded: bytes, size: int, *, frames: int, per_second: float, span: tuple[float, float], start: float
) -> tuple[np.ndarray, np.ndarray]:
  """Frames of a video at a fixed rate; a clip too short for all of them is masked, not repeated.

  Args:
    encoded: the file.
    size: of the square that frames are fitted into, pixels.
    frames: F.
    per_second: how many frames a second of video.
    span: the part of the file to draw from, seconds; an end of infinity is the file's own.
    start: in [0, 1), where the clip starts among all its possible places.

  Returns:
    uint8 [F, size, size, 3], and bool [F]: which frames exist.

  Raises:
    MediaError: `broken_video` if the file is no video or ends within a frame, `empty_video` if the span has no frame.
  """
  times, pictures = decode_video(encoded, size)
  inside = [at for at in range(len(times)) if span[0] <= times[at] < span[1]]
  if not inside:
    raise MediaError("empty_video", f"no frame between {span[0]:.2f} and {span[1]:.2f} s of {times[-1]:.2f} s")
  first, last = times[inside[0]], times[inside[-1]]
  begin = first + start * max(last - first - (frames - 1) / per_second, 0.0)
  wanted = begin + np.arange(frames) / per_second
  exists = wanted <= last + 0.5 / per_second
  nearest = [inside[int(np.abs(times[inside] - time).argmin())] for time in wanted]
  clip = pictures[nearest]
  clip[~exists] = 0
  return clip, exists


@functools.lru_cache(maxsize=16)
def decode_video(encoded: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
  """All frames of a short video: times float64 [T] in seconds and pictures uint8 [T, size, size, 3]."""
  times, pictures = [], []
  try:
    with av.open(io.BytesIO(encoded)) as container:
      if not container.streams.video:
        raise MediaError("broken_video", "no video stream")
      for packet in container.demux(video=0):
        if packet.is_corrupt:  # cut off; it would decode to a frame with holes, and the film would just be shorter
          raise MediaError("broken_video", f"it ends within a frame, after {len(times)} frames")
        for frame in packet.decode():
          times.append(float(frame.time or 0.0))
          pictures.append(fit(frame.to_image(), size))
  except (av.FFmpegError, ValueError) as error:
    raise MediaError("broken_video", str(error)) from error
  if not times:
    raise MediaError("empty_video", "no frame at all")
  return np.asarray(times), np.stack(pictures)


def jitter(pictures: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
  """Random brightness, contrast and saturation, the same for all frames: uint8 [F, H, W, 3] to the same."""
  brightness, contrast, saturation = 1 + strength * random.uniform(-1, 1, 3)
  values = pictures.astype(np.float32) * brightness
  mean = values.mean()
  values = mean + (values - mean) * contrast
  gray = values.mean(axis=-1, keepdims=True)
  return np.clip(gray + (values - gray) * saturation, 0, 255).astype(np.uint8)
