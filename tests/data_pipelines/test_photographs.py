import collections
import hashlib
import zipfile

import pytest

from data_pipelines.build.photographs import photograph_pairs
from flamingo_jax.errors import UserError

MODULE = '''
raise RuntimeError("this must never run")

def _load(f, as_gray=False):
  """Load an image file located in the data directory."""
  return imread(_fetch(f))

def coins():
  """Greek coins
  from Pompeii

  This image shows several coins outlined against a gray background. It is
  especially useful in tests.

  Returns
  -------
  coins : ndarray

  This image shows nothing of the caption.

  Notes
  -----
  No copyright restrictions. CC0 by the photographer.
  """
  return _load("data/coins.png", as_gray=True)

def camera():
  """Gray-level "camera" image."""
  return _load("data/camera.png")

def eagle():
  """A golden eagle. Released into the public domain."""
  return _load("data/eagle.png")

def undocumented():
  return _load("data/coins.png")

def broken():
  """Broken."""
  return _load("data/broken.png")
'''


@pytest.fixture
def wheel(tmp_path, picture):
  path = tmp_path / "scikit_image-1-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("skimage/data/_fetchers.py", MODULE)
    archive.writestr("skimage/data/coins.png", picture(1))
    archive.writestr("skimage/data/camera.png", picture(2))
    archive.writestr("skimage/data/broken.png", picture(3)[:999])
  return path


def test_descriptions_become_captions(wheel, picture):
  counts = collections.Counter()
  found = {file: (digest, example) for file, digest, example in photograph_pairs(wheel, counts)}
  assert list(found) == ["coins.png", "camera.png"]
  digest, coins = found["coins.png"]
  assert coins.texts == (
    "",
    "Greek coins from Pompeii. This image shows several coins outlined against a gray background.",
  )
  assert (coins.media, digest) == ((picture(1),), hashlib.sha256(picture(1)).hexdigest())
  assert (coins.source, coins.license) == ("scikit-image/coins.png", "CC0-1.0")
  assert "photographer" in found["camera.png"][1].texts[1]  # the docstring does not say what is seen; our table does
  assert found["camera.png"][1].license == "BSD-3-Clause"
  assert counts == {"not_in_wheel": 1, "broken": 1}


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_a_file_that_is_no_wheel_is_a_user_error(tmp_path, content):
  (tmp_path / "x.whl").write_bytes(content)
  with pytest.raises(UserError, match="not a readable scikit-image wheel"):
    list(photograph_pairs(tmp_path / "x.whl", collections.Counter()))


def test_a_wheel_of_something_else_is_a_user_error(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
    archive.writestr("other/module.py", "")
  with pytest.raises(UserError, match="_fetchers"):
    list(photograph_pairs(tmp_path / "x.whl", collections.Counter()))
