"""Foreign checkpoints to model folders, one tensor at a time; a format is a function that says how one is read."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.interop import vision_rules
from flamingo_jax.interop.descriptions import checked, reading
from flamingo_jax.interop.flamingo_rules import (
  OPENFLAMINGO_IGNORED,
  OpenFlamingoSettings,
  open_openflamingo,
  openflamingo_config,
  openflamingo_origin,
  openflamingo_rules,
)
from flamingo_jax.interop.gguf import GgufModel, gguf_rules
from flamingo_jax.interop.idefics_rules import IDEFICS_IGNORED, idefics_config, idefics_rules
from flamingo_jax.interop.json_files import read_object
from flamingo_jax.interop.language_rules import IGNORED, document_ids, language_rules, read_config
from flamingo_jax.interop.rules import Merged, Renamed, Rule, Tensors
from flamingo_jax.interop.tensor_files import open_tensors
from flamingo_jax.models.vision.vit import VitConfig

PREPROCESSING = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Source:
  """A foreign checkpoint that has been opened, and how it is read.

  Attributes:
    kind: "language", "vision" or "flamingo".
    family: whose names its tensors have, such as "gpt_neox"; an export can go back to them.
    config: the dataclass of our model.
    tensors: the foreign ones.
    rules: from them to ours.
    ignored: patterns of foreign names that are known and not wanted.
    origin: what the checkpoint seems to have been made for, if that can be told.
    ids: of the tokens that begin and end a document, "bos" and "eos", if the checkpoint names them.
  """

  kind: str
  family: str
  config: Any
  tensors: Tensors
  rules: Sequence[Rule]
  ignored: Sequence[str] = ()
  origin: str = ""
  ids: dict[str, int] = dataclasses.field(default_factory=dict)


def open_gguf(path: pathlib.Path) -> Source:
  model = GgufModel(path)
  with reading(path):
    config = checked(model.config(), path)
    return Source("language", "llama", config, model, gguf_rules(config), ids=model.ids())


def open_language(path: pathlib.Path) -> Source:
  """A language model of transformers: llama, gpt_neox, opt, mpt, mosaic_gpt or gpt2."""
  described, where = read_description(path)
  with reading(where):
    config = checked(read_config(described, where), where)
    family = described["model_type"]
    rules = language_rules(family, config)
  tensors = with_full_names(open_tensors(path), family)
  return Source("language", family, config, tensors, rules, IGNORED, ids=document_ids(described))


def with_full_names(tensors: Tensors, family: str) -> Tensors:
  """Names as the model with a language head has them: GPT-2 and OPT are published without the first part."""
  prefixes = {"gpt2": "transformer.", "opt": "model."}
  prefix = prefixes.get(family)
  if prefix is None or any(name.startswith(prefix) for name in tensors.names):
    return tensors
  return Renamed(tensors, lambda name: name if name.startswith("lm_head.") else prefix + name)


def open_clip_vision(path: pathlib.Path) -> Source:
  """The vision tower of transformers' CLIP."""
  described, where = read_description(path)
  with reading(where):
    config = checked(with_pixels(vision_rules.config_from_clip(described), where.parent), where)
    rules = vision_rules.clip_rules(config)
  return Source("vision", "clip", config, open_tensors(path), rules, vision_rules.CLIP_IGNORED)


def open_siglip_vision(path: pathlib.Path) -> Source:
  """The vision tower of transformers' SigLIP."""
  described, where = read_description(path)
  with reading(where):
    config = checked(with_pixels(vision_rules.config_from_siglip(described), where.parent), where)
    rules = vision_rules.clip_rules(config)
  return Source("vision", "siglip", config, open_tensors(path), rules, vision_rules.SIGLIP_IGNORED)


def with_pixels(config: VitConfig, folder: pathlib.Path) -> VitConfig:
  """A tower with the mean and deviation of pixels that lie beside its config.json, if they do."""
  where = folder / PREPROCESSING
  if not where.is_file():
    return config
  described = read_object(where)
  with reading(where):
    return dataclasses.replace(config, **vision_rules.pixels_from_transformers(described, where))


def open_open_clip(path: pathlib.Path) -> Source:
  """The vision tower of an open_clip checkpoint, its `open_clip_config.json` beside it."""
  config = open_clip_config(path)
  with reading(path):
    rules = vision_rules.open_clip_rules(config)
  ignored = (*vision_rules.OPEN_CLIP_IGNORED, *vision_rules.OPEN_CLIP_TEXT_IGNORED)
  return Source("vision", "open_clip", config, open_tensors(path), rules, ignored)


