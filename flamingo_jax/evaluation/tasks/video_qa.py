"""Questions about films: MSVDQA, MSRVTTQA, iVQA, NextQA and STAR."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import (
  Record,
  annotation_file,
  filled,
  film,
  list_of,
  read_examples,
  read_json,
  read_table,
  report,
)

IVQA_ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
VIDEO_QA_SOURCE = "github.com/xudejing/video-question-answering"


def read_msvdqa(folder: pathlib.Path, split: str) -> Split:
  """MSVD-QA: <split>_qa.json, and films video/vid<number>."""
  return _read_xu(folder, split, "vid")


def read_msrvttqa(folder: pathlib.Path, split: str) -> Split:
  """MSRVTT-QA: <split>_qa.json, and films video/video<number>."""
  return _read_xu(folder, split, "video")


def _read_xu(folder: pathlib.Path, split: str, prefix: str) -> Split:
  path = annotation_file(folder, f"{split}_qa.json", VIDEO_QA_SOURCE)

  def example(_: int, record: Record) -> Example:
    medium = Medium(film(folder / "video", f"{prefix}{record['video_id']}"))
    return Example(str(record["id"]), medium, (record["answer"],), question=record["question"].strip())

  return read_examples(path, list_of(read_json(path), path), example, films_vanish=True)


def read_ivqa(folder: pathlib.Path, split: str) -> Split:
  """iVQA: <split>.csv with five answers, and films video/<video_id>, of which a question shows a part."""
  path = annotation_file(folder, f"{split}.csv", "github.com/antoyang/just-ask")
  rows = read_table(path, ["video_id", "question", "start", "end", *IVQA_ANSWERS])

  def example(number: int, row: Record) -> Example:
    answers = filled(row[name] for name in IVQA_ANSWERS)
    medium = Medium(film(folder / "video", row["video_id"]), float(row["start"]), float(row["end"]))
    return Example(f"{row['video_id']}_{number}", medium, answers, question=row["question"].strip())

  return read_examples(path, rows, example, films_vanish=True)


def read_nextqa(folder: pathlib.Path, split: str) -> Split:
  """NextQA, open-ended: <split>.csv, second answers where there are such, and films NExTVideo/<place in VidOR>."""
  source = "github.com/doc-doc/NExT-OE, dataset/nextqa"
  path = annotation_file(folder, f"{split}.csv", source)
  rows = read_table(path, ["video", "question", "answer", "qid", "type"])
  more = folder / f"add_reference_answer_{split}.json"
  if split == "test":
    annotation_file(folder, more.name, source)
  second = _mapping(more) if more.exists() else {}
  places = _mapping(annotation_file(folder, "map_vid_vidorID.json", "github.com/doc-doc/NExT-QA"))

  def example(number: int, row: Record) -> Example:
    video, question = row["video"], row["qid"]
    answers = (row["answer"], *([second[video][question]] if video in second else []))
    place = folder / "NExTVideo" / places[video]
    medium = Medium(film(place.parent, place.name))
    name = f"{number}_{video}_{question}"  # the training file has three video and qid twice
    return Example(name, medium, answers, question=row["question"].strip(), kind=row["type"])

  return read_examples(path, rows, example)


def read_star(folder: pathlib.Path, split: str) -> Split:
  """STAR: STAR_<split>.json and Charades' films, Charades_v1_480/<video_id>; the answers of test are kept back."""
  path = annotation_file(folder, f"STAR_{split}.json", "github.com/csbobby/STAR_Benchmark")
  answered = split != "test"

  def example(_: int, record: Record) -> Example:
    options = tuple(choice["choice"] for choice in sorted(record["choices"], key=lambda choice: choice["choice_id"]))
    medium = Medium(film(folder / "Charades_v1_480", record["video_id"]), float(record["start"]), float(record["end"]))
    return Example(
      record["question_id"],
      medium,
      question=record["question"].strip(),
      options=options,
      label=options.index(record["answer"]) if answered else None,
    )

  return read_examples(path, list_of(read_json(path), path), example, answered=answered)


def _mapping(path: pathlib.Path) -> dict:
  content = read_json(path)
  if not isinstance(content, dict):
    report(path, ["it is no object with an entry for each film"])
  return content
