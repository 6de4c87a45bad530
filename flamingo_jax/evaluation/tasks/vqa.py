"""VQAv2 and OKVQA: a file of questions and one of annotations, over COCO's pictures."""

import pathlib
from typing import Any

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import (
  Record,
  annotation_file,
  part_of,
  read_examples,
  read_json,
  report,
  texts,
  unread,
)

# Of each split: questions, annotations (None: kept back), and the pictures' folder.
VQAV2_FILES = {
  "train": ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json", "train2014"),
  "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014"),
  "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", None, "test2015"),
}
OKVQA_FILES = {
  "train": ("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json", "train2014"),
  "val": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", "val2014"),
}


def read_vqav2(folder: pathlib.Path, split: str) -> Split:
  return _read(folder, *VQAV2_FILES[split], source="visualqa.org")


def read_okvqa(folder: pathlib.Path, split: str) -> Split:
  return _read(folder, *OKVQA_FILES[split], source="okvqa.allenai.org")


def _read(folder: pathlib.Path, questions: str, annotations: str | None, pictures: str, *, source: str) -> Split:
  path = annotation_file(folder, questions, source)
  records = part_of(read_json(path), "questions", path)
  answers = _answers(annotation_file(folder, annotations, source)) if annotations else {}

  def example(_: int, record: Record) -> Example:
    name = record["question_id"]
    picture = folder / pictures / f"COCO_{pictures}_{record['image_id']:012d}.jpg"
    return Example(str(name), Medium(str(picture)), answers.pop(name, ()), question=record["question"].strip())

  split = read_examples(path, records, example, answered=annotations is not None)
  if answers:
    name = next(iter(answers))
    report(folder / annotations, [f"{len(answers)} questions that it answers are not in {questions}, such as {name}"])
  return split


def _answers(path: pathlib.Path) -> dict[Any, tuple[str, ...]]:
  """By question, what its annotators answered."""
  answers, faults = {}, []
  for number, record in enumerate(part_of(read_json(path), "annotations", path)):
    try:
      name, given = record["question_id"], texts([answer["answer"] for answer in record["answers"]])
    except (KeyError, TypeError, ValueError) as error:
      faults.append(unread(number, error))
      continue
    if name in answers:
      faults.append(f"record {number} answers question {name} again")
    answers[name] = given
  report(path, faults)
  return answers
