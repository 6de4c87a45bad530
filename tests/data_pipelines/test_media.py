import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.media import (
  PADDING,
  Crop,
  MediaError,
  decode_image,
  flip,
  jitter,
  pad,
  read_any,
  read_image,
  read_plain_jpeg,
)

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
  """A PNG made by hand, for what Pillow does not write."""

  def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_wide_picture_keeps_its_aspect_between_bands_of_the_mean(format):
  options = dict(lossless=True) if format == "WEBP" else {}
  pixels = decode_image(encode(Image.new("RGB", (40, 20), RED), format, **options), 16)
  expected = np.full((16, 16, 3), PADDING, np.uint8)
  expected[4:12] = RED
  np.testing.assert_array_equal(pixels, expected)


def test_a_tall_picture_keeps_its_aspect_between_bands_of_the_mean():
  pixels = decode_image(encode(Image.new("RGB", (20, 40), RED)), 16)
  expected = np.full((16, 16, 3), PADDING, np.uint8)
  expected[:, 4:12] = RED
  np.testing.assert_array_equal(pixels, expected)


def test_a_picture_of_the_right_size_is_not_touched():
  noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(noise)), 16), noise)


@pytest.mark.parametrize(
  ("encoded", "expected"),
  [
    (encode(Image.new("RGBA", (16, 16), (*RED, 0))), WHITE),
    (encode(Image.new("RGBA", (16, 16), (*RED, 128))), (255, 127, 127)),
    (encode(Image.new("LA", (16, 16), (0, 0))), WHITE),
    (encode(Image.new("RGB", (16, 16), BLUE).quantize(), transparency=0), WHITE),
    (encode(Image.new("RGB", (16, 16), RED), transparency=RED), WHITE),
    (encode(Image.new("RGB", (16, 16), BLUE).quantize()), BLUE),
    (encode(Image.new("1", (16, 16), 1)), WHITE),
    (encode(Image.new("L", (16, 16), 90)), (90, 90, 90)),
    (encode(Image.fromarray(np.full((16, 16), 0x5A01, np.uint16))), (90, 90, 90)),
    (encode(Image.fromarray(np.full((16, 16), 0x5A01, np.uint16)), "TIFF"), (90, 90, 90)),
    (encode(Image.fromarray(np.full((16, 16), 0x5A01, ">u2")), "TIFF"), (90, 90, 90)),
    (encode(Image.fromarray(np.full((16, 16), 0x5A01, np.int32)), "TIFF"), (90, 90, 90)),
    (png(16, 16, 16, 2, (b"\0" + b"\xff\xff\x80\x00\x01\xff" * 16) * 16), (255, 128, 1)),
    (encode(Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "JPEG", quality=100), BLUE),
    (encode(Image.new("RGB", (16, 16), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))]), RED),
  ],
  ids=[
    "transparent", "half transparent", "transparent gray", "transparent palette", "transparent colour", "palette",
    "black and white", "gray", "16-bit gray", "16-bit gray TIFF",
    "16-bit gray TIFF of the other byte order", "16 bits in 32, TIFF", "16-bit RGB", "CMYK", "animated: first frame",
  ],
)  # fmt: skip
def test_every_kind_of_pixel_becomes_what_a_page_shows(encoded, expected):
  np.testing.assert_allclose(decode_image(encoded, 16), np.broadcast_to(expected, (16, 16, 3)), atol=1)


