"""A config made real: the objective, the frozen parts, the streams. What train, generate and report share."""

import copy
import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Iterator

import numpy as np

from data_pipelines.mixtures import mixture, round_robin, turn
from data_pipelines.shards import open_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Batch, Stream
from data_pipelines.stream_config import StreamConfig, check_stream
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.credentials import credential_faults
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.contrastive import evaluate_contrastive
from flamingo_jax.evaluation.held_out import evaluate_flamingo, evaluate_language
from flamingo_jax.interop.descriptions import model_faults
from flamingo_jax.models.contrastive import LOSSES, LOWEST_TEMPERATURE, ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.language.decoder import POSITIONS, RESIDUALS, gated_layers
from flamingo_jax.models.language_model import LanguageModelConfig
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.nfnet import VARIANTS
from flamingo_jax.models.vision.towers import FeaturesConfig, VisionConfig
from flamingo_jax.ops.attention import NAMES
from flamingo_jax.ops.layers import ACTIVATIONS, NORMS
from flamingo_jax.ops.remat import POLICIES
from flamingo_jax.parallel.mesh import SPREADS, data_parts, make_mesh
from flamingo_jax.training.checkpoints import check_checkpoints
from flamingo_jax.training.config import MIXTURES, Feed, Frozen, TrainingConfig
from flamingo_jax.training.guards import check_guards
from flamingo_jax.training.objectives import Objective, contrastive_objective, flamingo_objective, language_objective
from flamingo_jax.training.optimizer import check_optimizer
from flamingo_jax.training.step import is_trainable
from flamingo_jax.training.writers import unknown_writers
from launch.config import build, join, unknown
from launch.few_shot import FewShot, build_few_shot, why_unable, with_few_shot
from launch.precomputed import check_kinds, check_shards, common_tower, folders
from launch.pretrained import (
  MODELS,
  FrozenConfig,
  ModelConfig,
  check_tokenizer,
  named_id,
  open_tokenizer,
  read_pretrained,
)
from launch.skips import strip, without_skipped
from launch.zero_shot import ZeroShotConfig, build_zero_shot, read_zero_shot

OBJECTIVES: dict[type, Callable[..., Objective]] = {
  FlamingoConfig: flamingo_objective,
  ContrastiveConfig: contrastive_objective,
  LanguageModelConfig: language_objective,
}
DTYPES = ("float32", "bfloat16")
CHOICES: dict[str, Collection[str]] = {  # fields of a model or of one of its parts, and the names they may have
  "dtype": DTYPES,
  "attention": NAMES,
  "remat": POLICIES,
  "loss": LOSSES,
  "variant": VARIANTS,
  "activation": ACTIVATIONS,
  "norm": NORMS,
  "head_norm": ("", *NORMS),
  "residual": RESIDUALS,
  "positions": POSITIONS,
}

