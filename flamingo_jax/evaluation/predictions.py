"""What an evaluation leaves on disk: predictions as they come, each file with its receipt, and scores."""

import json
import os
import pathlib
from collections.abc import Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.training.workdir import differing

PREDICTIONS, SCORES = "predictions", "scores.json"


def predictions_path(folder: pathlib.Path, setting: str) -> pathlib.Path:
  return folder / PREDICTIONS / f"{setting}.jsonl"


def open_predictions(path: pathlib.Path, receipt: dict) -> int:
  """Begins a file of predictions with its receipt, or finds out how far it has come.

  Args:
    path: of the file; a last line that a kill cut short is taken off.
    receipt: what the predictions are of, as JSON has it.

  Returns:
    How many predictions are there.

  Raises:
    UserError: it holds predictions of something else, or is damaged.
  """
  receipt = json.loads(json.dumps(receipt))
  if path.exists():
    with path.open("r+b") as file:
      file.truncate(file.read().rfind(b"\n") + 1)
  if not path.exists() or not path.stat().st_size:
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, [dict(receipt=receipt)])
    return 0
  there, lines = read_predictions(path)
  changes = differing(there, receipt)
  if changes:
    raise UserError(
      f"{path} holds predictions of another evaluation:\n"
      + "\n".join(f"  {name}: {was!r} there, {now!r} here" for name, was, now in changes)
      + "\nChoose another --out, or delete the file."
    )
  return len(lines)


def append(path: pathlib.Path, lines: Sequence[dict]) -> None:
  """Adds lines that survive whatever comes next."""
  with path.open("ab") as file:
    file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    file.flush()
    os.fsync(file.fileno())


def read_predictions(path: pathlib.Path) -> tuple[dict, list[dict]]:
  """The receipt of a file and its predictions; a last line that is being written is left out.

  Raises:
    UserError: it cannot be read, or is not such a file.
  """
  try:
    text = path.read_text("utf-8")
    first, *lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    receipt = first["receipt"]
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path}: is not a file of predictions, or damaged ({error}). Delete it and evaluate again.") from (
      error
    )
  return receipt, lines


def answered(lines: Sequence[dict]) -> list[dict]:
  """Without those of queries whose film could not be decoded, which have no prediction."""
  return [line for line in lines if "unreadable" not in line]


def read_scores(folder: str | pathlib.Path) -> list[dict]:
  """All scores of an evaluation, in the order they were found.

  Raises:
    UserError: the folder is not one of an evaluation, or the file is damaged.
  """
  path = pathlib.Path(folder) / SCORES
  if not path.is_file():
    raise UserError(f"{path}: missing. Give a folder that `flamingo evaluate` wrote.")
  try:
    return json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}). Delete it and evaluate again: predictions are kept.") from error


def write_score(folder: pathlib.Path, score: dict) -> None:
  """Adds a setting's score to the others, in the place of one it had before."""
  others = read_scores(folder) if (folder / SCORES).exists() else []
  kept = [other for other in others if other["setting"] != score["setting"]]
  unfinished = folder / (SCORES + ".new")
  with unfinished.open("w", encoding="utf-8") as file:
    json.dump([*kept, score], file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(folder / SCORES)
