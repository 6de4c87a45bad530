"""`flamingo data miniature`: what the configs of configs/miniature read."""

import pathlib

from data_pipelines.build.miniature import VOCABULARY, prepare
from launch.importing import TOKENIZER
from launch.tokenizer import write_tokenizer


def prepare_miniature(out: str) -> None:
  """Builds streams, benchmarks and the tokenizer that is learnt from their text; what is there stays.

  Raises:
    UserError: something cannot be fetched, read or written.
  """
  folder = pathlib.Path(out)
  prepare(folder)
  if not (folder / "tokenizer" / TOKENIZER).exists():
    print(write_tokenizer(str(folder / "text" / "train"), VOCABULARY, str(folder / "tokenizer")))