TOKENIZER = "tokenizer"  # among the hashes of what is read, beside the streams


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """A folder with tokenizer.json, and which of its ids begin and end a document; None: those that the folder names."""

  path: str
  bos: int | None = None
  eos: int | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How much held-out data an evaluation reads at most, and how many samples of a stream the report shows."""

  batches: int = 4
  samples: int = 2


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A checked config. Nothing is read and nothing allocated until one of its methods is called."""

  raw: dict
  name: str  # of the objective
  model: ModelConfig
  training: TrainingConfig
  frozen_config: FrozenConfig
  start: str  # an imported Flamingo or a run whose trained parts this one begins with; empty: fresh ones
  tokenizer_config: TokenizerConfig
  evaluation: EvaluationConfig
  few_shot: FewShot
  zero_shot: dict[str, ZeroShotConfig]
  stream_configs: dict[str, StreamConfig]

  def objective(self) -> Objective:
    return OBJECTIVES[type(self.model)](self.model)

  @property
  def vision(self) -> VisionConfig | None:
    """Of the model; None where it sees nothing."""
    return None if isinstance(self.model, LanguageModelConfig) else self.model.vision

  @property
  def rows(self) -> dict[str, int]:
    """Of the streams' global batches."""
    return {name: config.batch_size for name, config in self.stream_configs.items()}

  def tokenizer(self) -> Tokenizer:
    """Opens the tokenizer, and checks that the model has a row for each of its tokens."""
    config = self.tokenizer_config
    described = self.model if isinstance(self.model, ContrastiveConfig) else self.model.language
    return open_tokenizer(config.path, config.bos, config.eos, described.vocabulary)

  def streams(self, split: str, *, training: bool) -> dict[str, Stream]:
    """Opens every stream's `train` or `heldout` shards."""
    tokenizer, vision = self.tokenizer(), self.vision
    if vision is not None:
      check_shards(self.stream_configs, split, vision)
    return {
      name: Stream(
        config=config,
        sources=open_sources(config, split),
        tokenizer=tokenizer,
        image_size=getattr(vision, "image_size", 0),
        seed=self.training.seed,
        training=training,
      )
      for name, config in self.stream_configs.items()
    }

  def feed(self, skipped: pathlib.Path | None = None) -> Feed:
    """The training streams, as the loop takes them.

    Args:
      skipped: a file that names what is left out of them.
    """
    streams = self.streams("train", training=True)
    own, parts = self.data_parts()

    in_turns = self.training.mixture == "round_robin"

    def batches_from(step: int):
      batches = (round_robin if in_turns else mixture)(streams, step, own=own, parts=parts)
      yield from without_skipped(batches, self.stream_configs, step, skipped)

    def records(number: int) -> dict[str, list[list[str]]]:
      if in_turns:
        name, own = turn(tuple(streams), number - 1)
        return {name: records_of(streams[name], own + 1)}
      return {name: records_of(stream, number) for name, stream in streams.items()}

    weights = {name: config.weight for name, config in self.stream_configs.items()}
    hashes = {name: stream.sources.content_hash for name, stream in streams.items()}
    hashes[TOKENIZER] = self.tokenizer().fingerprint()
    return Feed(batches_from, weights, self.rows, hashes, records)

  def evaluate(self):
    """The evaluation that belongs to the objective."""
    held_out = {name: self.some_batches(stream) for name, stream in self.streams("heldout", training=False).items()}
    if isinstance(self.model, LanguageModelConfig):
      return evaluate_language(self.objective(), held_out)
    if not isinstance(self.model, FlamingoConfig):
      return evaluate_contrastive(self.model, held_out, read_zero_shot(self.zero_shot, self.model, self.tokenizer()))
    seen = {name: self.some_batches(stream) for name, stream in self.streams("train", training=False).items()}
    evaluate = evaluate_flamingo(self.objective(), self.model, held_out, seen)
    if not self.few_shot.benchmarks:
      return evaluate
    return with_few_shot(evaluate, self.model, self.tokenizer(), self.few_shot)

  def some_batches(self, stream: Stream) -> list[Batch]:
    """The first batches of a stream; at most all of its records, once."""
    own, parts = self.data_parts()
    return [strip(batch) for batch in stream.once(self.evaluation.batches, own=own, parts=parts)]

  def data_parts(self) -> tuple[tuple[int, ...], int]:
    """Which parts of each batch this host reads, of how many."""
    return data_parts(make_mesh(self.training.mesh))

  def frozen(self) -> Frozen:
    """Reads the frozen parts, and what trained ones start from. Raises UserError when something is not as it should."""
    frozen = read_pretrained(self.model, self.objective(), self.training, self.frozen_config, self.start)
    for source in (self.frozen_config.language, self.start):
      check_tokenizer(source, **dataclasses.asdict(self.tokenizer_config))
    if not isinstance(self.vision, FeaturesConfig):
      return frozen
    tower = common_tower(self.stream_configs, self.frozen_config.vision)
    return dataclasses.replace(frozen, hashes=frozen.hashes | dict(vision=tower))


def records_of(stream: Stream, number: int) -> list[list[str]]:
  """The records of each row of a batch, from number 1, as `flamingo data explain` takes them."""
  rows = stream.config.batch_size
  positions = np.arange((number - 1) * rows, number * rows)
  named = [[stream.sources.where(index) for index, _ in row] for row in stream.records(positions)]
  return [[f"{path}:{record}" for path, record in row] for row in named]


def open_sources(config: StreamConfig, split: str) -> Sources:
  """Opens the `train` or `heldout` shards of all sources of a stream."""
  return Sources(tuple(open_shards(folder, config.maximum_skipped) for folder in folders(config, split)))


