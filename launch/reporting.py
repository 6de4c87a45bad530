"""`flamingo report`: gathers a run's record, a few rows as the model sees them, and what it writes."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import yaml

from data_pipelines.stream import Batch, Stream
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.credentials import redacted, redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.planning.parameters import parameter_counts
from flamingo_jax.training import goodput
from flamingo_jax.training.checkpoints import load_trainable, saved_steps
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.tally import by_host
from flamingo_jax.training.workdir import read_history
from launch.experiment import Experiment
from launch.generate import open_run, trained_parameters, write
from launch.report.page import Generation, ParameterRow, Report, TrainingExample, render
from launch.report.templates import write_page

NEW_TOKENS = 24  # of a sample
EARLIER = 3  # checkpoints before the newest that are sampled from
SHOWN_HOSTS = 8


def write_report(workdir: str | pathlib.Path, out: str | pathlib.Path | None = None) -> pathlib.Path:
  """Writes the report of a run and returns its path. Its curves need its record alone; what else is gone, it says.

  Args:
    workdir: of the run.
    out: the file to write; None: `report.html` in the work directory.

  Raises:
    UserError: the directory holds no run, or the disk refuses.
  """
  workdir = pathlib.Path(workdir)
  experiment = open_run(workdir)
  metrics = read_metrics(workdir)
  examples, no_examples = shown_or_why(lambda: training_examples(experiment, experiment.tokenizer()))
  samples, no_samples = shown_or_why(lambda: generations(experiment, workdir, experiment.tokenizer()))
  missing = {"Training examples": no_examples, "Generations": no_samples}
  page = render(
    Report(
      title=redacted(f"{experiment.name}: {workdir}"),
      metrics=metrics,
      examples=examples,
      generations=samples,
      parameters=parameter_rows(experiment),
      config=yaml.safe_dump(json.loads(json.dumps(redacted_config(experiment.raw))), sort_keys=False),
      streams=tuple(experiment.stream_configs),
      facts=facts(experiment, metrics, read_history(workdir)),
      missing={what: why for what, why in missing.items() if why},
    )
  )
  return write_page(pathlib.Path(out) if out else workdir / "report.html", page)


def shown_or_why(gather: Callable[[], tuple]) -> tuple[tuple, str]:
  """What is gathered, or nothing, and why: a checkpoint, a frozen part or data that is not there."""
  try:
    return gather(), ""
  except UserError as error:
    return (), redacted(str(error))


def facts(experiment: Experiment, metrics: list[dict], history: list[dict]) -> dict[str, str]:
  """The run in a few words."""
  seconds = round(sum(line["seconds"] for line in metrics))
  return (
    {
      "objective": experiment.name,
      "steps": f"{len(metrics)} of {experiment.training.total_steps}",
      "time in steps": f"{seconds // 60} min {seconds % 60} s",
      "tokens": f"{sum(line['tokens'] for line in metrics):,}",
      "seed": str(experiment.training.seed),
    }
    | time_spent(metrics, history)
    | speed(metrics)
    | devices(metrics, history)
    | slowest_hosts(metrics)
  )


def time_spent(metrics: list[dict], history: list[dict]) -> dict[str, str]:
  """Where the time of all starts went."""
  account = goodput.spent(metrics, history)
  total = sum(account.values()) or 1.0
  lost = sorted(((seconds / total, cause) for cause, seconds in account.items() if cause != "useful"), reverse=True)
  starts = sum(event["event"] == "start" for event in history)
  return {
    "goodput": f"{goodput.goodput(account):.0%} of {total / 60:.1f} min in {starts} start{'s' if starts != 1 else ''}",
    "lost to": ", ".join(f"{cause.replace('_', ' ')} {share:.0%}" for share, cause in lost if share >= 0.005)
    or "nothing",
  }


def speed(metrics: list[dict]) -> dict[str, str]:
  """Tokens a second in the middle of all steps, and the share of their time in which the devices had no input."""
  if not metrics:
    return {}
  seconds = sum(line["seconds"] for line in metrics)
  waited = sum(line["seconds"] * line["input_wait"] for line in metrics)
  return {
    "tokens per second": f"{np.median([line['tokens_per_second'] for line in metrics]):,.0f}",
    "input wait": f"{waited / seconds:.1%} of the time in steps",
  }


def devices(metrics: list[dict], history: list[dict]) -> dict[str, str]:
  """What the run was last started on, and how much of its memory was in use at most, where devices tell."""
  starts = [event for event in history if event["event"] == "start"]
  memory = max((line.get("device_memory", 0) for line in metrics), default=0)
  told = {"devices": starts[-1]["devices"]} if starts else {}
  return told | ({"device memory": f"{memory / 2**30:.2f} GiB at most"} if memory else {})


def slowest_hosts(metrics: list[dict]) -> dict[str, str]:
  """Of a run on several hosts, those that the others wait for."""
  names = [name for name in metrics[-1] if name.startswith("host_seconds/")] if metrics else []
  lines = [line for line in metrics if all(name in line for name in names)]
  times = by_host(np.asarray([[line[name] for name in names] for line in lines])) if names else []
  return {
    f"host {time.host}": f"slowest in {time.slowest:.0%} of steps; mean {time.mean:.3f} s, at most {time.worst:.3f} s"
    for time in times[:SHOWN_HOSTS]
  }


def parameter_rows(experiment: Experiment) -> tuple[ParameterRow, ...]:
  counts = parameter_counts(experiment.objective(), experiment.training.trainable)
  return tuple(ParameterRow(part, trained, frozen) for part, (trained, frozen) in counts.items())


def training_examples(experiment: Experiment, tokenizer: Tokenizer) -> tuple[TrainingExample, ...]:
  """The first rows of every stream's first training batch."""
  examples = []
  for name, stream in experiment.streams("train", training=True).items():
    batch = next(stream.batches(0))
    rows = min(experiment.evaluation.samples, stream.config.batch_size)
    examples += [training_example(name, batch, row, tokenizer) for row in range(rows)]
  return tuple(examples)