@pytest.mark.parametrize(
  ("pixels", "message"),
  [
    (np.linspace(0, 1, 256, dtype=np.float32), "pixels of floating point"),
    (np.arange(256, dtype=np.int32), "pixels of 32 bits, from 0 to 255"),
    (np.arange(256, dtype=np.int32) * 257 + 1, "pixels of 32 bits, from 1 to 65536"),
    (np.arange(256, dtype=np.int32) * 257 - 1, "pixels of 32 bits, from -1 to 65534"),
  ],
)
def test_numbers_of_which_nobody_knows_what_is_white_are_refused(pixels, message):
  with pytest.raises(MediaError, match=f"broken_image: {message}"):
    decode_image(encode(Image.fromarray(pixels.reshape(16, 16)), "TIFF"), 16)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_as_its_camera_was_held(format):
  lying = Image.new("RGB", (128, 64), BLUE)
  lying.paste(RED, (0, 0, 64, 64))  # red on the left comes to stand at the top
  exif = Image.Exif()
  exif[0x112] = 6
  pixels = decode_image(encode(lying, format, exif=exif), 16).astype(int)
  assert (pixels[:, [0, 15]] == PADDING).all()
  assert np.abs(pixels[2:6, 6:10] - RED).max() < 10
  assert np.abs(pixels[10:14, 6:10] - BLUE).max() < 10


def test_a_large_jpeg_decoded_at_a_fraction_loses_no_detail():
  squares = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8).repeat(3, axis=2)
  large = Image.fromarray(squares).resize((512, 512), Image.Resampling.NEAREST)
  exact = squares.repeat(2, axis=0).repeat(2, axis=1).astype(int)
  fraction, whole = decode_image(encode(large, "JPEG", quality=95), 128), decode_image(encode(large), 128)
  assert np.abs(fraction - exact).mean() <= np.abs(whole - exact).mean() + 2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_broken(picture, format, share):
  encoded = picture(0, format=format)
  with pytest.raises(MediaError) as caught:
    decode_image(encoded[: int(share * len(encoded))], 16)
  assert caught.value.cause == "broken_image"


@pytest.mark.parametrize(
  "encoded", [b"", b"\0" * 100, b"a cat <image>", b"\x89PNG\r\n\x1a\nThis is no picture at all.", b"<svg/>"]
)
def test_what_is_no_picture_is_broken(encoded):
  with pytest.raises(MediaError) as caught:
    decode_image(encoded, 16)
  assert caught.value.cause == "broken_image"


def jpeg_that_claims(width: int, height: int) -> bytes:
  encoded = encode(Image.new("RGB", (16, 16)), "JPEG")
  return encoded.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", height, width), 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [30_000, 7_100])
@pytest.mark.parametrize("claim", [lambda side: png(side, side, 1, 0, b""), lambda side: jpeg_that_claims(side, side)])
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(side, claim):
  """There is nothing behind the header, so decoding would have failed in another way."""
  with pytest.raises(MediaError, match=rf"too_large: .*({side * side}|{side} x {side}) pixels"):
    decode_image(claim(side), 16)


def test_a_picture_that_would_run_a_program_is_not_opened(monkeypatch):
  monkeypatch.setattr("subprocess.Popen", None)  # what Pillow reads PostScript with
  monkeypatch.setattr("subprocess.check_call", None)
  with pytest.raises(MediaError, match=r"broken_image: cannot identify its format$"):
    decode_image(encode(Image.new("RGB", (16, 16)), "EPS"), 16)


def photograph(width: int, height: int) -> Image.Image:
  """Something smooth with edges in it, so that a decoder's rounding stays small."""
  x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
  waves = np.stack([np.sin(x * y), np.cos(x + y), np.sin(3 * x) * (y > 2)], axis=-1)
  return Image.fromarray((127 * waves + 128).astype(np.uint8))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (501, 377), (40, 30), (1023, 765)])
@pytest.mark.parametrize("options", [dict(quality=95), dict(quality=70, progressive=True), dict(subsampling=0)])
def test_a_plain_jpeg_is_what_pillow_makes_of_it(size, options):
  encoded = encode(photograph(*size), "JPEG", **options)
  plain, any_way = read_plain_jpeg(encoded, 120).astype(int), read_any(encoded, 120).astype(int)
  assert plain.shape == any_way.shape
  assert np.abs(plain - any_way).mean() < 2


def test_a_gray_jpeg_is_plain_too():
  encoded = encode(photograph(60, 40).convert("L"), "JPEG")
  np.testing.assert_allclose(read_plain_jpeg(encoded, 60), read_any(encoded, 60), atol=2)


