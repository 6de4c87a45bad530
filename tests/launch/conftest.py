import dataclasses
import pathlib

import pytest
from colours import COLOURS, plain

from data_pipelines.schema import Example
from data_pipelines.shards import write_shards

HOSTILE = "<script>document.title = 'taken'</script>"
CONFIG = """
from configs import base, tiny

def get_config():
  config = tiny.get_config()
  config.tokenizer.path = {tokenizer!r}
  config.streams = dict(
    pages=base.stream(
      source={folder!r} + "/pages", layout="interleaved", batch_size=4, length=48, media=4, maximum_skipped=0.5
    ),
    captions=base.stream(source={folder!r} + "/captions", layout="pairs", batch_size=2, length=32, media=3, pack=True),
    videos=base.stream(
      source={videos!r}, layout="pairs", medium="video", batch_size=2, length=32, frames=4, frames_per_second=2.0
    ),
  )
  return config
"""


@dataclasses.dataclass(frozen=True)
class SmallData:
  """A config, and the folder of its shards, which hold known faults."""

  config: pathlib.Path
  folder: pathlib.Path

  def shard(self, stream: str) -> str:
    [path] = (self.folder / stream / "train").glob("*.array_record")
    return str(path)


@pytest.fixture(scope="session")
def small_data(quickstart_data, tmp_path_factory) -> SmallData:
  """Pages and captions whose text names the colour of its picture, beside real videos, in the tiny config."""
  folder = tmp_path_factory.mktemp("data")
  three = tuple(plain(colour) for colour in COLOURS)
  pages = [
    Example(("", "this is red", "this is green", "this is blue"), three, "pages/0", "CC0"),
    Example(("", "this is red", "this is green"), (three[0], three[1][:60]), "pages/1", "CC0"),  # one is cut off
    Example(("red, blue, green at once", "", "", "the end"), three, "pages/2", "CC0"),  # one is dead
    Example(("", f"this is red {HOSTILE}"), three[:1], "pages/3", "CC0"),
  ]
  captions = [Example(("", f"this is {colour}"), (plain(colour),), f"captions/{colour}", "CC0") for colour in COLOURS]
  for name, examples in dict(pages=pages, captions=captions).items():
    for split in ("train", "heldout"):
      write_shards(folder / name / split, examples, {}, name=name)
  config = folder / "config.py"
  videos, tokenizer = str(quickstart_data / "streams" / "videos"), str(quickstart_data / "language_model")
  config.write_text(CONFIG.format(folder=str(folder), videos=videos, tokenizer=tokenizer))
  return SmallData(config, folder)
