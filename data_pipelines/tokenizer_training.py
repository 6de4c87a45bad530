"""A tokenizer of one's own: a SentencePiece unigram model that falls back to bytes, as Chinchilla's (Hoffmann et al.,
2022, section 4.1), learnt from the texts of shards or of plain files."""

import io
import pathlib
import re
from collections.abc import Iterable, Iterator

import sentencepiece
import tokenizers
from tokenizers import decoders, models

from data_pipelines.schema import parse
from data_pipelines.sequences import document_text
from data_pipelines.shards import MANIFEST, open_shards
from flamingo_jax.errors import UserError

BEGIN, END, UNKNOWN = "<begin of text>", "<end of text>", "<unknown text>"  # ids 0, 1, and 2, which nothing becomes
# Those marks, and the bytes, called <0x0A>, are tokens like others to the library that encodes. So that no text
# becomes one by reading like its name, they are less likely than all letters of the names, which are always tokens.
LETTERS = "".join(sorted({*BEGIN, *END, *UNKNOWN, *"<0123456789ABCDEFx>"} - {" "}))
NEVER = -1e4  # log-likelihood
SPACE = "\u2581"  # SentencePiece's letter for one
LONGEST = 1000  # characters of a sentence: SentencePiece leaves those out that have more than 4,192 bytes
THREADS = 16  # SentencePiece adds up in parts of their number, and what is learnt is not to depend on the machine
AT_ONCE = 2**20  # characters of a plain file


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
  """A unigram model of texts, for the library that encodes; arguments and errors as of `learn`."""
  return unigram(learn(texts, vocabulary))


def learn(texts: Iterable[str], vocabulary: int) -> sentencepiece.SentencePieceProcessor:
  """Learns a unigram model.

  Text is not normalized, and digits are tokens of their own. A letter that is no token is its bytes.

  Args:
    texts: what is counted, in sentences of LONGEST characters; all are held in memory.
    vocabulary: tokens, with three marks and 256 bytes.

  Raises:
    UserError: there is too little text for so many tokens, or so few cannot be.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences(texts)),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocabulary,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      byte_fallback=True,
      required_chars=LETTERS,
      bos_id=0,
      eos_id=1,
      unk_id=2,
      pad_id=-1,
      bos_piece=BEGIN,
      eos_piece=END,
      unk_piece=UNKNOWN,
      num_threads=THREADS,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(refusal(str(error), vocabulary)) from error
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentences(texts: Iterable[str]) -> Iterator[str]:
  """Texts in parts of at most LONGEST characters."""
  return (text[start : start + LONGEST] for text in texts for start in range(0, len(text), LONGEST))


def refusal(told: str, vocabulary: int) -> str:
  """What SentencePiece says of a number of tokens that cannot be, as a user of ours reads it."""
  if found := re.search(r"set it to a value <= (\d+)", told):
    return f"--vocabulary is {vocabulary}, but the text gives {found[1]} tokens. Choose that or less, or more text."
  if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", told):
    return f"--vocabulary is {vocabulary}; marks, bytes and the letters of the text alone take {found[1]}. Choose more."
  return f"--input: SentencePiece learns nothing from it: {told}"


def unigram(model: sentencepiece.SentencePieceProcessor) -> tokenizers.Tokenizer:
  """A SentencePiece model for the library that encodes; a space is a space."""

  def entry(number: int) -> tuple[str, float]:
    if model.is_byte(number) or model.is_control(number) or model.is_unknown(number):
      return model.id_to_piece(number), NEVER
    return model.id_to_piece(number).replace(SPACE, " "), model.get_score(number)

  entries = [entry(number) for number in range(model.get_piece_size())]
  made = tokenizers.Tokenizer(models.Unigram(entries, unk_id=model.unk_id(), byte_fallback=True))
  made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
  return made


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
