import collections
import io
import random

import av
import pytest
from PIL import Image
from tokenizers import pre_tokenizers

from data_pipelines.faults import decode_faults
from data_pipelines.schema import parse
from data_pipelines.shards import open_shards
from data_pipelines.tokenizer import load_tokenizer, save_bpe


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
def phone_picture(picture):
  """The bytes of a JPEG with a second picture behind it, as phones write it."""
  first, second = (Image.open(io.BytesIO(picture(seed))) for seed in (100, 101))
  file = io.BytesIO()
  first.save(file, "MPO", save_all=True, append_images=[second])
  return file.getvalue()


@pytest.fixture(scope="session")
def encode_film(tmp_path_factory):
  """Makes the bytes of an MP4 of the given pictures, 10 a second."""

  def make(pictures: list[Image.Image], faststart: bool = True) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(path, "w", options={"movflags": "faststart"} if faststart else {}) as container:
      stream = container.add_stream("mpeg4", rate=10, options={"qmin": "1", "qmax": "1"})  # nearly without loss
      stream.width, stream.height = pictures[0].size
      stream.gop_size = 1  # equal pictures give equal frames
      for picture in pictures:
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
      container.mux(stream.encode(None))
    return path.read_bytes()

  return make


@pytest.fixture(scope="session")
def film(encode_film):
  """Makes the bytes of an MP4 of 30 frames of noise, 10 a second."""

  def make(faststart: bool = True) -> bytes:
    noise = random.Random(0)
    pictures = [Image.frombytes("RGB", (64, 64), noise.randbytes(3 * 64 * 64)) for _ in range(30)]
    return encode_film(pictures, faststart)

  return make


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
  """A byte-level BPE with three merges; like a GPT-2's, it has one token of its own to begin and to end a document."""
  folder = tmp_path_factory.mktemp("tokenizer")
  bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
  save_bpe(folder, ["<|endoftext|>", *bytes_, "th", "the", "Ġthe"], ["t h", "th e", "Ġ the"], "gpt-2")
  return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
  return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def faults_of():
  """Counts the faults of a batch by cause."""

  def count(batch) -> dict[str, int]:
    return dict(collections.Counter(fault.cause for row in decode_faults(batch["faults"]) for fault in row))

  return count


@pytest.fixture
def built(tmp_path):
  """Builds shards of an input, and reads them back as training does: (manifest, Examples)."""
  from data_pipelines.build.job import build
  from data_pipelines.build.settings import BuildSettings

  def make(kind: str, input, output=None, workers: int = 1, most_errors: float = 1.0, **settings):
    folder = output or tmp_path / "out"
    settings = BuildSettings(kind, str(input), "mine", **settings)
    manifest = build(settings, folder, workers=workers, most_errors=most_errors)
    shards = open_shards(folder)
    assert len(shards) == manifest["records"]
    return manifest, [parse(shards[index]) for index in range(len(shards))]

  return make
