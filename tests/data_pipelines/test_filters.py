import io
import struct
import zlib

import pytest
from PIL import Image

from data_pipelines.build.filters import check_picture


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def png_header(width: int, height: int) -> bytes:
  """The beginning of a PNG that claims a size and has next to no pixels."""
  header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_ordinary_pictures_are_kept(picture, format):
  assert check_picture(picture(format=format)) is None


@pytest.mark.parametrize(
  ("width", "height", "cause"),
  [
    (64, 64, None),
    (63, 64, "too_small"),
    (64, 63, "too_small"),
    (192, 64, None),
    (193, 64, "aspect_ratio"),
    (64, 193, "aspect_ratio"),
    (1, 1, "too_small"),
  ],
)
def test_sizes_are_judged_as_in_the_paper(picture, width, height, cause):
  assert check_picture(picture(width=width, height=height)) == cause


@pytest.mark.parametrize("size", [(30000, 30000), (7072, 7072), (10000, 10000)])
def test_a_bomb_is_refused_by_its_header(size):
  assert check_picture(png_header(*size)) == "too_large"


def test_just_under_the_limit_it_is_the_missing_pixels_that_count():
  assert check_picture(png_header(7071, 7071)) == "broken"


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_broken(picture, format, share):
  data = picture(format=format, width=200, height=150)
  assert check_picture(data[: int(share * len(data))]) == "broken"


def test_a_corrupt_picture_is_broken(picture):
  data = bytearray(picture(width=200, height=150))
  data[5000:5100] = bytes(100)
  assert check_picture(bytes(data)) == "broken"


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"not a picture at all", b"\0" * 1000])
def test_what_is_no_picture_is_broken(data):
  assert check_picture(data) == "broken"


@pytest.mark.parametrize(
  "data",
  [
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"></svg>',
    encoded(Image.linear_gradient("L"), "TIFF"),
  ],
)
def test_other_formats_are_unsupported(data):
  assert check_picture(data) == "unsupported_format"


@pytest.mark.parametrize(
  ("image", "cause"),
  [
    (Image.new("RGB", (100, 100), (10, 20, 30)), "single_colour"),
    (Image.new("L", (100, 100), 7), "single_colour"),
    (Image.new("P", (100, 100), 3), "single_colour"),
    (Image.new("I;16", (100, 100), 40000), "single_colour"),
    (Image.linear_gradient("L"), None),
    (Image.linear_gradient("L").convert("P"), None),
    # Nothing but transparency, whatever the hidden pixels hold; and a shape that only transparency draws.
    (Image.merge("RGBA", [*[Image.linear_gradient("L")] * 3, Image.new("L", (256, 256), 0)]), "single_colour"),
    (Image.merge("RGBA", [*[Image.new("L", (256, 256), 0)] * 3, Image.linear_gradient("L")]), None),
  ],
)
def test_a_single_colour_is_what_a_reader_sees(image, cause):
  assert check_picture(encoded(image)) == cause


def test_one_other_pixel_is_enough():
  image = Image.new("RGB", (100, 100), (10, 20, 30))
  image.putpixel((50, 50), (10, 20, 31))
  assert check_picture(encoded(image)) is None