def open_clip_config(path: pathlib.Path) -> VitConfig:
  """What lies beside the weights of open_clip."""
  described, where = read_description(path, "open_clip_config.json")
  with reading(where):
    return checked(vision_rules.config_from_open_clip(described), where)


def open_timm_nfnet(path: pathlib.Path) -> Source:
  described, where = read_description(path)
  with reading(where):
    config = checked(vision_rules.config_from_timm(described), where)
    rules = vision_rules.timm_nfnet_rules(config)
  return Source("vision", "timm", config, open_tensors(path), rules, vision_rules.TIMM_NFNET_IGNORED)


def open_idefics(path: pathlib.Path) -> Source:
  described, where = read_description(path)
  with reading(where):
    config = idefics_config(described, where)
    config = checked(dataclasses.replace(config, vision=with_pixels(config.vision, where.parent)), where)
    rules = idefics_rules(config)
  return Source("flamingo", "idefics", config, open_tensors(path), rules, IDEFICS_IGNORED, ids=document_ids(described))


def open_open_flamingo(
  path: pathlib.Path, language: pathlib.Path, vision: pathlib.Path | None, settings: OpenFlamingoSettings
) -> Source:
  """An OpenFlamingo: its own checkpoint, which may or may not hold the frozen parts, and the models it was built on.

  Args:
    path: the checkpoint.
    language: the language model, as transformers keeps it.
    vision: the open_clip tower; None: the one in the checkpoint, or none, and media are its features.
    settings: what no shape in it tells.

  Raises:
    UserError: something of it is not what it should be.
  """
  described, where = read_description(language)
  family = described.get("model_type", "(absent)")
  sources = [open_openflamingo(open_tensors(path))]
  sources.append(Renamed(with_full_names(open_tensors(language), family), lambda name: f"lang_encoder.{name}"))
  tower = None
  if vision is not None:
    tower = open_clip_config(vision)
    sources.append(Renamed(open_tensors(vision), tower_name))
  elif any(name.startswith("vision_encoder.") for name in sources[0].names):
    with reading(path):
      tower = checked(vision_transformer_config(sources[0]), path)
  tensors = Merged(*sources)
  with reading(f"{path}, {where}"):
    config = checked(openflamingo_config(tensors, described, vision=tower, settings=settings), where)
    rules = openflamingo_rules(config, family)
  origin, ids = openflamingo_origin(sources[0]), document_ids(described)
  return Source("flamingo", family, config, tensors, rules, OPENFLAMINGO_IGNORED, origin, ids)


def tower_name(name: str) -> str | None:
  """A name of open_clip's whole model as OpenFlamingo has it; the text tower is left out."""
  return name.replace("visual.", "vision_encoder.", 1) if name.startswith("visual.") else None


def vision_transformer_config(tensors: Tensors) -> VitConfig:
  """The open_clip tower within a full state dict, by its shapes: heads of width 64, as all of OpenAI's have."""
  width, _, patch, _ = tensors.shape("vision_encoder.conv1.weight")
  positions, _ = tensors.shape("vision_encoder.positional_embedding")
  layers = {name.split(".")[3] for name in tensors.names if name.startswith("vision_encoder.transformer.resblocks.")}
  described = dict(
    width=width, layers=len(layers), patch_size=patch, image_size=patch * round((positions - 1) ** 0.5), head_width=64
  )
  return vision_rules.config_from_open_clip({"vision_cfg": described, "quick_gelu": True})


FORMATS: dict[str, Callable[[pathlib.Path], Source]] = {
  "gguf": open_gguf,
  "hf-lm": open_language,
  "hf-clip": open_clip_vision,
  "hf-siglip": open_siglip_vision,
  "open-clip": open_open_clip,
  "timm-nfnet": open_timm_nfnet,
  "idefics": open_idefics,
}


def read_description(path: pathlib.Path, name: str = "config.json") -> tuple[dict, pathlib.Path]:
  """The config that lies in a checkpoint's folder, and where that is.

  Raises:
    UserError: it is missing or not JSON.
  """
  where = (path if path.is_dir() else path.parent) / name
  if not where.is_file():
    raise UserError(f"{where}: cannot be read (no such file). It lies beside the weights of a checkpoint.")
  return read_object(where), where
