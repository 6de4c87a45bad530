"""The parameters that are not drawn at random: a run's frozen parts, and trained ones that go on from elsewhere."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.interop.descriptions import checked
from flamingo_jax.interop.json_files import read_object
from flamingo_jax.interop.language_rules import document_ids
from flamingo_jax.interop.model_folder import DESCRIPTION, content_hash, load_model
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig, grouped
from flamingo_jax.models.language.decoder import DecoderConfig, group_layers, ungroup_layers
from flamingo_jax.models.language_model import LanguageModelConfig
from flamingo_jax.models.parameters import Parameters, flat
from flamingo_jax.models.vision.towers import FeaturesConfig, VisionConfig
from flamingo_jax.models.vision.vit import VitConfig, resize_positions
from flamingo_jax.training.checkpoints import FOLDER, load_trainable
from flamingo_jax.training.config import Frozen, TrainingConfig
from flamingo_jax.training.objectives import Objective
from flamingo_jax.training.step import is_trainable
from launch.config import convert

ModelConfig = FlamingoConfig | ContrastiveConfig | LanguageModelConfig
MODELS = {"flamingo": FlamingoConfig, "contrastive": ContrastiveConfig, "language": LanguageModelConfig}  # by objective
Found = tuple[dict[str, np.ndarray], str]  # parameters by path, and the hash of where they came from


@dataclasses.dataclass(frozen=True)
class FrozenConfig:
  """Where the frozen parts come from: a model folder, a finished run's work directory, or "random"."""

  vision: str = ""
  language: str = ""


def read_pretrained(
  model: ModelConfig,
  objective: Objective,
  training: TrainingConfig,
  sources: FrozenConfig,
  start: str,
) -> Frozen:
  """Reads what the config names and lays it out for the model.

  Parameters of the frozen parts that the config trains all the same, such as an unfrozen vision encoder's, begin from
  what was read. So does everything trained, if there is a `start`.

  Raises:
    UserError: a part is missing, or was made for another architecture; or nothing of the `start` is trained here.
  """
  parameters, hashes = {}, {}
  for part in parts_of(model):
    found, hashes[part] = read_part(part, model, objective, training, sources)
    parameters |= found
  trained = {path: array for path, array in parameters.items() if is_trainable(path, training.trainable)}
  frozen = {path: array for path, array in parameters.items() if path not in trained}
  if start:
    begun, made_with = read_start(model, start)
    kept = {path: array for path, array in begun.items() if is_trainable(path, training.trainable)}
    if not kept:
      raise UserError(f"start: {start} has nothing of what is trained here; trainable is {training.trainable}.")
    trained |= kept | fitted_tower(below(kept, "vision/"), made_with, model, start)
  return Frozen(frozen, hashes, trained)


def read_part(
  part: str,
  model: ModelConfig,
  objective: Objective,
  training: TrainingConfig,
  sources: FrozenConfig,
) -> Found:
  """One of the parts in `parts_of`."""
  prefix, read = parts_of(model)[part]
  source = getattr(sources, part)
  return random_part(objective, training, prefix) if source == "random" else read(model, source)


def parts_of(model: ModelConfig) -> dict[str, tuple[str, Callable[..., Found]]]:
  """The frozen parts of a model: how their paths begin, and what reads them."""
  if isinstance(model, LanguageModelConfig):
    return {}
  if isinstance(model, ContrastiveConfig):
    return dict(language=("text/embeddings", read_embeddings))
  language = dict(language=("language/", read_language))
  if isinstance(model.vision, FeaturesConfig):
    return language
  return dict(vision=("vision/", read_vision)) | language


def is_model_folder(source: str) -> bool:
  return (pathlib.Path(source) / "model.safetensors").is_file()


def read_vision(model: FlamingoConfig, source: str) -> Found:
  """A vision tower, as our model takes it."""
  tower, made_with, digest = read_tower(source)
  return fitted_tower(tower, made_with, model, source), digest


def read_tower(source: str) -> tuple[Parameters, dict, str]:
  """A vision tower, what it was made with, and a hash: an imported one, an imported Flamingo's, or that of a finished
  contrastive run, or of one that trained it further.

  Raises:
    UserError: there is none, or a run that trained no vision encoder.
  """
  if is_model_folder(source):
    stored, described = load_model(source)
    return *part_of(source, stored, described, "vision"), described["hash"]
  trained, _, _ = load_trainable(source)
  config, tower = config_of(source), below(trained, "vision/")
  if not tower:
    raise UserError(
      f"{source}: holds a {config.get('objective')} run that trained no vision encoder; one comes from a contrastive "
      "run, or from a folder that `flamingo import` wrote."
    )
  return tower, config["model"]["vision"], content_hash({f"vision/{path}": array for path, array in tower.items()})


