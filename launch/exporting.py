"""`flamingo export`: the newest checkpoint of a run, made whole, to a folder that other programs read."""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import UserError
from flamingo_jax.interop.exporting import (
  export_forward,
  openflamingo_description,
  openflamingo_faults,
  openflamingo_tensors,
)
from flamingo_jax.interop.model_folder import DESCRIPTION, TOKENIZER, WEIGHTS, content_hash, describe, publish
from flamingo_jax.interop.safetensors_files import TensorWriter, disk_errors
from flamingo_jax.interop.torch_files import import_torch, save_state_dict
from flamingo_jax.models.flamingo import FlamingoConfig, initialize, stacked
from flamingo_jax.models.parameters import flat
from flamingo_jax.training.placing import check_parameters
from flamingo_jax.training.step import is_trainable
from launch.experiment import Experiment
from launch.generate import Trained, open_run, read_trained
from launch.model_card import CARD, make_card, render_card, write_card
from launch.pretrained import is_model_folder

CHECKPOINT, PROGRAM, PARAMETERS = "checkpoint.pt", "model.stablehlo", "parameters.safetensors"
ORBAX = "checkpoint"


@dataclasses.dataclass(frozen=True)
class Source:
  """What is exported.

  Attributes:
    experiment: the run.
    trained: its parameters, as the model takes them.
    family: of its language model, such as "gpt_neox".
    origin: the run and the step, for people.
  """

  experiment: Experiment
  trained: Trained
  family: str
  origin: str


def export_model(workdir: str, form: str, out: str) -> pathlib.Path:
  """Writes the files of a format and the model card; `out` appears only when all of it is there.

  Args:
    workdir: of a `flamingo train` run with a checkpoint.
    form: one of FORMS.
    out: the folder; an export of the same format that is there is replaced.

  Raises:
    UserError: there is no such run or checkpoint, the format cannot hold the model, or `out` holds something else.
  """
  out_path = pathlib.Path(out)
  check_place(out_path, form)
  experiment = open_run(workdir)
  if not isinstance(experiment.model, FlamingoConfig):
    raise UserError(f"{workdir}: holds a {experiment.name} run; what is exported is a flamingo one.")
  if form == "openflamingo":
    check_openflamingo(experiment, workdir, out_path)
  trained = read_trained(experiment, workdir)
  check_parameters(shapes_of(experiment.model), trained.parameters)
  name = pathlib.Path(workdir).absolute().name
  source = Source(experiment, trained, language_family(experiment), redacted(f"{name}, step {trained.step}"))
  card = make_card(form, source.origin, experiment, trained)
  with disk_errors(out_path):
    out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=f".{out_path.name}-") as unfinished:
      folder = pathlib.Path(unfinished) / "export"
      folder.mkdir()
      card |= dict(weights=FORMS[form](source, folder))
      write_card(folder, card, render_card(card, experiment.model))
      publish(folder, out_path, functools.partial(check_place, form=form))
  return out_path


def check_place(out: pathlib.Path, form: str) -> None:
  """Raises UserError where something is that an export would not replace."""
  if not out.exists():
    return
  if not out.is_dir():
    raise UserError(f"{out}: is a file; --out names a folder.")
  if any(out.iterdir()) and format_of(out) != form:
    found = format_of(out)
    what = f"an export to {found}" if found else f"no export (no {CARD} of one)"
    raise UserError(f"{out}: not empty, and {what}; an export replaces only one of its own format. Choose another.")


def format_of(folder: pathlib.Path) -> str | None:
  """The format of the export in a folder; None: there is none."""
  try:
    return json.loads((folder / CARD).read_text())["format"]
  except (OSError, ValueError, KeyError, TypeError):
    return None


def shapes_of(model: FlamingoConfig) -> dict[str, jax.ShapeDtypeStruct]:
  return flat(jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0)))


