"""A folder that `flamingo evaluate` wrote, as its pages read it: one setting after another, so that all fit."""

import dataclasses
import json
import pathlib

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.compare import KEY, Finished
from flamingo_jax.evaluation.predictions import (
  PREDICTIONS,
  SCORES,
  answered,
  predictions_path,
  read_predictions,
  read_scores,
)

CONFIG = "config.json"
FIELDS = (*KEY, "setting", "benchmark", "metric", "examples", "absent", "score")  # of each object of scores.json


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What a folder holds.

  Attributes:
    folder: its path.
    config: the whole of config.json.
    results: objects of scores.json.
    unfinished: settings with predictions, but not yet a score.
  """

  folder: pathlib.Path
  config: dict
  results: list[dict]
  unfinished: tuple[str, ...]

  def finished(self, result: dict) -> Finished:
    """One of the results with its predictions.

    Raises:
      UserError: these are not there, damaged, or not of the same examples.
    """
    path = predictions_path(self.folder, result["setting"])
    receipt, lines = read_predictions(path)
    return Finished(str(path), result, receipt, answered(lines))

  @property
  def checkpoint(self) -> str:
    """Which model was evaluated, in words."""
    checkpoint = self.config["checkpoint"]
    step = checkpoint.get("step")
    return redacted(f"{checkpoint['path']}" + (f", step {step:,}" if step is not None else ""))


def open_evaluation(folder: str | pathlib.Path) -> Evaluation:
  """Reads what an evaluation found so far.

  Raises:
    UserError: the folder holds none, or none of its settings is finished.
  """
  folder = pathlib.Path(folder)
  config = read_config(folder / CONFIG)
  begun = sorted(path.stem for path in (folder / PREDICTIONS).glob("*.jsonl"))
  results = read_scores(folder) if (folder / SCORES).is_file() else []
  faults = [
    f"entry {number} lacks {name}" for number, each in enumerate(results) for name in FIELDS if name not in each
  ]
  if faults:
    raise UserError(f"{folder / SCORES}: {'; '.join(faults)}. Delete it and evaluate again: predictions are kept.")
  done = {result["setting"] for result in results}
  unfinished = tuple(name for name in begun if name not in done)
  if not results:
    raise UserError(
      f"{folder}: none of its settings is finished ({', '.join(unfinished) or 'none is begun'}). "
      "Let `flamingo evaluate` go on with it."
    )
  return Evaluation(folder, config, results, unfinished)


def read_config(path: pathlib.Path) -> dict:
  try:
    config = json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise UserError(
      f"{path.parent}: no evaluation is there ({path.name}: {error.strerror}). Give a folder that `flamingo evaluate` "
      "wrote."
    ) from error
  except ValueError as error:
    raise UserError(
      f"{path}: not readable as JSON ({error}). Restore it from the config that was evaluated."
    ) from error
  if not isinstance(config, dict) or not isinstance(config.get("checkpoint"), dict):
    raise UserError(
      f"{path}: it names no checkpoint, so this is no evaluation. Give a folder that `flamingo evaluate` wrote."
    )
  return config
