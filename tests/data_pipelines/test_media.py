import io
import random
import struct
import wave
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.media import PADDING, Crop, MediaError, decode_clip, decode_image, decode_video, jitter

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
    (png(16, 16, 16, 2, (b"\0" + b"\xff\xff\x80\x00\x01\xff" * 16) * 16), (255, 128, 1)),
    (encode(Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "JPEG", quality=100), BLUE),
    (encode(Image.new("RGB", (16, 16), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))]), RED),
  ],
  ids=[
    "transparent", "half transparent", "transparent gray", "transparent palette", "transparent colour", "palette",
    "black and white", "gray", "16-bit gray", "16-bit gray TIFF", "16-bit RGB", "CMYK", "animated: first frame",
  ],
)  # fmt: skip
def test_every_kind_of_pixel_becomes_what_a_page_shows(encoded, expected):
  np.testing.assert_allclose(decode_image(encoded, 16), np.broadcast_to(expected, (16, 16, 3)), atol=1)


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [30_000, 7_100])
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(side):
  """There is nothing behind the header, so decoding would have failed in another way."""
  with pytest.raises(MediaError, match=rf"broken_image: .*({side * side}|{side} x {side}) pixels"):
    decode_image(png(side, side, 1, 0, b""), 16)


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
  pixels = decode_image(encode(Image.fromarray(noise)), 16, Crop(0.5, x=0.0, y=0.99))
  np.testing.assert_array_equal(pixels, decode_image(part, 16))


@pytest.fixture(scope="module")
def stairs(encode_film):
  """Three seconds, 10 frames each: frame i is gray of level 8 i."""
  return encode_film([Image.new("RGB", (32, 32), (8 * i,) * 3) for i in range(30)])


def clip(encoded, *, frames, per_second, span=(0.0, np.inf), start=0.0):
  return decode_clip(encoded, 16, frames=frames, per_second=per_second, span=span, start=start)


def frame_numbers(pictures: np.ndarray) -> list[int]:
  return np.rint(pictures.mean(axis=(1, 2, 3)) / 8).astype(int).tolist()


@pytest.mark.parametrize(
  ("sampling", "numbers"),
  [
    (dict(frames=8, per_second=10), [0, 1, 2, 3, 4, 5, 6, 7]),
    (dict(frames=3, per_second=1), [0, 10, 20]),
    (dict(frames=6, per_second=2), [0, 5, 10, 15, 20, 25]),
    (dict(frames=3, per_second=2, start=1 / 1.9), [10, 15, 20]),
    (dict(frames=3, per_second=2, start=0.9999), [19, 24, 29]),
    (dict(frames=4, per_second=5, span=(1.0, 2.0)), [10, 12, 14, 16]),
    (dict(frames=2, per_second=5, span=(1.0, 2.0), start=0.9999), [17, 19]),
  ],
)
def test_frames_are_drawn_at_the_rate_that_was_asked_for(stairs, sampling, numbers):
  pictures, exists = clip(stairs, **sampling)
  assert frame_numbers(pictures) == numbers
  assert exists.all()


def test_a_clip_too_short_is_masked_and_not_repeated(stairs):
  pictures, exists = clip(stairs, frames=8, per_second=2.5, span=(0.0, 1.0))
  assert exists.tolist() == [True] * 3 + [False] * 5
  assert frame_numbers(pictures[:3]) == [0, 4, 8]
  assert not pictures[3:].any()


def test_a_mask_does_not_reach_the_next_reading_of_the_same_film(stairs):
  clip(stairs, frames=8, per_second=2.5, span=(0.5, 1.0))
  pictures, exists = clip(stairs, frames=8, per_second=2.5)
  assert exists.all()
  assert frame_numbers(pictures)[:3] == [0, 4, 8]


@given(
  st.integers(1, 12),
  st.floats(0.5, 20),
  st.tuples(st.floats(0, 2.8), st.floats(0.2, 3)),
  st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_no_frame_is_drawn_from_outside_the_span(stairs, frames, per_second, begin_and_seconds, start):
  begin, seconds = begin_and_seconds
  pictures, exists = clip(stairs, frames=frames, per_second=per_second, span=(begin, begin + seconds), start=start)
  numbers = frame_numbers(pictures[exists])
  assert exists[0]
  assert exists.tolist() == sorted(exists.tolist(), reverse=True)
  assert not pictures[~exists].any()
  assert all(begin <= number / 10 < begin + seconds for number in numbers)
  assert numbers == sorted(numbers)
  steps = np.diff(numbers[:-1])  # the last that exists may be the nearest to a time that lies just after the end
  assert (np.abs(steps - 10 / per_second) <= 1 + 1e-6).all()


def test_frames_keep_their_aspect(encode_film):
  pictures, _ = clip(encode_film([Image.new("RGB", (64, 32), "white")] * 2), frames=1, per_second=1)
  assert (pictures[0, :4] == PADDING).all()
  assert (pictures[0, 12:] == PADDING).all()
  assert pictures[0, 4:12].min() > 250


def test_a_span_without_a_frame_is_told_by_name(stairs):
  with pytest.raises(MediaError, match=r"no frame between 3\.50 and inf s of 2\.90 s") as caught:
    clip(stairs, frames=2, per_second=1, span=(3.5, np.inf))
  assert caught.value.cause == "empty_video"


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_film_that_was_cut_off_is_broken(film, faststart, share):
  encoded = film(faststart)
  with pytest.raises(MediaError) as caught:
    decode_video(encoded[: int(share * len(encoded))], 16)
  assert caught.value.cause == "broken_video"


def sound() -> bytes:
  file = io.BytesIO()
  with wave.open(file, "wb") as writer:
    writer.setnchannels(1)
    writer.setsampwidth(2)
    writer.setframerate(8000)
    writer.writeframes(bytes(16000))
  return file.getvalue()


@pytest.mark.parametrize("encoded", [b"", bytes(1000), b"not a film" * 100, sound()])
def test_what_is_no_film_is_broken(encoded):
  with pytest.raises(MediaError) as caught:
    clip(encoded, frames=2, per_second=1)
  assert caught.value.cause == "broken_video"


NOISE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_jitter_of_no_strength_changes_nothing():
  np.testing.assert_array_equal(jitter(NOISE, 0.0, np.random.default_rng(0)), NOISE)


@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_the_same_for_all_frames(seed):
  still = np.repeat(NOISE[:1], 3, axis=0)
  coloured = jitter(still, 0.5, np.random.default_rng(seed))
  np.testing.assert_array_equal(coloured, np.repeat(coloured[:1], 3, axis=0))
  assert (coloured != still).any()


@pytest.mark.parametrize("seed", range(5))
def test_jitter_leaves_gray_gray_and_keeps_its_order(seed):
  ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
  coloured = jitter(ramp, 0.5, np.random.default_rng(seed)).astype(int)
  assert np.ptp(coloured, axis=-1).max() <= 1
  assert (np.diff(coloured[..., 0].reshape(-1)) >= 0).all()
