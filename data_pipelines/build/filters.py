"""Which pictures are worth learning from: the Flamingo paper's filters, and guards against broken or huge files."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator

from PIL import Image

from data_pipelines.media import DECODE_ERRORS, FORMATS, MediaError, eight_bits, picture_format

MOST_PIXELS = 50_000_000  # a decoded picture takes three or four bytes for each
TRACKING_PIXEL = 3  # a picture of no more pixels a side is there to be fetched, not to be seen


@dataclasses.dataclass(frozen=True)
class PictureRules:
  """Which sizes are kept (by default, those of the Flamingo paper).

  Attributes:
    smallest_side: pixels.
    largest_aspect: the longer side over the shorter one.
  """

  smallest_side: int = 64
  largest_aspect: float = 3


PAPER = PictureRules()


def check_picture(data: bytes, rules: PictureRules = PAPER) -> str | None:
  """Why a picture is to be dropped, or None: it is to be kept. The causes are those of `judge_picture`."""
  return judge_picture(data, rules)[0]


def judge_picture(
  data: bytes, rules: PictureRules, look: Callable[[Image.Image], int] | None = None
) -> tuple[str | None, int | None]:
  """(why a picture is to be dropped, or None; what `look` makes of the decoded pixels, if it is kept).

  The causes are `svg`, `unsupported_format` (of the file, or as `eight_bits` says of its pixels), `too_large` (over 50
  megapixels, told from the header: nothing is decoded), `tracking_pixel` (3 pixels a side at most), `too_small` and
  `aspect_ratio` (as the rules say), `broken` (it does not decode to its end) and `single_colour`.
  """
  try:
    with _opened(data) as picture:
      if picture_format(picture) not in FORMATS:
        return "unsupported_format", None
      cause = check_size(*picture.size, rules) or _check_pixels(picture)
      return cause, look(picture) if look and not cause else None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    return "too_large", None
  except MediaError:  # of `eight_bits`
    return "unsupported_format", None
  except DECODE_ERRORS:
    return "svg" if _is_svg(data) else "broken", None


def check_size(width: int, height: int, rules: PictureRules) -> str | None:
  """Why a picture or a film of this size is to be dropped, or None."""
  if width * height > MOST_PIXELS:
    return "too_large"
  if max(width, height) <= TRACKING_PIXEL:
    return "tracking_pixel"
  if min(width, height) < rules.smallest_side:
    return "too_small"
  if max(width, height) > rules.largest_aspect * min(width, height):
    return "aspect_ratio"
  return None


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  with warnings.catch_warnings():
    # Pillow only warns of what is already over our own limit.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(data)) as picture:
      yield picture


def _check_pixels(picture: Image.Image) -> str | None:
  picture.load()
  picture = eight_bits(picture)
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