def read_experiment(config: dict, where: str) -> Experiment:
  """Checks a whole config and builds its dataclasses.

  Args:
    config: what `load_config` returned.
    where: the file, for messages.

  Raises:
    UserError: every fault of the config, one a line.
  """
  if not isinstance(config, dict):
    raise UserError(f"{where}: is a {type(config).__name__}; a config is a group of fields.")
  if faults := credential_faults(config):
    raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
  config = with_ids(anchored(config))
  name = config.get("objective", "(absent)")
  if not isinstance(name, str) or name not in MODELS:
    raise UserError(f"{where}: objective is {name!r}; it is one of {', '.join(MODELS)}.")
  training_fields = {field.name for field in dataclasses.fields(TrainingConfig)}
  others = {"objective", "model", "start", "frozen", "tokenizer", "evaluation", "few_shot", "zero_shot", "streams"}
  faults += [unknown("", field, training_fields | others) for field in config if field not in training_fields | others]
  training = build(TrainingConfig, {k: v for k, v in config.items() if k in training_fields}, "", faults)
  model = build(MODELS[name], config.get("model", {}), "model", faults)
  frozen = build(FrozenConfig, config.get("frozen", {}), "frozen", faults)
  tokenizer = build(TokenizerConfig, config.get("tokenizer", {}), "tokenizer", faults)
  evaluation = build(EvaluationConfig, config.get("evaluation", {}), "evaluation", faults)
  few_shot = build_few_shot(config.get("few_shot", {}), "few_shot", faults)
  zero_shot = build_zero_shot(config.get("zero_shot", {}), "zero_shot", faults)
  given = config.get("streams", {})
  if not isinstance(given, dict):
    raise UserError(f"{where}: streams is {given!r}; it is a group of streams, each with its fields.")
  streams = {stream: build(StreamConfig, fields, join("streams", stream), faults) for stream, fields in given.items()}
  whole, sizes = not faults, model_faults(model, "model.") if model else []
  faults += sizes + check_alone(training, model, streams)
  if whole and not sizes:
    start = config.get("start", "")
    evaluations = (evaluation, few_shot, zero_shot)
    experiment = Experiment(config, name, model, training, frozen, start, tokenizer, *evaluations, streams)
    faults += check(experiment)
  if faults:
    raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
  return experiment


def anchored(config: dict) -> dict:
  """The config with absolute paths, so that the work directory it is kept in can be used from any folder."""
  config = copy.deepcopy(config)
  groups = [
    (config.get("tokenizer", {}), "path"),
    *((config.get("frozen", {}), part) for part in ("vision", "language")),
    (config, "start"),
  ]
  few_shot = config.get("few_shot", {})
  for benchmarks in (config.get("zero_shot"), few_shot.get("benchmarks") if isinstance(few_shot, dict) else None):
    groups += [(benchmark, "folder") for benchmark in benchmarks.values()] if isinstance(benchmarks, dict) else []
  streams = config.get("streams", {})
  groups += [(stream, "source") for stream in streams.values()] if isinstance(streams, dict) else []
  for group, field in groups:
    value = group.get(field) if isinstance(group, dict) else None
    if isinstance(value, str):
      group[field] = absolute(value)
    elif isinstance(value, list | tuple):
      group[field] = tuple(absolute(each) if isinstance(each, str) else each for each in value)
  return config


def with_ids(config: dict) -> dict:
  """The config with the ids that the tokenizer's folder names, so that a run keeps those that it was trained with."""
  group = config.get("tokenizer")
  if not isinstance(group, dict) or not isinstance(path := group.get("path"), str) or not pathlib.Path(path).is_dir():
    return config
  open_ids = [name for name in ("bos", "eos") if group.get(name, 0) is None]
  return config | dict(tokenizer=group | {name: named_id(path, name) for name in open_ids})


def absolute(path: str) -> str:
  return path if path in ("", "random") else str(pathlib.Path(path).absolute())


def check_alone(
  training: TrainingConfig | None, model: ModelConfig | None, streams: dict[str, StreamConfig | None]
) -> list[str]:
  """Faults of each group of settings that could be made, whatever the others are."""
  faults = check_training(training) if training else []
  faults += name_faults(model, "model.") if model else []
  return faults + [fault for name, stream in streams.items() if stream for fault in check_stream(name, stream)]


