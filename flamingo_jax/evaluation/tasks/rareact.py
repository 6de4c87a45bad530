"""RareAct: clips of unusual actions, each to be ranked among all actions; only zero-shot."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Clip, Example, Split
from flamingo_jax.evaluation.tasks.reading import Record, annotation_file, film, read_examples, read_table, report

COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")


def read_rareact(folder: pathlib.Path, split: str) -> Split:
  """rareact.csv, which has no splits, and films rareact/<video_id>. Options stand in the order of class_id."""
  path = annotation_file(folder, "rareact.csv", "github.com/antoine77340/RareAct")
  rows = read_table(path, COLUMNS)
  options = _options(path, rows)

  def example(_: int, row: Record) -> Example:
    return Example(
      row["id"],
      Medium(film(folder / "rareact", row["video_id"]), float(row["start"]), float(row["end"])),
      options=options,
      label=int(row["class_id"]),
      clip=Clip(row["verb"], row["noun"], row["video_id"], int(row["annotation"])),
    )

  return read_examples(path, rows, example, films_vanish=True)


def action(verb: str, noun: str) -> str:
  """An action in words, with the verb in the third person and an article before the noun (paper, section 4)."""
  article = "an" if noun[0] in "aeiou" else "a"
  return f"a person {third_person(verb)} {article} {noun}"


def third_person(verb: str) -> str:
  if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
    return verb + "es"
  if verb.endswith("y") and verb[-2:-1] not in "aeiou":
    return verb[:-1] + "ies"
  return verb + "s"


def _options(path: pathlib.Path, rows: list[dict[str, str]]) -> tuple[str, ...]:
  actions: dict[int, str] = {}
  faults = []
  for number, row in enumerate(rows):
    if not row["class_id"].isdecimal() or not row["noun"]:
      faults.append(f"record {number} has class_id {row['class_id']!r} and noun {row['noun']!r}")
    elif actions.setdefault(int(row["class_id"]), action(row["verb"], row["noun"])) != action(row["verb"], row["noun"]):
      faults.append(f"record {number} says {row['verb']} {row['noun']} for class {row['class_id']}, others another")
  if not faults and sorted(actions) != list(range(len(actions))):
    faults.append(f"class_id should go from 0 to {len(actions) - 1} without gaps, but goes to {max(actions)}")
  report(path, faults)
  return tuple(actions[number] for number in range(len(actions)))
