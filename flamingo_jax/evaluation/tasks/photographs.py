"""TextVQA and VizWiz: questions, answers and pictures' names in one file."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import (
  Record,
  annotation_file,
  list_of,
  part_of,
  read_examples,
  read_json,
  texts,
)


def read_textvqa(folder: pathlib.Path, split: str) -> Split:
  """TextVQA 0.5.1: pictures of both splits lie in train_images/. Its OCR tokens are not used, as in the paper."""
  path = annotation_file(folder, f"TextVQA_0.5.1_{split}.json", "textvqa.org")

  def example(_: int, record: Record) -> Example:
    medium = Medium(str(folder / "train_images" / f"{record['image_id']}.jpg"))
    return Example(str(record["question_id"]), medium, texts(record["answers"]), question=record["question"].strip())

  return read_examples(path, part_of(read_json(path), "data", path), example)


def read_vizwiz(folder: pathlib.Path, split: str) -> Split:
  """VizWiz-VQA: Annotations/<split>.json and <split>/; the answers of test (test-dev is of it) are kept back."""
  path = annotation_file(folder, f"Annotations/{split}.json", "vizwiz.org")
  answered = split != "test"

  def example(_: int, record: Record) -> Example:
    answers = tuple(answer["answer"] for answer in record["answers"]) if answered else ()
    medium = Medium(str(folder / split / record["image"]))
    return Example(record["image"], medium, answers, question=record["question"].strip())

  return read_examples(path, list_of(read_json(path), path), example, answered=answered)
