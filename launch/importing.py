"""`flamingo import`: a foreign checkpoint to a model folder."""

import pathlib
import tempfile

from data_pipelines.tokenizer import save_bpe
from flamingo_jax.errors import UserError
from flamingo_jax.interop.gguf import GgufModel
from flamingo_jax.interop.model_folder import publish, save_model


def import_gguf(path: str | pathlib.Path, out: str | pathlib.Path) -> None:
  """Writes weights, config and tokenizer of a GGUF file; `out` appears only when all of it is there.

  Raises:
    UserError: the file is missing or not a Llama-architecture GGUF.
  """
  path, out = pathlib.Path(path), pathlib.Path(out)
  if not path.is_file():
    raise UserError(f"{path}: no such file.")
  model = GgufModel(path)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
    folder = pathlib.Path(unfinished) / "model"
    folder.mkdir()
    save_model(folder, model.parameters(), model.config(), origin=path.name)
    save_bpe(folder, **model.tokenizer())
    publish(folder, out)
