"""Pictures of one's own, or the quickstart's: captions.jsonl and the files it names, to describe or to match."""

import pathlib
from typing import Any

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import Record, annotation_file, read_examples, read_json_lines, report

SPLITS = ("train", "heldout")
SOURCE = "`flamingo quickstart --prepare-only`, or from you"


def read_pictures(folder: pathlib.Path, split: str) -> Split:
  """captions.jsonl, whose records name their split and, from the folder, their picture."""
  return _read(folder, split, ranked=False)


def read_matching(folder: pathlib.Path, split: str) -> Split:
  """The same; every record has candidates, and a label that says which of them belongs to its picture."""
  return _read(folder, split, ranked=True)


def _read(folder: pathlib.Path, split: str, *, ranked: bool) -> Split:
  path = annotation_file(folder, "captions.jsonl", SOURCE)

  def example(_: int, record: Record) -> Example:
    if record["split"] not in SPLITS:
      raise ValueError(f"split {record['split']!r}; {' or '.join(SPLITS)} is expected")
    medium = Medium(str(folder / _text(record, "image")))
    captions = _texts(record, "captions")
    options = _texts(record, "candidates") if ranked or "candidates" in record else ()
    label = _label(record["label"], options) if options else None
    return Example(_text(record, "id"), medium, captions, options=options, label=label)

  # Records of both splits are read, so that ids differ in the whole file and all faults are told together.
  records = read_json_lines(path)
  whole = read_examples(path, records, example).examples
  kept = tuple(each for record, each in zip(records, whole, strict=True) if record["split"] == split)
  report(path, [] if kept else [f"no record is of split '{split}'"])
  return Split(kept)


def _text(record: Record, field: str) -> str:
  if not isinstance(record[field], str) or not record[field].strip():
    raise ValueError(f"{field} {record[field]!r}; a text is expected")
  return record[field]


def _texts(record: Record, field: str) -> tuple[str, ...]:
  texts = record[field]
  if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
    raise ValueError(f"{field} {texts!r}; a list of texts is expected, none of them empty")
  return tuple(text.strip() for text in texts)


def _label(label: Any, options: tuple[str, ...]) -> int:
  if type(label) is not int or not 0 <= label < len(options):
    raise ValueError(f"label {label!r}; the place of a candidate is expected, 0 to {len(options) - 1}")
  if options.count(options[label]) > 1:
    raise ValueError(f"two candidates are {options[label]!r}")
  return label
