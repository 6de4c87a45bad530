"""`flamingo import`: a foreign checkpoint to a model folder."""

import dataclasses
import pathlib
import shutil
import tempfile

import tokenizers

from data_pipelines.tokenizer import save_bpe
from flamingo_jax.errors import UserError
from flamingo_jax.interop.descriptions import reading
from flamingo_jax.interop.flamingo_rules import OpenFlamingoSettings, openflamingo_settings
from flamingo_jax.interop.gguf import GgufModel
from flamingo_jax.interop.importing import FORMATS, Source, open_open_flamingo
from flamingo_jax.interop.json_files import read_object
from flamingo_jax.interop.model_folder import DESCRIPTION, TOKENIZER, check_replaceable, publish, save_tensors


def import_checkpoint(
  form: str, path: str, out: str, *, language: str | None = None, vision: str | None = None
) -> pathlib.Path:
  """Writes weights, config and, for language models, the tokenizer; `out` appears only when all of it is there.

  Args:
    form: one of FORMATS, or "openflamingo".
    path: of the checkpoint: a file, or a folder as it was published.
    out: the model folder; one that an import wrote is replaced, and nothing else.
    language: for OpenFlamingo, the language model it was built on.
    vision: for OpenFlamingo, the vision encoder it was built on.

  Raises:
    UserError: something is missing, damaged, or of an architecture that is not known, or `out` holds something else.
  """
  source_path, out_path = existing(path), pathlib.Path(out)
  check_apart(out_path, {"--path": path, "--language": language, "--vision": vision})
  check_replaceable(out_path)
  if form != "openflamingo" and (language or vision):
    raise UserError("--language and --vision say what an OpenFlamingo was built on; other checkpoints need none.")
  if form == "openflamingo":
    source = open_built_on(source_path, language, vision)
    tokenizer_folder = existing(language)
  else:
    source = FORMATS[form](source_path)
    tokenizer_folder = source_path if source_path.is_dir() else source_path.parent
  out_path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=f".{out_path.name}-") as unfinished:
    folder = pathlib.Path(unfinished) / "model"
    folder.mkdir()
    about = dict(kind=source.kind, family=source.family, config=dataclasses.asdict(source.config)) | source.ids
    save_tensors(
      folder, source.tensors, source.rules, source.ignored, about | dict(origin=source_path.name), source.origin
    )
    save_tokenizer(source, folder, tokenizer_folder)
    publish(folder, out_path, check_replaceable)
  return out_path


def existing(path: str) -> pathlib.Path:
  if not pathlib.Path(path).exists():
    raise UserError(f"{path}: no such file or folder.")
  return pathlib.Path(path)


def check_apart(out: pathlib.Path, inputs: dict[str, str | None]) -> None:
  """Raises UserError where replacing the folder `out` would delete an input, by its option."""
  for option, given in inputs.items():
    found = pathlib.Path(given).resolve() if given else None
    if found and out.resolve() in (found, *found.parents):
      raise UserError(f"--out is {out}, which holds {option}, {given}; it would be deleted. Choose another.")


def open_built_on(path: pathlib.Path, language: str | None, vision: str | None) -> Source:
  """An OpenFlamingo with the models it was built on.

  What no shape tells is taken from the config.json that `flamingo export` writes beside its checkpoint.pt; where there
  is none, it is what upstream makes of the language model's tokenizer.

  Raises:
    UserError: something of it is missing, or the rows of the token table are not those expected.
  """
  if not language:
    raise UserError("--language is missing: the folder of the language model that the OpenFlamingo was built on.")
  folder, tower = existing(language), existing(vision) if vision else None
  where = (path if path.is_dir() else path.parent) / DESCRIPTION
  described = read_object(where) if where.is_file() else {}
  if "added_tokens" not in described:
    source = open_open_flamingo(path, folder, tower, OpenFlamingoSettings(added=added_tokens(folder)))
    check_rows(source, path, folder)
    return source
  with reading(where):
    settings = openflamingo_settings(described, where)
  source = open_open_flamingo(path, folder, tower, settings)
  rows = source.config.language.vocabulary + settings.added
  if described["rows"] != rows:
    raise UserError(
      f"{where}: rows is {described['rows']}, but the token table in {path} has {rows}. Are both of one export?"
    )
  return source


def added_tokens(language: pathlib.Path) -> int:
  """OpenFlamingo adds <|endofchunk|> and <image>, and <PAD> where the tokenizer has no token for padding."""
  files = [language / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
  return 2 if any(read_object(where).get("pad_token") for where in files if where.is_file()) else 3


def check_rows(source: Source, path: pathlib.Path, language: pathlib.Path) -> None:
  """Raises UserError where the token table has not as many rows as upstream gives it: one a token."""
  if not (language / TOKENIZER).is_file():
    return
  tokens, decoder = read_tokenizer(language / TOKENIZER).get_vocab_size(with_added_tokens=True), source.config.language
  if decoder.vocabulary != tokens:
    added, rows = decoder.extra_tokens, decoder.vocabulary + decoder.extra_tokens
    pad = "no" if added == 3 else "a"
    raise UserError(
      f"{path}: its token table has {rows} rows. {language / TOKENIZER} has {tokens} tokens, and with {pad} token for "
      f"padding in its tokenizer_config.json and special_tokens_map.json OpenFlamingo adds {added}, which makes "
      f"{tokens + added}. Complete these files, or put the {DESCRIPTION} of the export beside the checkpoint."
    )


def save_tokenizer(source: Source, folder: pathlib.Path, found: pathlib.Path) -> None:
  """A language model's tokenizer goes with it, if there is one."""
  if isinstance(source.tensors, GgufModel):
    save_bpe(folder, **source.tensors.tokenizer())
  elif source.kind != "vision" and (found / TOKENIZER).is_file():
    read_tokenizer(found / TOKENIZER)
    shutil.copyfile(found / TOKENIZER, folder / TOKENIZER)


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """A tokenizer.json. Raises UserError when it is none."""
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises nothing more precise
    raise UserError(f"{path}: not a tokenizer ({error}).") from error
