"""Encoded pictures to pixels, and what is done to these. Everything that is wrong with a medium has a name."""

import dataclasses
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# 50 megapixels: what a picture or a frame may claim in its header before anything of it is decoded.
Image.MAX_IMAGE_PIXELS = 50_000_000
# What Pillow opens; some of its other formats run programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
JPEG_START, EXIF = b"\xff\xd8\xff", b"Exif\0\0"
PADDING = 128  # of all colours: the mean value after normalization to -1..1

cv2.setNumThreads(1)  # pictures are spread over threads already
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage: what it breaks is counted

# All that Pillow's decoders are known to raise on a damaged file.
DECODE_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  LookupError,
  TypeError,
  AttributeError,
  AssertionError,
  ArithmeticError,
  RuntimeError,
  struct.error,
  zlib.error,
)

CAUSES = (
  "broken_image",
  "too_large",  # a picture or video of more pixels than are decoded
  "broken_video",
  "empty_video",
  "empty_text",
  "bad_record",  # it is none, or lacks what its stream needs
  "damaged_shard",  # it cannot be read at all
)


class MediaError(Exception):
  """A medium that cannot be used; `cause` is one of CAUSES."""

  def __init__(self, cause: str, detail: str):
    super().__init__(f"{cause}: {detail}")
    self.cause, self.detail = cause, detail


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

  def of(self, pixels: np.ndarray) -> np.ndarray:
    """The part itself, of [H, W, 3]."""
    left, upper, right, lower = self.box(pixels.shape[1], pixels.shape[0])
    return pixels[upper:lower, left:right]


def decode_image(encoded: bytes, size: int) -> np.ndarray:
  """A picture of any of FORMATS as uint8 [size, size, 3]: `read_image`, padded with the mean."""
  return pad(read_image(encoded, size), size)


def read_image(encoded: bytes, size: int, crop: Crop | None = None) -> np.ndarray:
  """A picture as uint8 [H, W, 3]: aspect kept, the longer side `size`, transparency on white.

  It is decoded at the smallest fraction of its size that is not below what is kept of it, then scaled linearly.

  Raises:
    MediaError: `broken_image` if it is truncated, of no known format or of numbers that `eight_bits` refuses,
      `too_large` if it claims too many pixels.
  """
  least = size if crop is None else size / crop.side
  pixels = read_plain_jpeg(encoded, least)
  if pixels is None:
    pixels = read_any(encoded, least)
  return scale(pixels if crop is None else crop.of(pixels), size)