@pytest.mark.parametrize(
  ("size", "least", "shape"),
  [
    ((512, 384), 128, (96, 128)),
    ((512, 384), 250, (192, 256)),
    ((500, 375), 320, (375, 500)),
    ((50, 20), 99, (20, 50)),
  ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_is_decoded_at_the_smallest_fraction_that_has_all_its_pixels(size, least, shape, format):
  read = read_plain_jpeg if format == "JPEG" else read_any
  assert read(encode(photograph(*size), format), least).shape == (*shape, 3)


@pytest.mark.parametrize("make", [lambda image: encode(image.convert("CMYK"), "JPEG"), lambda image: encode(image)])
def test_what_is_not_a_plain_jpeg_is_left_to_pillow(make):
  assert read_plain_jpeg(make(photograph(32, 32)), 32) is None


def test_a_strange_tag_beside_the_orientation_breaks_no_more_than_its_picture():
  exif = Image.Exif()
  exif[0x112], exif[0x10F] = 6, "camera"
  encoded = encode(Image.new("RGB", (16, 16)), "JPEG", exif=exif)
  strange = encoded.replace(b"\x01\x0f\x00\x02", b"\x01\x25\x00\x02")  # text, where the tag's type is a number
  assert strange != encoded
  with pytest.raises(MediaError):
    decode_image(strange, 16)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_damage_gives_pixels_or_a_media_error_and_nothing_else(picture, format):
  encoded, chance = picture(0, 24, 20, format), random.Random(0)
  broken = 0
  for _ in range(300):
    damaged = bytearray(encoded)
    for _ in range(chance.choice((1, 2, 8))):
      damaged[chance.randrange(chance.choice((60, len(damaged))))] = chance.randrange(256)
    try:
      assert decode_image(bytes(damaged), 16).shape == (16, 16, 3)
    except MediaError:
      broken += 1
  assert broken


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), *[st.floats(0, 1, exclude_max=True)] * 2)
@settings(deadline=None)
def test_a_crop_lies_inside_and_is_of_the_same_shape(width, height, side, x, y):
  left, upper, right, lower = Crop(side, x, y).box(width, height)
  assert 0 <= left < right <= width
  assert 0 <= upper < lower <= height
  assert abs((right - left) - side * width) <= 1
  assert abs((lower - upper) - side * height) <= 1


def test_a_cropped_picture_is_that_part_of_it():
  noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
  part = encode(Image.fromarray(noise[20:40, 0:30]))
  pixels = read_image(encode(Image.fromarray(noise)), 16, Crop(0.5, x=0.0, y=0.99))
  np.testing.assert_array_equal(pad(pixels, 16), decode_image(part, 16))


NOISE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
FACTORS = st.floats(0.5, 1.5)


@given(FACTORS, FACTORS, FACTORS)
@settings(deadline=None)
def test_jitter_is_brightness_then_contrast_then_saturation(brightness, contrast, saturation):
  values = NOISE.astype(np.float64) * brightness
  values = values.mean() + (values - values.mean()) * contrast
  gray = values.mean(axis=-1, keepdims=True)
  expected = np.clip(gray + (values - gray) * saturation, 0, 255)
  assert np.abs(jitter(NOISE, brightness, contrast, saturation) - expected).max() <= 1.5  # it rounds its factors


def test_factors_of_one_change_nothing():
  np.testing.assert_array_equal(jitter(NOISE, 1.0, 1.0, 1.0), NOISE)


def test_gray_stays_gray_in_its_order():
  ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
  coloured = jitter(ramp, 0.9, 1.2, 0.6).astype(int)
  assert not np.ptp(coloured, axis=-1).any()
  assert (np.diff(coloured[..., 0].reshape(-1)) >= 0).all()


def test_every_frame_is_flipped_for_itself():
  np.testing.assert_array_equal(flip(NOISE), NOISE[:, :, ::-1])
