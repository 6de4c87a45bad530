import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_pipelines.build.filters import PictureRules, check_picture, judge_picture
from data_pipelines.build.fingerprints import perceptual_hash
from data_pipelines.media import MediaError, read_image


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


def test_a_jpeg_with_a_second_picture_behind_it_is_kept(phone_picture):
  assert phone_picture.startswith(b"\xff\xd8\xff") and check_picture(phone_picture) is None


RAMP = np.arange(256 * 256, dtype=np.int32).reshape(256, 256)


@pytest.mark.parametrize(
  ("pixels", "cause"),
  [
    (RAMP.astype("<u2"), None),
    (RAMP.astype(">u2"), None),
    (RAMP, None),
    (RAMP // 256, "unsupported_format"),
    (RAMP + 1, "unsupported_format"),
    ((RAMP / 65535).astype(np.float32), "unsupported_format"),
  ],
  ids=["16 bits", "16 bits, other byte order", "16 bits in 32", "8 bits in 32", "17 bits in 32", "floating point"],
)
def test_a_tiff_is_kept_if_training_reads_it(pixels, cause):
  data = encoded(Image.fromarray(pixels), "TIFF")
  assert check_picture(data) == cause
  if cause:
    with pytest.raises(MediaError):
      read_image(data, 256)
  else:
    np.testing.assert_array_equal(read_image(data, 256), np.repeat(RAMP[..., None] // 256, 3, axis=-1))


@pytest.mark.parametrize(
  ("width", "height", "cause"),
  [
    (64, 64, None),
    (63, 64, "too_small"),
    (64, 63, "too_small"),
    (192, 64, None),
    (193, 64, "aspect_ratio"),
    (64, 193, "aspect_ratio"),
    (4, 4, "too_small"),
    (3, 2, "tracking_pixel"),
    (1, 1, "tracking_pixel"),
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


def test_drawings_and_formats_that_are_not_read_are_told_apart():
  svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"></svg>'
  assert check_picture(svg) == "svg"
  assert check_picture(encoded(Image.linear_gradient("L"), "PPM")) == "unsupported_format"


def animation() -> bytes:
  frames = [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)]
  return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned() -> bytes:
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  return encoded(Image.linear_gradient("L").crop((0, 0, 100, 256)), "JPEG", exif=exif)


@pytest.mark.parametrize(
  "data",
  [
    encoded(Image.merge("CMYK", [Image.linear_gradient("L")] * 4), "JPEG"),
    encoded(Image.linear_gradient("L").convert("P")),
    encoded(Image.fromarray(np.arange(256 * 256, dtype=np.uint16).reshape(256, 256))),
    animation(),
    turned(),
    encoded(Image.linear_gradient("L"), "WEBP"),
  ],
  ids=["cmyk", "palette", "16 bits", "animated", "turned by EXIF", "webp"],
)
def test_unusual_pictures_are_kept_and_have_a_hash(data):
  cause, hash = judge_picture(data, PictureRules(), perceptual_hash)
  assert cause is None and 0 < hash < 2**64


def test_the_rules_may_be_others(picture):
  assert check_picture(picture(width=100, height=70), PictureRules(smallest_side=71)) == "too_small"
  assert check_picture(picture(width=100, height=70), PictureRules(largest_aspect=1.4)) == "aspect_ratio"
  assert check_picture(picture(width=10, height=70), PictureRules(1, 10)) is None


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