def fitted_tower(tower: Parameters, made_with: dict, model: ModelConfig, source: str) -> Parameters:
  """A vision tower, or those of its parameters that are trained, by our model's paths and at its image size."""
  if not tower or isinstance(model.vision, FeaturesConfig):
    return {}
  ours = dataclasses.asdict(model.vision)
  size = {"image_size": ours["image_size"]}
  check_architecture(source, "model.vision", as_config(VisionConfig, made_with | size, source), ours)
  return {f"vision/{path}": array for path, array in at_size(tower, made_with, model.vision).items()}


def at_size(tower: Parameters, made_with: dict, config: VisionConfig) -> Parameters:
  """A ViT's position embeddings, stretched where our pictures have another size (fine-tuning at 480 pixels)."""
  same = made_with["image_size"] == config.image_size
  if same or not isinstance(config, VitConfig) or "position_embeddings" not in tower:
    return tower
  side = config.image_size // config.patch_size
  table = resize_positions(tower["position_embeddings"], side, class_token=config.class_token)
  return tower | {"position_embeddings": np.asarray(table)}


def read_language(model: FlamingoConfig | LanguageModelConfig, source: str) -> Found:
  """A language model, as our model takes it: its layers cut into the groups between gated ones."""
  language, made_with, digest = stored_language(source)
  ours = dataclasses.asdict(model.language)
  extra = {"extra_tokens": ours["extra_tokens"]}
  check_architecture(source, "model.language", as_config(DecoderConfig, made_with | extra, source), ours)
  own = {p: array for p, array in language.items() if not p.startswith(("gated_cross_attention/", "extra_"))}
  gated = model.cross_attention if isinstance(model, FlamingoConfig) else None
  layered = group_layers(own, model.language.layers, gated)
  return {f"language/{path}": array for path, array in layered.items()}, digest


def stored_language(source: str) -> tuple[Parameters, dict, str]:
  """A language model, its layers in one stack, what it was made with, and a hash: an imported one, an imported
  Flamingo's, or that of a finished language run.

  Raises:
    UserError: there is none, or a run of another objective.
  """
  if not (pathlib.Path(source) / FOLDER).is_dir():
    stored, described = load_model(source)
    return *part_of(source, stored, described, "language"), described["hash"]
  trained, _, _ = load_trainable(source)
  config = config_of(source)
  if config.get("objective") != "language":
    raise UserError(
      f"{source}: holds a {config.get('objective')} run; a language model comes from a language run, or from a folder "
      "that `flamingo import` wrote."
    )
  language = ungroup_layers(below(trained, "language/"))
  return language, config["model"]["language"], content_hash(language)


def open_tokenizer(path: str, bos: int | None, eos: int | None, vocabulary: int | None = None) -> Tokenizer:
  """The tokenizer of a folder.

  Args:
    path: the folder.
    bos: the id that begins a document; None: as `named_id` has it.
    eos: the id that ends one, in the same way.
    vocabulary: the rows of the model's token table; None: as many as the tokenizer has tokens.

  Raises:
    UserError: there is no tokenizer, or it does not fit the model.
  """
  bos = named_id(path, "bos") if bos is None else bos
  eos = named_id(path, "eos") if eos is None else eos
  return load_tokenizer(path, bos, eos, vocabulary)


def named_id(path: str, name: str) -> int:
  """`bos` or `eos` as the config.json of a model folder has it, or of transformers; 0 where none names it."""
  where = pathlib.Path(path) / DESCRIPTION
  described = read_object(where) if where.is_file() else {}
  number = described.get(name, document_ids(described).get(name, 0))
  if type(number) is not int:
    raise UserError(f"{where}: {name} is {number!r}; it is a whole number. Set tokenizer.{name}.")
  return number


def check_tokenizer(source: str, path: str, bos: int | None, eos: int | None) -> None:
  """Holds a tokenizer against that of a run whose tokens a model is to read, if that is still there.

  Args:
    source: of the language model, or of what the training begins with; nothing is known of a model folder's, nor of a
      random one's.
    path: of the tokenizer.
    bos: the id that begins a document, as `open_tokenizer` takes it.
    eos: the id that ends one.

  Raises:
    UserError: the same text would be other tokens.
  """
  if not source or not (pathlib.Path(source) / FOLDER).is_dir():
    return
  made_with = config_of(source)["tokenizer"]
  if not (pathlib.Path(made_with["path"]) / "tokenizer.json").is_file():
    return
  theirs, ours = open_tokenizer(made_with["path"], made_with["bos"], made_with["eos"]), open_tokenizer(path, bos, eos)
  if theirs.fingerprint() != ours.fingerprint():
    raise UserError(
      f"{source}: was trained on the tokens of {made_with['path']}; tokenizer.path, {path}, makes others of a text. "
      "Name the one it knows."
    )
  for field in ("bos", "eos"):
    known, here = getattr(theirs, field), getattr(ours, field)
    if known != here:
      raise UserError(f"{source}: was trained with tokenizer.{field}={known}; here it is {here}.")


