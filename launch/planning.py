"""`flamingo plan`: what a config will need, before it runs. Only the config is read: no data, no weights."""

import json

from rich.console import Console
from rich.table import Table

from configs import published
from flamingo_jax.planning.parameters import Comparison, compare, parameter_counts
from launch.config import PACKAGED, find_config, load_config
from launch.experiment import read_experiment

WORTH_A_WORD = 5  # percent by which a count differs from the published one


def plan_parameters(path: str, overrides: dict[str, str], *, as_json: bool) -> None:
  """Prints a model's parameters by part, beside the published figures where the config is one of a published model.

  Raises:
    UserError: the config is not as it should be.
  """
  experiment = read_experiment(load_config(path, overrides), path)
  name = preset(path)
  counts = parameter_counts(experiment.objective(), experiment.training.trainable)
  rows = compare(counts, published.COUNTS.get(name, {}))
  changed = any(field.startswith("model.") for field in overrides)
  notes = explanations(rows, {} if changed else published.NOTES.get(name, {}))
  if as_json:
    print(json.dumps(described(path, rows, notes)))
    return
  console = Console(highlight=False)
  console.print(table(path, rows))
  for part, note in notes.items():
    console.print(f"{part}: {note}", markup=False)


def preset(path: str) -> str:
  """The name of a config that comes with the package; empty for others, whatever they are called."""
  found = find_config(path).resolve()
  return found.stem if found.parent == PACKAGED.resolve() else ""


def explanations(rows: list[Comparison], known: dict[str, str]) -> dict[str, str]:
  """Part -> why our count is not the published one, where the difference is worth a word."""
  differing = [row.part for row in rows if row.difference is not None and abs(row.difference) > WORTH_A_WORD]
  return {part: known.get(part, "the command line changed the model.") for part in differing}


def described(path: str, rows: list[Comparison], notes: dict[str, str]) -> dict:
  """The same as the table and its notes, with exact numbers."""
  parts = {
    row.part: dict(
      trained=row.trained,
      frozen=row.frozen,
      count=row.count,
      published=None if row.published is None else int(row.published),
      difference_percent=None if row.difference is None else round(row.difference, 2),
    )
    for row in rows
  }
  return dict(config=path, parts=parts, notes=notes)


def table(path: str, rows: list[Comparison]) -> Table:
  compared = any(row.published is not None for row in rows)
  result = Table(title=f"Parameters of {path}", title_justify="left")
  result.add_column("part")
  for column in ("trained", "frozen", "ours", *(("paper", "difference") if compared else ())):
    result.add_column(column, justify="right")
  for row in rows:
    cells = [short(row.trained), short(row.frozen), short(row.count)]
    if compared:
      cells += ["", ""] if row.published is None else [short(row.published), f"{row.difference:+.1f}%"]
    result.add_row(row.part, *cells, end_section=row is rows[-2])
  return result


def short(count: float) -> str:
  """Four digits and a unit: 1_157_824_560 is 1.158B."""
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
    if count >= size:
      return f"{count / size:.4g}{unit}"
  return f"{count:g}"
