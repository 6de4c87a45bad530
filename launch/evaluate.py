"""`flamingo evaluate`: the benchmarks of a config, put to a trained model; and two such evaluations side by side."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.predictions import read_scores
from flamingo_jax.evaluation.runner import evaluate
from flamingo_jax.evaluation.settings import settings_of
from flamingo_jax.interop.model_folder import content_hash, load_model
from flamingo_jax.models.flamingo import FlamingoConfig, grouped, initialize
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parallel.fit import complete
from flamingo_jax.parallel.mesh import AXES, MeshConfig, make_mesh, parameter_shardings, place
from launch.config import build, load_config
from launch.experiment import TokenizerConfig
from launch.few_shot import FewShot, build_few_shot, make_model, read_benchmarks, why_unable
from launch.generate import open_run, read_trained
from launch.pretrained import as_config, is_model_folder, open_tokenizer
from launch.report.scores import write_scores_page

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A checked evaluation config."""

  raw: dict
  few_shot: FewShot
  control: str
  mesh: MeshConfig
  tokenizer: TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A model to evaluate.

  Attributes:
    config: of the model.
    parameters: all of them by path, host arrays.
    tokenizer: of the model.
    identity: which one it is: step, and hashes of what it is made of.
  """

  config: FlamingoConfig
  parameters: dict[str, np.ndarray]
  tokenizer: Tokenizer
  identity: dict


def read_evaluation(config: dict, where: str, only: Sequence[str] = ()) -> Evaluation:
  """Checks an evaluation config, of its benchmarks those named; all, if none is. Raises UserError with every fault."""
  faults: list[str] = []
  rest = {name: value for name, value in config.items() if name not in ("control", "mesh", "tokenizer")}
  if only:
    rest["benchmarks"] = chosen(rest.get("benchmarks"), only, where)
  mesh = build(MeshConfig, config.get("mesh", {}), "mesh", faults)
  tokenizer = build(TokenizerConfig, config.get("tokenizer", {"path": ""}), "tokenizer", faults)
  control = config.get("control", "")
  few_shot = build_few_shot(rest, "", faults, control)
  if few_shot and not few_shot.benchmarks:
    faults.append("benchmarks: none given; an evaluation has at least one.")
  if few_shot and mesh:
    faults += batch_faults(few_shot.config.batch_size, mesh)
  if faults:
    raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
  return Evaluation(config, few_shot, control, mesh, tokenizer)


def batch_faults(rows: int, mesh: MeshConfig) -> list[str]:
  sizes = complete(dataclasses.asdict(mesh), jax.device_count())
  if sizes is None:
    asked = " x ".join(str(getattr(mesh, axis)) for axis in AXES)
    return [f"mesh: {asked} does not fit {jax.device_count()} devices; -1 along one axis takes all that are left."]
  parts = sizes["replica"] * sizes["fsdp"]
  if rows % parts == 0:
    return []
  return [f"batch_size is {rows}; mesh.replica and mesh.fsdp cut it into {parts} parts. Set a multiple of {parts}."]


def evaluate_checkpoint(
  path: str, overrides: dict[str, str], checkpoint: str, out: str | None, control: str, only: list[str]
) -> None:
  """Evaluates the benchmarks of a config, prints their scores and writes the report.

  Args:
    path: of the config.
    overrides: of its fields.
    checkpoint: a work directory, or a model folder.
    out: the folder of predictions, scores and report; None: below the work directory.
    control: of CONTROLS; empty: as the config says.
    only: names of benchmarks; empty: all.

  Raises:
    UserError: something is wrong with the config, the model or a data set; every fault is told.
  """
  raw = load_config(path, overrides)
  raw |= {"control": control} if control else {}
  evaluation, told = with_settings(read_evaluation(raw, path, only), path)
  benchmarks = read_benchmarks(evaluation.few_shot)
  model = open_checkpoint(checkpoint, evaluation.tokenizer)
  folder = out_folder(checkpoint, out, path)
  mesh = make_mesh(evaluation.mesh)
  leads = jax.process_index() == 0
  if leads:
    write_config(folder, evaluation.raw | dict(checkpoint=dict(path=os.path.abspath(checkpoint), **model.identity)))
  with jax.set_mesh(mesh), EvaluationProgress(leads) as progress:
    if told:
      progress.console.print(told, highlight=False, soft_wrap=True)
    answering = make_model(model.config, on_mesh(model, mesh), model.tokenizer, evaluation.few_shot.config)
    config = evaluation.few_shot.config
    films = dict(frames=config.frames, frames_per_second=config.frames_per_second)
    about = dict(checkpoint=model.identity, tokenizer=described(model.tokenizer), films=films)
    for benchmark in benchmarks:
      shared = dict(control=evaluation.control, wordnet=config.wordnet, tell=progress.tell)
      evaluate(answering, benchmark, folder, about, **shared)
  if leads:
    progress.console.print(scores_table(read_scores(folder)))
    progress.console.print(f"report: {write_scores_page(folder)}", highlight=False)


def chosen(benchmarks: object, only: Sequence[str], where: str) -> dict:
  """Some of a config's benchmarks."""
  there = benchmarks if isinstance(benchmarks, dict) else {}
  if unknown := [name for name in only if name not in there]:
    raise UserError(f"--benchmark is {unknown[0]!r}; {where} has {', '.join(there) or 'none'}.")
  return {name: fields for name, fields in there.items() if name in only}