def name_faults(config: object, prefix: str) -> Iterator[str]:
  """One line for each field of a model, or of a part of it, that has a name which is none of CHOICES."""
  for field in dataclasses.fields(config):
    name, value = f"{prefix}{field.name}", getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from name_faults(value, f"{name}.")
    elif isinstance(value, str) and value not in (choices := CHOICES.get(field.name, (value,))):
      empty = "empty, or " if "" in choices else ""
      yield f"{name} is {value!r}; it is {empty}one of {', '.join(filter(None, choices))}."


def check_training(training: TrainingConfig) -> list[str]:
  faults = check_optimizer(training.optimizer, training.total_steps)
  for field in ("total_steps", "evaluate_every"):
    if getattr(training, field) < 1:
      faults.append(f"{field} is {getattr(training, field)}; it is at least 1.")
  faults += check_checkpoints(training.checkpoint, training.evaluate_every) + check_guards(training.guard)
  faults += unknown_writers(training.writers)
  if training.frozen_dtype not in DTYPES:
    faults.append(f"frozen_dtype is {training.frozen_dtype!r}; it is one of {', '.join(DTYPES)}.")
  for kind, spread in dataclasses.asdict(training.sharding).items():
    if spread not in SPREADS:
      faults.append(f"sharding.{kind} is {spread!r}; it is one of {', '.join(SPREADS)}.")
  if training.mixture not in MIXTURES:
    faults.append(f"mixture is {training.mixture!r}; it is one of {', '.join(MIXTURES)}.")
  faults += check_patterns("trainable", training.trainable)
  faults += check_patterns("optimizer.no_decay", training.optimizer.no_decay)
  return faults + check_patterns("optimizer.adaptive_clip_on", training.optimizer.adaptive_clip_on)


def check(experiment: Experiment) -> list[str]:
  """Faults that only show when settings are held against one another."""
  model, faults = experiment.model, []
  if not experiment.frozen_config.language and isinstance(model, FlamingoConfig):
    faults.append(
      "frozen.language is empty; it names a model folder, such as `flamingo import` writes, or a language run."
    )
  if not experiment.stream_configs:
    faults.append("streams: none given; a run reads at least one.")
  for field, least in (("batches", 1), ("samples", 0)):
    if getattr(experiment.evaluation, field) < least:
      faults.append(f"evaluation.{field} is {getattr(experiment.evaluation, field)}; it is at least {least}.")
  if experiment.zero_shot and not isinstance(model, ContrastiveConfig):
    faults.append(f"zero_shot: given to a {experiment.name} run; only a contrastive one classifies so.")
  if experiment.few_shot.benchmarks and (reason := why_unable(model)):
    faults.append(f"few_shot.benchmarks: the run {reason}")
  return faults + CHECKS[type(model)](experiment)


def check_patterns(field: str, patterns: tuple[str, ...]) -> list[str]:
  faults = []
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      faults.append(f"{field}: {pattern!r} is not a regular expression ({error}).")
  return faults


def check_flamingo(experiment: Experiment) -> list[str]:
  model = experiment.model
  faults = [
    f"streams.{name}.layout is 'text'; Flamingo reads 'interleaved' and 'pairs'."
    for name, stream in experiment.stream_configs.items()
    if stream.layout == "text"
  ]
  has_tower = not isinstance(model.vision, FeaturesConfig)
  if has_tower and not experiment.frozen_config.vision:
    faults.append("frozen.vision is empty; it names a model folder, or the work directory of a contrastive run.")
  if not has_tower and experiment.frozen_config.vision == "random":
    faults.append("frozen.vision is 'random'; beside features it names the encoder that they are of, or is empty.")
  faults += check_kinds(experiment.stream_configs, has_tower) + check_packing(experiment)
  if model.language.extra_tokens < 2:
    faults.append(
      f"model.language.extra_tokens is {model.language.extra_tokens}; Flamingo adds 2, <image> and <EOC>, and a "
      "checkpoint of another implementation may have more."
    )
  every, offset, layers = model.cross_attention.every, model.cross_attention.offset, model.language.layers
  if every < 1 or offset < 0 or not gated_layers(layers, model.cross_attention):
    faults.append(f"model.cross_attention: every={every}, offset={offset} puts no layer among {layers}.")
  resampler = model.resampler
  perceiver = isinstance(resampler, PerceiverResamplerConfig)
  if perceiver and not resampler.head_width and model.vision.width % resampler.heads:
    faults.append(
      f"model.resampler.heads is {resampler.heads}, which does not divide the vision encoder's width "
      f"{model.vision.width}."
    )
  for name, stream in experiment.stream_configs.items():
    if stream.frames > model.frames:
      faults.append(
        f"streams.{name}.frames is {stream.frames}, but the resampler is made for {model.frames}. "
        f"Set streams.{name}.frames={model.frames} or model.resampler.frames={stream.frames}."
      )
  return faults


