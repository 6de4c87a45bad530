"""`flamingo data train-tokenizer`: a tokenizer.json for a language model that is trained from scratch."""

import pathlib
import uuid

from data_pipelines.tokenizer_training import texts_of, train_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import TOKENIZER


def write_tokenizer(source: str, vocabulary: int, out: str) -> str:
  """Learns a tokenizer from shards or plain files and writes it into a folder.

  Returns:
    How a config names it.

  Raises:
    UserError: the text is not as it should be, or the folder has a tokenizer already.
  """
  folder = pathlib.Path(out)
  path = folder / TOKENIZER
  if path.exists():
    raise UserError(f"{path} is there already; models may have been trained with it. Choose another --out.")
  learnt = train_tokenizer(texts_of(pathlib.Path(source)), vocabulary)
  partial = folder / f".{TOKENIZER}.partial-{uuid.uuid4().hex[:8]}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    learnt.save(str(partial))
    partial.replace(path)
  except Exception as error:  # the library raises nothing more precise
    partial.unlink(missing_ok=True)
    raise UserError(f"{path} cannot be written: {error}") from error
  return f"{path}: {vocabulary} tokens. In a config: config.tokenizer = dict(path={out!r}, bos=0, eos=1)"