def with_settings(evaluation: Evaluation, where: str) -> tuple[Evaluation, str]:
  """The evaluation with those of its benchmarks that have settings under its control, and a line on what is left out.

  Raises:
    UserError: no benchmark has any.
  """
  there, control = evaluation.few_shot.benchmarks, evaluation.control
  settings = {name: settings_of(name, config, control) for name, config in there.items()}
  kept = {name: config for name, config in there.items() if settings[name]}
  why = f"control {control!r} leaves out 0 shots, where one picture alone cannot change places"
  if not kept:
    raise UserError(f"{where}: {why}. {', '.join(there)}: no other shots are set. Set some, or take another control.")
  without = ", ".join(name for name in there if name not in kept)
  fewer = any(len(settings[name]) < len(config.seeds) * len(config.shots) for name, config in there.items())
  told = f"{why}{f'; nothing is left of {without}' if without else ''}." if fewer else ""
  return dataclasses.replace(evaluation, few_shot=dataclasses.replace(evaluation.few_shot, benchmarks=kept)), told


def open_checkpoint(path: str, tokenizer: TokenizerConfig) -> Checkpoint:
  """The newest checkpoint of a run, or an imported Flamingo.

  Raises:
    UserError: it is neither, or cannot see.
  """
  if is_model_folder(path):
    return open_folder(path, tokenizer)
  experiment = open_run(path)
  if reason := why_unable(experiment.model):
    raise UserError(f"{path}: {reason}")
  trained = read_trained(experiment, path)
  own = content_hash({name: trained.parameters[name] for name in trained.trained})
  identity = dict(step=trained.step, hashes=trained.hashes | dict(trained=own))
  return Checkpoint(experiment.model, trained.parameters, experiment.tokenizer(), identity)


def open_folder(path: str, tokenizer: TokenizerConfig) -> Checkpoint:
  stored, described = load_model(pathlib.Path(path))
  if described.get("kind") != "flamingo":
    raise UserError(f"{path}: holds a model of kind {described.get('kind')!r}; a Flamingo answers prompts.")
  faults: list[str] = []
  config = build(FlamingoConfig, as_config(FlamingoConfig, described["config"], path), "", faults)
  if faults:
    raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
  words = open_tokenizer(tokenizer.path or path, tokenizer.bos, tokenizer.eos, config.language.vocabulary)
  return Checkpoint(config, grouped(stored, config), words, dict(step=0, hashes=dict(model=described["hash"])))


def described(tokenizer: Tokenizer) -> dict:
  """What of a tokenizer could change predictions."""
  return dict(hash=tokenizer.fingerprint(), bos=tokenizer.bos, eos=tokenizer.eos)


def on_mesh(model: Checkpoint, mesh) -> Parameters:
  """The parameters on the devices."""
  boxed = jax.eval_shape(lambda key: initialize(model.config, key), jax.random.key(0))
  shardings = parameter_shardings(boxed, mesh)
  return {path: place(array, shardings[path]) for path, array in model.parameters.items()}


def out_folder(checkpoint: str, out: str | None, path: str) -> pathlib.Path:
  if out is None and is_model_folder(checkpoint):
    raise UserError(f"--out is missing: {checkpoint} is a model folder, which is never written to.")
  return pathlib.Path(out or pathlib.Path(checkpoint) / "evaluations" / pathlib.Path(path).stem)


def write_config(folder: pathlib.Path, config: dict) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  unfinished = folder / "config.json.new"
  unfinished.write_text(json.dumps(config, indent=2))
  unfinished.replace(folder / "config.json")


class EvaluationProgress:
  """A line for each setting: live on a terminal, plain in a log."""

  def __init__(self, active: bool):
    self.console = Console(quiet=not active)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
    self.tasks, self.last_plain = {}, 0.0

  def __enter__(self):
    self.progress.start()
    return self

  def __exit__(self, *_):
    self.progress.stop()

  def tell(self, setting: str, done: int, count: int) -> None:
    """So many queries of a setting are done."""
    if setting not in self.tasks:
      self.tasks[setting] = self.progress.add_task(setting, total=count)
    self.progress.update(self.tasks[setting], completed=done)
    now = time.monotonic()
    if not self.console.is_terminal and (done == count or now - self.last_plain > PLAIN_EVERY):
      self.last_plain = now
      self.console.print(f"{setting} {done}/{count}", highlight=False)


def scores_table(scores: list[dict]) -> Table:
  """Scores as the paper gives them, times 100."""
  shown = Table("setting", "metric", "score", "95% interval", "queries")
  for line in scores:
    known = line["score"] is not None
    score = f"{100 * line['score']:.1f}" if known else "answers kept back"
    interval = f"{100 * line['low']:.1f} to {100 * line['high']:.1f}" if known else ""
    shown.add_row(line["setting"], line["metric"], score, interval, str(line["examples"]))
  return shown
