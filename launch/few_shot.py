"""Few-shot evaluation with files and a tokenizer: what `flamingo evaluate` and evaluations during training share."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from data_pipelines.clips import read_clip
from data_pipelines.media import MediaError, pad, read_image
from data_pipelines.prompts import VIDEO_SUFFIXES, read_file
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.answering import Limits, Model
from flamingo_jax.evaluation.benchmark import Benchmark, read_benchmark
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.runner import quick_scores
from flamingo_jax.evaluation.settings import BenchmarkConfig, FewShotConfig, check_few_shot
from flamingo_jax.evaluation.sight import UnreadableMedia
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.towers import FeaturesConfig
from launch.config import build, join

Metrics = Callable[[Parameters, Mesh, bool], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Checked settings of an evaluation.

  Attributes:
    config: what all benchmarks share.
    benchmarks: by name.
  """

  config: FewShotConfig = FewShotConfig()
  benchmarks: dict[str, BenchmarkConfig] = dataclasses.field(default_factory=dict)


def build_few_shot(group: dict, where: str, faults: list[str], control: str = "") -> FewShot | None:
  """The settings from a group of a config; what is wrong is added to `faults`, and None comes back."""
  before = len(faults)
  given = group.get("benchmarks", {}) if isinstance(group, dict) else {}
  shared = {name: value for name, value in group.items() if name != "benchmarks"} if isinstance(group, dict) else group
  config = build(FewShotConfig, shared, where, faults)
  if not isinstance(given, dict):
    faults.append(f"{join(where, 'benchmarks')} is {given!r}; it is a group of benchmarks, each with its fields.")
    return None
  here = join(where, "benchmarks")
  benchmarks = {name: build(BenchmarkConfig, fields, join(here, name), faults) for name, fields in given.items()}
  if len(faults) == before:
    benchmarks = {name: anchored(config) for name, config in benchmarks.items()}
    faults += check_few_shot(where and f"{where}.", config, benchmarks, control)
  return FewShot(config, benchmarks) if len(faults) == before else None


def anchored(config: BenchmarkConfig) -> BenchmarkConfig:
  """With the folder's path from the root, so that a report finds the pictures wherever it is written."""
  return dataclasses.replace(config, folder=str(pathlib.Path(config.folder).absolute()))


def read_benchmarks(few_shot: FewShot) -> list[Benchmark]:
  """Reads all of them. Raises UserError with every fault of every data set."""
  read, faults = [], []
  for name, config in few_shot.benchmarks.items():
    try:
      read.append(read_benchmark(name, config, wordnet=few_shot.config.wordnet))
    except UserError as error:
      faults.append(f"benchmarks.{name}: {error}")
  if faults:
    raise UserError("\n".join(faults))
  return read


def why_unable(config: object) -> str:
  """Why a model cannot be asked about pictures; empty if it can."""
  if not isinstance(config, FlamingoConfig):
    return "holds no Flamingo; only that answers prompts."
  if isinstance(config.vision, FeaturesConfig):
    return "was trained on features and has no vision encoder; it cannot see pictures."
  return ""


def make_model(config: FlamingoConfig, parameters: Parameters, tokenizer: Tokenizer, few_shot: FewShotConfig) -> Model:
  """A model that answers, for the mesh that is set.

  Args:
    config: of the model.
    parameters: all of them, by path.
    tokenizer: of the model.
    few_shot: what is done at once, and how films are read.
  """
  interpolates = isinstance(config.resampler, PerceiverResamplerConfig) and config.resampler.frames
  frames = few_shot.frames if interpolates else config.frames
  limits = Limits(few_shot.batch_size, frames, few_shot.context, few_shot.media_memory)
  size, rate = config.vision.image_size, few_shot.frames_per_second
  return Model(config, parameters, tokenizer, lambda medium: read_frames(medium, size, frames, rate), limits)


def read_frames(medium: Medium, size: int, frames: int, per_second: float) -> np.ndarray:
  """The frames of a picture or film, uint8 [F, size, size, 3]; of a film too long, from its middle.

  Raises:
    UserError: the file cannot be read.
    UnreadableMedia: it is not what its name says.
  """
  encoded = read_file(medium.path)
  try:
    if not medium.path.lower().endswith(VIDEO_SUFFIXES):
      return pad(read_image(encoded, size), size)[None]
    span = (medium.start or 0.0, np.inf if medium.end is None else medium.end)
    return pad(read_clip(encoded, size, frames=frames, per_second=per_second, span=span, start=0.5), size)
  except MediaError as error:
    fault = f"{medium.path}: {error}. Bring the file back whole, or take its examples out."
    raise UnreadableMedia({medium: fault}) from error


def with_few_shot(evaluate: Metrics, model: FlamingoConfig, tokenizer: Tokenizer, few_shot: FewShot) -> Metrics:
  """An evaluation during training with few-shot scores among its metrics, but for the one before the first step."""
  benchmarks = read_benchmarks(few_shot)

  def both(parameters: Parameters, mesh: Mesh, baseline: bool) -> dict[str, float]:
    metrics = evaluate(parameters, mesh, baseline)
    if baseline:
      return metrics
    answering = make_model(model, parameters, tokenizer, few_shot.config)
    for benchmark in benchmarks:
      metrics |= quick_scores(answering, benchmark, few_shot.config.wordnet)
    return metrics

  return both
