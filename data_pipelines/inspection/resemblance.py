"""Which media look like pictures that a model will be evaluated with, as the builders tell it."""

import dataclasses

import numpy as np
from PIL import Image

from data_pipelines.build.filters import PictureRules, judge_picture
from data_pipelines.build.fingerprints import BITS, nearest, perceptual_hash
from data_pipelines.schema import Example
from data_pipelines.stream import Stream

ANYTHING = PictureRules(smallest_side=1, largest_aspect=float("inf"))


@dataclasses.dataclass(frozen=True)
class EvaluationImages:
  """Perceptual hashes, uint64 [N], of pictures that no data may show, and by how many bits a like one may differ."""

  hashes: np.ndarray
  near_bits: int

  def resemblance(self, stream: Stream, example: Example, medium: int) -> str:
    """How near a picture is, or the nearest frame of a video that a stream reads; empty: it is none of them."""
    fewest = min((nearest(hash, self.hashes) for hash in media_hashes(stream, example, medium)), default=BITS + 1)
    return f"{fewest} of {BITS} bits from one of them" if fewest <= self.near_bits else ""


def media_hashes(stream: Stream, example: Example, medium: int) -> list[int]:
  """Of a picture, or of the frames of a video; none of what is all of one colour."""
  if stream.config.medium == "video":
    return [perceptual_hash(Image.fromarray(frame)) for frame in stream.pixels(example, medium)]
  _, hash = judge_picture(example.media[medium], ANYTHING, perceptual_hash)
  return [] if hash is None else [hash]
