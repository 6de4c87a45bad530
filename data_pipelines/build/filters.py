"""Which pictures are worth learning from: the Flamingo paper's filters, and guards against broken or huge files."""

import contextlib
import io
import warnings
from collections.abc import Iterator

from PIL import Image

from data_pipelines.media import DECODE_ERRORS

FORMATS = ("PNG", "JPEG", "GIF", "BMP")  # what the input pipeline decodes
SMALLEST_SIDE = 64
LARGEST_ASPECT = 3
MOST_PIXELS = 50_000_000  # a decoded picture takes three or four bytes for each


def check_picture(data: bytes) -> str | None:
  """Why a picture is to be dropped, or None: it is to be kept.

  The causes are `unsupported_format`, `too_large` (over 50 megapixels, told from the header: nothing is decoded),
  `too_small` (a side under 64 pixels), `aspect_ratio` (over 3), `broken` (it does not decode to its end) and
  `single_colour`.
  """
  try:
    with _opened(data) as picture:
      if picture.format not in FORMATS:
        return "unsupported_format"
      return _check_size(*picture.size) or _check_pixels(picture)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    return "too_large"
  except DECODE_ERRORS:
    return "unsupported_format" if _is_svg(data) else "broken"


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  with warnings.catch_warnings():
    # Pillow only warns of what is already over our own limit.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(data)) as picture:
      yield picture


def _check_size(width: int, height: int) -> str | None:
  if width * height > MOST_PIXELS:
    return "too_large"
  if min(width, height) < SMALLEST_SIDE:
    return "too_small"
  if max(width, height) > LARGEST_ASPECT * min(width, height):
    return "aspect_ratio"
  return None


def _check_pixels(picture: Image.Image) -> str | None:
  picture.load()
  if picture.mode == "P" or "A" in picture.getbands() or "transparency" in picture.info:
    picture = _over_white(picture.convert("RGBA"))
  extrema = picture.getextrema()
  bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
  return "single_colour" if all(low == high for low, high in bands) else None


def _over_white(picture: Image.Image) -> Image.Image:
  """The picture as a page shows it; what lies under full transparency is not seen and may be anything."""
  white = Image.new("RGBA", picture.size, "white")
  return Image.alpha_composite(white, picture).convert("RGB")


def _is_svg(data: bytes) -> bool:
  return b"<svg" in data[:4096].lower()
