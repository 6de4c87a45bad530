import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines.build.fingerprints import distance, folder_hashes, near_keys, nearest, perceptual_hash
from flamingo_jax.errors import UserError

HASHES = st.integers(0, 2**64 - 1)


def blurred(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
  """A picture of soft patches, as unlike another seed's as two photographs are."""
  patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def again(picture: Image.Image, format: str, **options) -> Image.Image:
  file = io.BytesIO()
  picture.save(file, format, **options)
  return Image.open(file)


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_keeps_its_hash_in_another_size_or_encoding(seed):
  picture = blurred(seed)
  hash = perceptual_hash(picture)
  likes = [
    again(picture, "JPEG", quality=40),
    again(picture, "WEBP", quality=50),
    picture.resize((640, 480), Image.Resampling.BICUBIC),
    picture.resize((100, 75), Image.Resampling.LANCZOS),
    Image.merge("RGBA", (*picture.split(), Image.new("L", picture.size, 255))),
  ]
  assert max(distance(hash, perceptual_hash(like)) for like in likes) <= 4


def test_other_pictures_have_other_hashes():
  hashes = [perceptual_hash(blurred(seed)) for seed in range(30)]
  assert min(distance(one, other) for at, one in enumerate(hashes) for other in hashes[:at]) > 8
  assert distance(hashes[0], perceptual_hash(ImageOps.mirror(blurred(0)))) > 8


def test_a_turned_picture_is_seen_upright():
  picture, exif = blurred(0), Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees when it is shown
  turned = again(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
  assert distance(perceptual_hash(picture), perceptual_hash(turned)) <= 4


@given(
  HASHES, st.integers(0, 16).flatmap(lambda bits: st.tuples(st.just(bits), st.sets(st.integers(0, 63), max_size=bits)))
)
def test_near_hashes_share_a_key(hash, case):
  bits, flipped = case
  other = hash ^ sum(1 << bit for bit in flipped)
  assert set(near_keys(hash, bits)) & set(near_keys(other, bits))


def test_keys_tell_most_hashes_apart():
  hashes = [int(hash) for hash in np.random.default_rng(0).integers(0, 2**64, 200, np.uint64)]
  keys = [set(near_keys(hash, 4)) for hash in hashes]
  assert sum(bool(one & other) for at, one in enumerate(keys) for other in keys[:at]) < 5


@given(HASHES, st.lists(HASHES, max_size=5))
def test_the_nearest_is_found(hash, known):
  expected = min((f"{hash ^ other:b}".count("1") for other in known), default=65)
  assert nearest(hash, np.array(known, np.uint64)) == expected


def test_a_folder_of_pictures_has_hashes_whatever_else_lies_there(tmp_path):
  (tmp_path / "inner").mkdir()
  blurred(1).save(tmp_path / "a.png")
  blurred(1).save(tmp_path / "inner" / "b.PNG")
  blurred(2, (30, 20)).save(tmp_path / "inner" / "small.png")
  (tmp_path / "notes.txt").write_text("no picture")
  (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
  assert list(folder_hashes(tmp_path)) == sorted([perceptual_hash(blurred(1)), perceptual_hash(blurred(2, (30, 20)))])


def test_every_file_of_a_folder_is_tried_whatever_its_name(tmp_path):
  folder = tmp_path / "v1.0"
  folder.mkdir()
  for number, name in enumerate(["0000001", ".hidden", "c.dat"]):
    blurred(number).save(folder / name, "PNG")
  (folder / "README").write_text("no picture")
  (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
  (folder / "empty").touch()
  assert list(folder_hashes(tmp_path)) == sorted(perceptual_hash(blurred(number)) for number in range(3))


def test_a_jpeg_with_a_second_picture_behind_it_has_the_hash_of_its_first(tmp_path, phone_picture):
  (tmp_path / "phone.jpg").write_bytes(phone_picture)
  first = simplejpeg.decode_jpeg(phone_picture)  # which knows of no second one
  assert [distance(int(hash), perceptual_hash(Image.fromarray(first))) for hash in folder_hashes(tmp_path)] == [0]


def test_a_folder_without_pictures_is_refused(tmp_path):
  with pytest.raises(UserError, match="holds no picture"):
    folder_hashes(tmp_path)