def check_packing(experiment: Experiment) -> list[str]:
  """Settings under which a pair would see what else is in its row."""
  model = experiment.model
  leaks = {
    "model.cross_attention.previous_media": model.cross_attention.previous_media,
    "model.cross_attention.blind_sees_all": model.cross_attention.blind_sees_all,
    "model.resampler.media": isinstance(model.resampler, PerceiverResamplerConfig) and model.resampler.media > 0,
  }
  return [
    f"streams.{name}.pack is True, but with {field} a pair is not told apart from the others in its row."
    for name, stream in experiment.stream_configs.items()
    for field, leaking in leaks.items()
    if stream.pack and leaking
  ]


def check_contrastive(experiment: Experiment) -> list[str]:
  model, trainable, faults = experiment.model, experiment.training.trainable, []
  if not 0 <= model.label_smoothing < 1 or (model.label_smoothing and model.loss != "softmax"):
    faults.append(
      f"model.label_smoothing is {model.label_smoothing}; it is a share below 1, and 0 for another loss than 'softmax'."
    )
  if model.temperature < LOWEST_TEMPERATURE:
    faults.append(f"model.temperature is {model.temperature}; it is at least {LOWEST_TEMPERATURE}.")
  if isinstance(model.vision, FeaturesConfig):
    faults.append("model.vision.family is 'features'; contrastive training has an encoder of its own.")
  if vision := experiment.frozen_config.vision:
    faults.append(
      f"frozen.vision is {vision!r}; contrastive training trains it. What it goes on from is named by start."
    )
  fresh = not experiment.frozen_config.language and not check_patterns("trainable", trainable)
  if fresh and not is_trainable("text/embeddings", trainable):
    faults.append(
      "frozen.language is empty, and trainable leaves out text/embeddings. Name a model folder, such as `flamingo "
      "import` writes, or train the embeddings: '^text/'."
    )
  for name, stream in experiment.stream_configs.items():
    if stream.layout != "pairs":
      faults.append(f"streams.{name}.layout is {stream.layout!r}; contrastive training reads 'pairs'.")
    if stream.medium == "features":
      faults.append(f"streams.{name}.medium is 'features'; contrastive training reads pictures.")
    faults += [
      f"streams.{name}.{field} is {getattr(stream, field)}; contrastive training looks at 1, the first."
      for field in ("media", "frames")
      if getattr(stream, field) > 1
    ]
    if stream.prompt:
      faults.append(f"streams.{name}.prompt is {stream.prompt!r}; contrastive training reads captions alone.")
    if stream.pack:
      faults.append(f"streams.{name}.pack is True; contrastive training matches one pair a row.")
    if stream.length > experiment.model.length:
      faults.append(f"streams.{name}.length is {stream.length}, but model.length is {experiment.model.length}.")
  return faults


def check_language(experiment: Experiment) -> list[str]:
  language, faults = experiment.model.language, []
  for part, source in dataclasses.asdict(experiment.frozen_config).items():
    if source:
      faults.append(
        f"frozen.{part} is {source!r}; language training freezes nothing. What it goes on from is named by start."
      )
  if language.extra_tokens:
    faults.append(
      f"model.language.extra_tokens is {language.extra_tokens}; language training has 0, and Flamingo adds its own."
    )
  longest = language.position_rows - language.position_offset
  for name, stream in experiment.stream_configs.items():
    if stream.layout != "text":
      faults.append(f"streams.{name}.layout is {stream.layout!r}; language training reads 'text'.")
    if language.positions == "learned" and stream.length > longest:
      faults.append(f"streams.{name}.length is {stream.length}, but the model has positions for {longest} tokens.")
  return faults


CHECKS = {FlamingoConfig: check_flamingo, ContrastiveConfig: check_contrastive, LanguageModelConfig: check_language}
