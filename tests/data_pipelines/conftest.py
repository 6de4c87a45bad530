import io
import random

import av
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
  """Makes the bytes of a picture of noise; another seed, another picture."""

  def make(seed: int = 0, width: int = 80, height: int = 70, format: str = "PNG") -> bytes:
    noise = random.Random(seed).randbytes(3 * width * height)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(file, format)
    return file.getvalue()

  return make


@pytest.fixture(scope="session")
def film(tmp_path_factory):
  """Makes the bytes of an MP4 of 30 frames, 10 a second."""

  def make(faststart: bool = True) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(path, "w", options={"movflags": "faststart"} if faststart else {}) as container:
      stream = container.add_stream("mpeg4", rate=10)
      stream.width, stream.height = 64, 64
      noise = random.Random(0)
      for _ in range(30):
        frame = av.VideoFrame.from_image(Image.frombytes("RGB", (64, 64), noise.randbytes(3 * 64 * 64)))
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
    return path.read_bytes()

  return make