def training_example(stream: str, batch: Batch, row: int, tokenizer: Tokenizer) -> TrainingExample:
  present = batch["segments"][row] > 0
  return TrainingExample(
    stream=stream,
    tokens=tuple(tokenizer.pieces(batch["tokens"][row][present])),
    loss_weights=tuple(float(weight) for weight in batch["loss_weights"][row][present]),
    media_index=tuple(int(index) for index in batch["media_index"][row][present]),
    media=pictures(batch, row),
  )


def pictures(batch: Batch, row: int) -> tuple[np.ndarray, ...]:
  """The media that a row's tokens refer to, uint8 [F, H, W, 3] each, without padding frames.

  A medium that could not be decoded shows as one black frame: it keeps its number. Features show as a gray one.
  """
  slots = int(batch["media_index"][row].max()) + 1
  if batch["media"].dtype != np.uint8:
    return (np.full((1, 8, 8, 3), 128, np.uint8),) * slots
  media, mask = batch["media"][row, :slots], batch["media_mask"][row, :slots]
  return tuple(frames[exists] if exists.any() else frames[:1] for frames, exists in zip(media, mask, strict=True))


def generations(experiment: Experiment, workdir: pathlib.Path, tokenizer: Tokenizer) -> tuple[Generation, ...]:
  """What the model writes for held-out rows, with their media and with none, and what it wrote at earlier checkpoints.

  Nothing for other objectives, or where no samples are asked for.
  """
  if not isinstance(experiment.model, FlamingoConfig) or not experiment.evaluation.samples:
    return ()
  steps = saved_steps(workdir)
  parameters = trained_parameters(experiment, workdir)
  prompts = {
    name: stream_prompts(stream, experiment.evaluation.samples, tokenizer)
    for name, stream in experiment.streams("heldout", training=False).items()
  }

  def texts(parameters: Parameters, *, blind: bool = False) -> dict[str, list[str]]:
    return {name: continued(experiment, parameters, each, tokenizer, blind) for name, each in prompts.items()}

  seeing, unseeing = texts(parameters), texts(parameters, blind=True)
  before = {}
  for step in spread(steps[:-1], EARLIER):
    parameters |= jax.device_put(load_trainable(workdir, step)[0])  # one checkpoint is held at a time
    before[step] = texts(parameters)
  return tuple(
    Generation(
      stream=name,
      prompt="".join(tokenizer.pieces(each.cut["tokens"][row][each.cut["segments"][row] > 0])),
      media=pictures(each.whole, row),
      text=seeing[name][row],
      reference=tokenizer.decode(each.references[row]),
      without_media=unseeing[name][row],
      step=steps[-1],
      earlier=tuple((step, written[name][row]) for step, written in before.items()),
    )
    for name, each in prompts.items()
    for row in range(len(each.references))
  )


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Held-out rows of a stream: whole, cut where the model is to go on, and the tokens that were cut off."""

  whole: Batch
  cut: Batch
  references: list[np.ndarray]


def stream_prompts(stream: Stream, most: int, tokenizer: Tokenizer) -> Prompts:
  """The first rows of a stream, so many at most."""
  rows = list(itertools.islice(stream.rows(), min(most, len(stream.sources))))
  whole = {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != "faults"}
  return Prompts(whole, *cut_prompts(whole, stream.config.layout, tokenizer))


def continued(
  experiment: Experiment, parameters: Parameters, prompts: Prompts, tokenizer: Tokenizer, blind: bool
) -> list[str]:
  """What the model writes after each prompt; `blind`: without their media."""
  hidden = {"media_mask": np.zeros_like(prompts.cut["media_mask"])} if blind else {}
  written = write(experiment.model, parameters, prompts.cut | hidden, tokenizer, NEW_TOKENS)
  return [tokenizer.decode(tokens) for tokens in written]


def spread(steps: list[int], most: int) -> list[int]:
  """At most so many of the steps, evenly spread, the first among them."""
  places = np.linspace(0, len(steps), min(most, len(steps)), endpoint=False)
  return [steps[int(place)] for place in places]


def cut_prompts(batch: Batch, layout: str, tokenizer: Tokenizer) -> tuple[Batch, list[np.ndarray]]:
  """Rows cut where the model is to go on: pairs after their `<image>`, pages in the middle; and what was cut off."""
  lengths = (batch["segments"] > 0).sum(axis=1)
  ends = np.full_like(lengths, 2) if layout == "pairs" else np.maximum(lengths // 2, 1)
  places = np.arange(batch["tokens"].shape[1])
  kept = places < ends[:, None]
  width = int(ends.max())
  cut = {name: np.where(kept, batch[name], 0)[:, :width] for name in ("tokens", "segments", "loss_weights")}
  index = np.where(kept, batch["media_index"], -1)[:, :width]
  references = [tokens[end : end + NEW_TOKENS] for tokens, end in zip(batch["tokens"], ends, strict=True)]
  return batch | cut | {"media_index": index}, references