def read_plain_jpeg(encoded: bytes, least: float) -> np.ndarray | None:
  """Nearly every JPEG, in half of Pillow's time: uint8 [H, W, 3], its longer side not below `least` if it was not.

  None: it is something else, or turned, or not for an RGB screen, or damaged, and for Pillow to judge.
  """
  if not encoded.startswith(JPEG_START) or EXIF in encoded:
    return None
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    if colours not in ("YCbCr", "Gray"):
      return None
    check_pixels(width, height)
    columns, rows = fitted(width, height, least)
    # Other fractions exist, but are slower than these.
    fraction = next((part for part in (8, 4, 2) if columns * part <= width and rows * part <= height), 1)
    return simplejpeg.decode_jpeg(encoded, min_width=-(-width // fraction), min_height=-(-height // fraction))
  except ValueError:
    return None


def read_any(encoded: bytes, least: float) -> np.ndarray:
  """The same for any picture that Pillow opens."""
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      check_pixels(*image.size)
      image.draft("RGB", fitted(*image.size, least))
      turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
      upright = flatten(ImageOps.exif_transpose(image) if turned else image)
      width, height = fitted(*upright.size, least)
      fraction = min(upright.width // width, upright.height // height)
      return np.asarray(upright.reduce(fraction) if fraction > 1 else upright)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise MediaError("too_large", str(error)) from error
  except UnidentifiedImageError as error:  # Pillow names an object in memory, another one at each reading
    raise MediaError("broken_image", "cannot identify its format") from error
  except DECODE_ERRORS as error:
    raise MediaError("broken_image", str(error)) from error


def check_pixels(width: int, height: int) -> None:
  """Raises MediaError `too_large`. Pillow itself refuses twice as many, and warns of these."""
  if width * height > Image.MAX_IMAGE_PIXELS:
    raise MediaError("too_large", f"{width} x {height} pixels; at most {Image.MAX_IMAGE_PIXELS} are decoded")


def picture_format(image: Image.Image) -> str | None:
  """The format of an opened file, of FORMATS if it is read; a JPEG with more pictures behind its first is a JPEG."""
  return "JPEG" if image.format == "MPO" else image.format


def flatten(image: Image.Image) -> Image.Image:
  """RGB; what is transparent shows white, as on a page."""
  image = eight_bits(image)
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")
  return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
  """Gray of 16 bits as 8, where Pillow would show all above 255 as white; other pictures as they are.

  Raises MediaError `broken_image` for numbers of which nobody knows what is black and what white: floating point, and
  32 bits that do not fill 16.
  """
  if image.mode == "F":
    raise MediaError("broken_image", "pixels of floating point, where 8 and 16 bits are read")
  if not image.mode.startswith("I"):
    return image
  values = np.asarray(image)
  low, high = int(values.min()), int(values.max())
  if image.mode == "I" and (low < 0 or not 255 < high <= 65535):
    raise MediaError("broken_image", f"pixels of 32 bits, from {low} to {high}, where 8 and 16 bits are read")
  return Image.fromarray((values // 256).astype(np.uint8))


def fitted(width: int, height: int, size: float) -> tuple[int, int]:
  """Width and height after the longer side has become `size`."""
  longer = max(width, height)
  return max(round(width * size / longer), 1), max(round(height * size / longer), 1)


def scale(pixels: np.ndarray, size: int) -> np.ndarray:
  """The longer side to `size`, uint8 [H, W, 3] to the same, linearly."""
  height, width, _ = pixels.shape
  return cv2.resize(pixels, fitted(width, height, size), interpolation=cv2.INTER_LINEAR)


def pad(pictures: np.ndarray, size: int) -> np.ndarray:
  """uint8 [..., H, W, 3] in the middle of [..., size, size, 3], with the mean around."""
  padded = np.empty((*pictures.shape[:-3], size, size, 3), np.uint8)
  pad_into(padded, pictures)
  return padded


def pad_into(padded: np.ndarray, pictures: np.ndarray) -> None:
  """The same, written to `padded`."""
  size, (height, width) = padded.shape[-2], pictures.shape[-3:-1]
  top, left = (size - height) // 2, (size - width) // 2
  padded[..., :top, :, :] = padded[..., top + height :, :, :] = PADDING
  padded[..., top : top + height, :left, :] = padded[..., top : top + height, left + width :, :] = PADDING
  padded[..., top : top + height, left : left + width, :] = pictures


def jitter(pictures: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
  """Other colours, the same for all frames: uint8 [F, H, W, 3] to the same; factors of 1 change nothing.

  One linear map: times the brightness, away from the mean by the contrast, from gray by the saturation.
  """
  tall = one_below_the_other(pictures)
  others = brightness * contrast * (1 - saturation) / 3  # of a colour that becomes another
  own = brightness * contrast * saturation + others
  shift = brightness * (1 - contrast) * sum(cv2.mean(tall)) / 3
  matrix = [[own, others, others, shift], [others, own, others, shift], [others, others, own, shift]]
  return cv2.transform(tall, np.array(matrix, np.float32)).reshape(pictures.shape)


def flip(pictures: np.ndarray) -> np.ndarray:
  """Left to right, uint8 [F, H, W, 3]."""
  return cv2.flip(one_below_the_other(pictures), 1).reshape(pictures.shape)


def one_below_the_other(pictures: np.ndarray) -> np.ndarray:
  """[F, H, W, 3] as one picture [F H, W, 3]."""
  return pictures.reshape(-1, *pictures.shape[2:])
