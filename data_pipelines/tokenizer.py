"""Text to tokens and back: a tokenizer.json plus the two tokens that Flamingo adds, `<image>` and `<EOC>`."""

import hashlib
import pathlib
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from flamingo_jax.errors import UserError

PRE_TOKENIZERS = {  # the name a GGUF file gives -> what splits text before BPE
  "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


class Tokenizer:
  """A tokenizer whose special tokens are ids only: no text, however it reads, encodes to one of them.

  Attributes:
    vocabulary: the rows of the language model's own token table, which may have more than the tokenizer has tokens.
    image: id of the `<image>` token, the first id after the vocabulary.
    end_of_chunk: id of `<EOC>`, the second.
    size: of the vocabulary and the added tokens together.
    bos, eos: ids that begin and end a document. A GPT-2 style model knows one token for both.
  """

  def __init__(self, backend: tokenizers.Tokenizer, vocabulary: int, bos: int, eos: int):
    backend.encode_special_tokens = True  # as the letters they are written in, should a text name one
    self.backend, self.vocabulary = backend, vocabulary
    self.image, self.end_of_chunk = self.vocabulary, self.vocabulary + 1
    self.size = self.vocabulary + 2
    self.bos, self.eos = bos, eos

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in parallel."""
    return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

  def fingerprint(self) -> str:
    """SHA-256 of all that decides how a text is encoded."""
    return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

  def decode(self, tokens: Sequence[int]) -> str:
    """Text of the ordinary tokens among `tokens`; special ones are left out."""
    special = {self.bos, self.eos, self.image, self.end_of_chunk}
    return self.backend.decode([int(token) for token in tokens if int(token) not in special], skip_special_tokens=False)

  def pieces(self, tokens: Sequence[int]) -> list[str]:
    """One string a token, special tokens by name, for people to read."""
    names = {self.image: "<image>", self.end_of_chunk: "<EOC>", self.bos: "<BOS>", self.eos: "<EOS>"}
    pieces = [names.get(int(token)) or self.backend.decode([int(token)]) for token in tokens]
    # One token may stand for both; only at the start does it begin a document.
    return ["<BOS>", *pieces[1:]] if len(tokens) and int(tokens[0]) == self.bos else pieces


def save_bpe(directory: pathlib.Path, vocabulary: list[str], merges: list[str], pre_tokenizer: str) -> None:
  """Writes `tokenizer.json` from the parts that a GGUF file holds.

  Raises:
    UserError: the pre-tokenizer is not one we know, or the parts do not fit together.
  """
  if not isinstance(pre_tokenizer, str) or pre_tokenizer not in PRE_TOKENIZERS:
    known = ", ".join(PRE_TOKENIZERS)
    raise UserError(f"The tokenizer's pre-tokenizer is {pre_tokenizer!r}; known are: {known}.")
  ids = {token: index for index, token in enumerate(vocabulary)}
  pairs = [tuple(merge.split(" ")) for merge in merges]
  try:
    bpe = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
  except Exception as error:  # the library raises nothing more precise
    raise UserError(f"The tokenizer's merges do not fit its {len(ids)} tokens ({error}).") from error
  bpe.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre_tokenizer])
  bpe.decoder = decoders.ByteLevel()
  bpe.save(str(directory / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
  """Every byte a token: for texts of which only is asked whether there is any."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  bpe = tokenizers.Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(["", *alphabet])}, merges=[]))
  bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  return Tokenizer(bpe, 1 + len(alphabet), 0, 0)


def load_tokenizer(
  directory: str | pathlib.Path, bos: int = 0, eos: int = 0, vocabulary: int | None = None
) -> Tokenizer:
  """Opens `directory/tokenizer.json`.

  Args:
    directory: a model folder.
    bos: the id that begins a document.
    eos: the id that ends one.
    vocabulary: the rows of the model's token table; None: as many as the tokenizer has tokens.

  Raises:
    UserError: the file is missing or is not a tokenizer, has more tokens than the model has rows, or `bos` or `eos` is
      none of them.
  """
  path = pathlib.Path(directory) / "tokenizer.json"
  if not path.is_file():
    raise UserError(f"{path}: no tokenizer there. `flamingo import` writes one beside an imported language model.")
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises nothing more precise
    raise UserError(f"{path}: not a tokenizer ({error}).") from error
  tokens = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
  if vocabulary is not None and vocabulary < tokens:
    raise UserError(f"{path}: has {tokens} tokens, but the model has {vocabulary} rows for them.")
  rows = tokens if vocabulary is None else vocabulary
  for name, number in (("bos", bos), ("eos", eos)):
    if not 0 <= number < rows:
      raise UserError(f"{path}: {name} is {number}, but tokens are 0 to {rows - 1}. Set tokenizer.{name}.")
  return Tokenizer(backend, rows, bos, eos)