def check_openflamingo(experiment: Experiment, workdir: str, out: pathlib.Path) -> None:
  """Raises UserError, before weights are read, when OpenFlamingo cannot hold the model or torch is not there."""
  patterns = experiment.training.trainable
  trained = [path for path in shapes_of(experiment.model) if is_trainable(path, patterns)]
  if faults := openflamingo_faults(experiment.model, language_family(experiment), trained):
    raise UserError(f"{workdir}: OpenFlamingo cannot hold this model:\n" + "\n".join(f"  {fault}" for fault in faults))
  import_torch(out / CHECKPOINT)


def language_family(experiment: Experiment) -> str:
  """Whose names the language model's tensors had; folders that do not say so came from GGUF, which is llama."""
  source = experiment.frozen_config.language
  if not is_model_folder(source):
    return source
  return json.loads((pathlib.Path(source) / DESCRIPTION).read_text()).get("family", "llama")


# Formats: each writes its files into a folder and returns the hash of its weights by file.


def to_safetensors(source: Source, folder: pathlib.Path) -> dict[str, str]:
  """A model folder as `flamingo import` writes it."""
  write_safetensors(folder / WEIGHTS, stacked(source.trained.parameters))
  config, tokenizer = dataclasses.asdict(source.experiment.model), source.experiment.tokenizer()
  ids = dict(bos=tokenizer.bos, eos=tokenizer.eos)
  describe(folder, dict(kind="flamingo", family=source.family, config=config, origin=source.origin) | ids)
  copy_tokenizer(source, folder)
  return {WEIGHTS: json.loads((folder / DESCRIPTION).read_text())["hash"]}


def to_openflamingo(source: Source, folder: pathlib.Path) -> dict[str, str]:
  """The trained part as OpenFlamingo's training saves it, and what it was made for."""
  model = source.experiment.model
  tensors = openflamingo_tensors(model, source.family, stacked(source.trained.parameters))
  save_state_dict(folder / CHECKPOINT, tensors)
  described = openflamingo_description(model, source.family) | dict(origin=source.origin)
  (folder / DESCRIPTION).write_text(json.dumps(described, indent=2))
  return {CHECKPOINT: content_hash(tensors)}


def to_orbax(source: Source, folder: pathlib.Path) -> dict[str, str]:
  """One checkpoint of nested dicts, layers stacked."""
  parameters = {path: np.asarray(array) for path, array in stacked(source.trained.parameters).items()}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((folder / ORBAX).absolute(), traverse_util.unflatten_dict(parameters, sep="/"))
  copy_tokenizer(source, folder)
  return {ORBAX: content_hash(parameters)}


def to_stablehlo(source: Source, folder: pathlib.Path) -> dict[str, str]:
  """The forward pass, and beside it the parameters that it takes."""
  parameters = source.trained.parameters
  (folder / PROGRAM).write_bytes(export_forward(source.experiment.model, parameters))
  write_safetensors(folder / PARAMETERS, parameters)
  copy_tokenizer(source, folder)
  return {PARAMETERS: content_hash(parameters)}


FORMS: dict[str, Callable[[Source, pathlib.Path], dict[str, str]]] = {
  "openflamingo": to_openflamingo,
  "safetensors": to_safetensors,
  "orbax": to_orbax,
  "stablehlo": to_stablehlo,
}


def write_safetensors(path: pathlib.Path, parameters: dict[str, np.ndarray]) -> None:
  with TensorWriter(path, {name: (array.shape, array.dtype) for name, array in parameters.items()}) as writer:
    for name, array in parameters.items():
      writer.write(name, array)


def copy_tokenizer(source: Source, folder: pathlib.Path) -> None:
  """The run's tokenizer. Raises UserError when it is missing or does not fit the model."""
  source.experiment.tokenizer()
  shutil.copyfile(pathlib.Path(source.experiment.tokenizer_config.path) / TOKENIZER, folder / TOKENIZER)
