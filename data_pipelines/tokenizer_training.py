"""A tokenizer of one's own: a byte-level BPE, learnt from the texts of shards or of plain files.

The library's Unigram trainer adds up numbers in the order of a hash table, which is another in each process: two runs
on one text differ. BPE only counts, so that the same texts give the same file.
"""

import pathlib
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines.schema import parse
from data_pipelines.sequences import document_text
from data_pipelines.shards import MANIFEST, open_shards
from data_pipelines.tokenizer import PRE_TOKENIZERS
from flamingo_jax.errors import UserError

# Ids 0 and 1. With their spaces, which stand for themselves in no token of a byte-level BPE, nothing that is learnt can
# come to have these names.
BEGIN, END = "<begin of text>", "<end of text>"
FEWEST = 2 + len(pre_tokenizers.ByteLevel.alphabet())
LEAST_OFTEN = 2  # a pair that occurs once is not worth a token
AT_ONCE = 2**20  # characters of a plain file


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
  """Learns a BPE whose 256 bytes are tokens themselves, so that there is none for what is unknown.

  Text is not normalized, and digits are tokens of their own.

  Args:
    texts: what is counted; each is read once, and pairs are not counted across two of them.
    vocabulary: tokens, with BEGIN (0) and END (1).

  Raises:
    UserError: there is too little text for so many tokens, or so few cannot be.
  """
  if vocabulary < FEWEST:
    raise UserError(f"--vocabulary is {vocabulary}; bytes, begin and end of a text alone take {FEWEST}.")
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS["smollm"])
  bpe.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary,
    special_tokens=[BEGIN, END],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    min_frequency=LEAST_OFTEN,
    show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  found = bpe.get_vocab_size()
  if found < vocabulary:
    raise UserError(
      f"--vocabulary is {vocabulary}, but the text gives {found} tokens. Choose that or less, or more text."
    )
  return bpe


def texts_of(path: pathlib.Path) -> Iterator[str]:
  """The texts of a folder of shards, of a stream's training shards, or of plain files (.txt, UTF-8), in their order.

  Raises:
    UserError: there are none, or one cannot be read.
  """
  for folder in (path, path / "train"):
    if (folder / MANIFEST).is_file():
      return record_texts(folder)
  files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
  if not files:
    raise UserError(f"{path}: neither a folder of shards (with {MANIFEST}, or train/{MANIFEST}) nor one of .txt files.")
  return (text for file in files for text in file_texts(file))


def record_texts(folder: pathlib.Path) -> Iterator[str]:
  shards = open_shards(folder)
  for index in range(len(shards)):
    try:
      yield document_text(parse(shards[index]).texts)
    except UserError as error:
      raise UserError("{}, record {}: {}".format(*shards.where(index), error)) from error


def file_texts(file: pathlib.Path) -> Iterator[str]:
  """Whole lines of a file, many at once, so that it need not fit into memory."""
  try:
    with file.open(encoding="utf-8", newline="") as lines:
      while some := lines.readlines(AT_ONCE):
        yield "".join(some)
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{file} cannot be read as UTF-8 text: {error}.") from error
