"""Two evaluations side by side, setting by setting and example by example: a table, and a page."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation import compare as pairing
from flamingo_jax.evaluation.compare import KEY, Comparison, Finished
from launch.report.evaluations import Evaluation, open_evaluation
from launch.report.examples import Answer, ShownPrompt, answer, counted, shown_prompt
from launch.report.page import MEDIA_COLORS
from launch.report.scores import change, direction, percent
from launch.report.templates import template, write_page

MOST_SHOWN = 24  # examples of a setting in the page
EACH_WAY = 10  # of these so many that improved most, and as many that got worse most, before the next by change


@dataclasses.dataclass(frozen=True)
class ShownPair:
  """One example in both evaluations.

  Attributes:
    id: of the example.
    change: of its score; None: it has none.
    prompts: one if both were asked the same, else the first's and the second's.
    answers: of the first and of the second.
    references: with how often each was given.
  """

  id: str
  change: float | None
  prompts: tuple[ShownPrompt, ...]
  answers: tuple[Answer, Answer]
  references: list[tuple[str, int]]

  @property
  def winner(self) -> str:
    """Whose score is higher: "a", "b", or neither."""
    return "" if not self.change else "b" if self.change > 0 else "a"


@dataclasses.dataclass(frozen=True)
class ComparedSetting:
  """A setting in both evaluations.

  Attributes:
    results: its objects of scores.json.
    comparison: what changed.
    all_or_nothing: whether each example's score is 0 or 1.
    shown: the examples that stand in the page.
  """

  results: tuple[dict, dict]
  comparison: Comparison
  all_or_nothing: bool
  shown: tuple[ShownPair, ...]

  @property
  def name(self) -> str:
    """Its name, or both if they differ."""
    return " / ".join(dict.fromkeys(result["setting"] for result in self.results))

  @property
  def counts(self) -> dict[str, int]:
    """How many of the shared examples either won."""
    changes = self.comparison.changes
    return {} if changes is None else {"a": int((changes < 0).sum()), "b": int((changes > 0).sum())}

  @property
  def shown_counts(self) -> dict[str, int]:
    return {side: sum(pair.winner == side for pair in self.shown) for side in "ab"}


@dataclasses.dataclass(frozen=True)
class ComparedEvaluations:
  """Two evaluations; `notes` are what was left out of the comparison and why."""

  evaluations: tuple[Evaluation, Evaluation]
  settings: tuple[ComparedSetting, ...]
  notes: tuple[str, ...]


def compare(a: str, b: str, out: str | None) -> pathlib.Path:
  """Prints what changed from one evaluation to another, writes the page, and returns its path.

  Args:
    a: the folder of the first.
    b: the folder of the second.
    out: the file to write; None: comparison.html, here.

  Raises:
    UserError: a folder holds no evaluation, they have no setting in common, or the disk refuses.
  """
  compared = compare_evaluations(a, b)
  console = Console(highlight=False)
  console.print(comparison_table(compared))
  for note in all_notes(compared):
    console.print(escape(note), soft_wrap=True)
  return write_page(pathlib.Path(out or "comparison.html"), render(compared))


def compare_evaluations(a: str | pathlib.Path, b: str | pathlib.Path) -> ComparedEvaluations:
  """Reads both, and pairs their settings and the examples of these.

  Raises:
    UserError: a folder holds no evaluation, or they have no setting in common.
  """
  first, second = open_evaluation(a), open_evaluation(b)
  matching = pairing.match_settings(first.results, second.results)
  if not matching.pairs:
    alone = "\n".join(
      f"  {side.folder}: {', '.join(names)}" for side, names in zip((first, second), matching.alone, strict=True)
    )
    raise UserError(
      f"{a} and {b} have no setting in common. Settings are the same where {', '.join(KEY)} are, or all but one:\n"
      + alone
    )
  settings = tuple(compared_setting(first.finished(here), second.finished(there)) for here, there in matching.pairs)
  return ComparedEvaluations((first, second), settings, tuple(left_out(first, second, matching)))


def left_out(first: Evaluation, second: Evaluation, matching: pairing.Matching) -> list[str]:
  """What must be said of the settings as a whole."""
  notes = []
  if matching.varied:
    here, there = (sorted({str(pair[side][matching.varied]) or "none" for pair in matching.pairs}) for side in (0, 1))
    notes.append(
      f"No settings agree in all; these agree in all but {matching.varied}: {here[0]} in A, {there[0]} in B."
    )
  for letter, evaluation, alone in zip("AB", (first, second), matching.alone, strict=True):
    if alone:
      notes.append(f"Only in {letter}: {', '.join(alone)}.")
    if evaluation.unfinished:
      notes.append(f"Not finished in {letter}: {', '.join(evaluation.unfinished)}.")
  return notes


def compared_setting(first: Finished, second: Finished) -> ComparedSetting:
  comparison = pairing.compare(first, second)
  own = [scores for scores in (first.own_scores, second.own_scores) if scores is not None]
  return ComparedSetting(
    results=(first.result, second.result),
    comparison=comparison,
    all_or_nothing=len(own) == 2 and all(np.isin(scores, (0, 1)).all() for scores in own),
    shown=tuple(shown_pair(first, second, *comparison.shared[place]) for place in chosen(comparison)),
  )


def chosen(comparison: Comparison) -> list[int]:
  """Which of the shared examples stand in the page, the largest change first.

  EACH_WAY of those that improved most and of those that got worse most, and then the next by change; of equal changes
  those whose predictions differ.
  """
  changes = np.zeros(len(comparison.shared)) if comparison.changes is None else comparison.changes
  order = np.lexsort((~comparison.differing, -np.abs(changes)))
  better = [place for place in order if changes[place] > 0][:EACH_WAY]
  worse = [place for place in order if changes[place] < 0][:EACH_WAY]
  kept = {*better, *worse}
  rest = [place for place in order if place not in kept]
  kept |= {*rest[: MOST_SHOWN - len(kept)]}
  return [place for place in order if place in kept]


def shown_pair(first: Finished, second: Finished, here: int, there: int) -> ShownPair:
  lines = first.predictions[here], second.predictions[there]
  own = [
    None if setting.own_scores is None else float(setting.own_scores[place])
    for setting, place in ((first, here), (second, there))
  ]
  asked = [(line["prompt"], line["media"]) for line in lines]
  return ShownPair(
    id=lines[0]["id"],
    change=None if None in own else own[1] - own[0],
    prompts=tuple(shown_prompt(line) for line in lines[: 1 if asked[0] == asked[1] else 2]),
    answers=(answer(lines[0], own[0]), answer(lines[1], own[1])),
    references=counted(lines[0]["references"]),
  )


def comparison_table(compared: ComparedEvaluations) -> Table:
  """The settings, a line each: both scores times 100, B minus A with its interval, and how many of the
  predictions differ."""
  a, b = (escape(redacted(str(each.folder))) for each in compared.evaluations)
  table = Table(title=f"A: {a}\nB: {b}", title_justify="left", box=box.SIMPLE)
  table.add_column("setting", overflow="fold", min_width=16)
  for column in ("A", "B", "B - A", "95% interval", "differ"):
    table.add_column(column, justify="right", no_wrap=True)
  for setting in compared.settings:
    found = setting.comparison
    interval = f"{change(found.interval[0])} to {change(found.interval[1])}" if found.interval else "none"
    differ = f"{int(found.differing.sum()):,}/{len(found.shared):,}"
    scores = (percent(result["score"]) for result in setting.results)
    style = dict(better="green", worse="red").get(direction(found.interval))
    table.add_row(escape(setting.name), *scores, change(found.difference), interval, differ, style=style)
  return table


def all_notes(compared: ComparedEvaluations) -> list[str]:
  """What must be known to read the table."""
  return [*compared.notes, *(f"{each.name}: {note}" for each in compared.settings for note in notes_of(each))]


def notes_of(setting: ComparedSetting) -> Sequence[str]:
  """What must be known of a setting, examples that only one has included."""
  counts = setting.comparison.alone
  alone = [f"{count:,} examples are only in {letter}." for letter, count in zip("AB", counts, strict=True) if count]
  return [*alone, *setting.comparison.notes]


def render(compared: ComparedEvaluations) -> str:
  """The page as one HTML document that needs nothing beside it, and runs nothing."""
  filters = dict(percent=percent, change=change, direction=direction, notes_of=notes_of)
  return template("comparison.html.j2", **filters).render(
    sides=[
      ("AB"[place], redacted(str(each.folder)), each.checkpoint) for place, each in enumerate(compared.evaluations)
    ],
    compared=compared,
    media_colors=MEDIA_COLORS,
  )
