"""Perceptual hashes: pictures that look alike have hashes of few different bits, whatever their size or encoding."""

import itertools
import pathlib
from collections.abc import Iterator

import imagehash
import numpy as np
from PIL import Image, ImageOps

from data_pipelines.build.filters import PictureRules, judge_picture
from data_pipelines.media import flatten
from flamingo_jax.errors import UserError

BITS = 64
_SIDE = 128  # pixels at least that a picture is reduced to before it is hashed; large ones cost less so


def perceptual_hash(picture: Image.Image) -> int:
  """The 64-bit pHash (DCT) of a decoded picture as a reader sees it: upright, and on white where it is transparent."""
  picture = picture.reduce(max(min(picture.size) // _SIDE, 1)) if picture.mode in ("RGB", "L") else picture
  bits = imagehash.phash(flatten(ImageOps.exif_transpose(picture))).hash.flatten()
  return int.from_bytes(np.packbits(bits).tobytes())


def near_keys(hash: int, bits: int) -> Iterator[bytes]:
  """Keys of a hash such that any two hashes with at most `bits` different bits share one.

  The hash is cut into `bits` + 2 blocks. As at most `bits` of them can differ, two are equal: each pair of blocks, with
  its place, is a key.
  """
  blocks = bits + 2
  edges = [block * BITS // blocks for block in range(blocks + 1)]
  parts = [(hash >> low) & ((1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
  for first, second in itertools.combinations(range(blocks), 2):
    yield b"%d.%d:%x.%x" % (first, second, parts[first], parts[second])


def distance(one: int, other: int) -> int:
  """How many bits differ."""
  return (one ^ other).bit_count()


def nearest(hash: int, known: np.ndarray) -> int:
  """The fewest bits by which any of `known`, uint64 [N], differs from a hash; more than 64 if there are none."""
  return int(np.bitwise_count(known ^ np.uint64(hash)).min(initial=BITS + 1))


def folder_hashes(folder: pathlib.Path) -> np.ndarray:
  """The hashes of all pictures under a folder, of any size, uint64 [N], sorted.

  Every file is tried, whatever its name; one that no build would keep as a picture (`judge_picture`) is passed over.

  Raises UserError when there is no picture.
  """
  anything = PictureRules(smallest_side=1, largest_aspect=float("inf"))
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  verdicts = (judge_picture(path.read_bytes(), anything, perceptual_hash) for path in files)
  hashes = sorted({hash for _, hash in verdicts if hash is not None})
  if not hashes:
    raise UserError(f"{folder} holds no picture; --evaluation-images names a folder of them.")
  return np.asarray(hashes, np.uint64)