def read_embeddings(model: ContrastiveConfig, source: str) -> Found:
  """The token embeddings of a language model, for the text tower; none where it begins with fresh ones."""
  if not source:
    return {}, content_hash({})
  stored, _, _ = stored_language(source)
  embeddings = {"text/embeddings": stored["embeddings"]}
  return embeddings, content_hash(embeddings)


def read_start(model: ModelConfig, source: str) -> tuple[Parameters, dict]:
  """All parameters of an imported Flamingo, or the trained ones of a run, and what its vision encoder was made with.

  Of a language model, all parameters of one; it has no vision encoder.

  Raises:
    UserError: there is none, or it is of another kind or architecture than the model.
  """
  if isinstance(model, LanguageModelConfig):
    return read_language(model, source)[0], {}
  if is_model_folder(source):
    return read_flamingo(model, source)
  trained, _, _ = load_trainable(source)
  config, [ours] = config_of(source), [name for name, kind in MODELS.items() if isinstance(model, kind)]
  if config.get("objective") != ours:
    raise UserError(f"start: {source} holds a {config.get('objective')} run; a {ours} run goes on from a {ours} one.")
  return trained, config["model"]["vision"]


def read_flamingo(model: ModelConfig, source: str) -> tuple[Parameters, dict]:
  """All parameters of a model folder's Flamingo, and what its vision encoder was made with; raises as `read_start`."""
  if not isinstance(model, FlamingoConfig):
    raise UserError(f"start: {source} is a model folder; a contrastive run goes on from a contrastive one.")
  stored, described = load_model(source)
  if described.get("kind") != "flamingo":
    raise UserError(f"start: {source} is not a Flamingo; its config.json says kind {described.get('kind')!r}.")
  made_with = as_config(FlamingoConfig, described["config"], source)
  ours = dataclasses.asdict(model)
  for part in ("resampler", "cross_attention"):
    check_architecture(source, f"model.{part}", made_with[part] or {}, ours[part] or {})
  return grouped(stored, model), made_with["vision"]


def config_of(workdir: str) -> dict:
  """What a run was made with."""
  return json.loads((pathlib.Path(workdir) / "config.json").read_text())


def part_of(source: str, stored: Parameters, described: dict, part: str) -> tuple[Parameters, dict]:
  """The parameters of a part of a model folder and what they were made with.

  Raises:
    UserError: the folder holds something else.
  """
  kind = described.get("kind", "language")
  if kind == part:
    return stored, described["config"]
  if kind == "flamingo":
    return below(stored, f"{part}/"), described["config"][part]
  raise UserError(f"frozen.{part}: {source} holds a model of kind {kind!r}, not {part!r} or 'flamingo'.")


def below(parameters: Parameters, prefix: str) -> Parameters:
  return {path.removeprefix(prefix): np.asarray(p) for path, p in parameters.items() if path.startswith(prefix)}


def random_part(objective: Objective, training: TrainingConfig, prefix: str) -> Found:
  """Fresh parameters below a prefix, for tests of the machinery."""

  def part(key: jax.Array) -> Parameters:
    everything = flat(objective.initialize(key))
    return {
      path: array
      for path, array in everything.items()
      if path.startswith(prefix) and not is_trainable(path, training.trainable)
    }

  # What is not returned is not compiled either.
  chosen = jax.device_get(jax.jit(part)(jax.random.key(training.seed)))
  return chosen, content_hash(chosen)


def as_config(cls, stored: dict, source: str) -> dict:
  """A stored config with the fields that came later at their defaults.

  Raises:
    UserError: it has fields that are not known, or that no model can be made of.
  """
  faults: list[str] = []
  built = convert(cls, stored, "", faults)
  if faults:
    raise UserError(f"{source}: its config.json was written by another version:\n" + "\n".join(faults))
  return dataclasses.asdict(checked(built, pathlib.Path(source) / DESCRIPTION))


def check_architecture(source: str, group: str, stored: dict, ours: dict) -> None:
  """Raises UserError when a part was made with other settings than the config says."""
  faults = [
    f"  {group}.{field} is {ours.get(field)!r}, the frozen weights were made with {stored.get(field)!r}"
    for field in sorted(stored.keys() | ours.keys())
    if stored.get(field) != ours.get(field)
  ]
  if faults:
    raise UserError(f"{source}: does not fit the config:\n" + "\n".join(faults))
