"""VisDial 1.0: dialogues about COCO's pictures; one round of each is rated densely, and that round is the question."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import (
  Record,
  annotation_file,
  exists,
  part_of,
  read_examples,
  read_json,
  report,
)

SOURCE = "visualdialog.org/data"


def read_visdial(folder: pathlib.Path, split: str) -> Split:
  """Dialogues of visdial_1.0_<split>.json.

  train: the whole dialogue, its last round as the question. val: the round that visdial_1.0_val_dense_annotations.json
  rates, with the rounds before it, its hundred candidates and their relevance. Pictures lie in train2014/ and val2014/
  (COCO's, of train), and VisualDialog_val2018/.
  """
  path = annotation_file(folder, f"visdial_1.0_{split}.json", SOURCE)
  content = read_json(path)
  if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
    report(path, ['it has no object "data"'])
  questions, answers, dialogs = (part_of(content["data"], key, path) for key in ("questions", "answers", "dialogs"))
  rated = _rated(folder) if split == "val" else None

  def example(_: int, record: Record) -> Example:
    name = record["image_id"]
    rounds = [(questions[each["question"]].strip(), answers[each["answer"]].strip()) for each in record["dialog"]]
    place, relevance = rated[name] if rated is not None else (len(rounds) - 1, ())
    asked = record["dialog"][place]
    options = tuple(answers[option].strip() for option in asked["answer_options"]) if rated is not None else ()
    if len(options) != len(relevance):
      raise ValueError(f"{len(options)} answer_options, but {len(relevance)} of them rated")
    return Example(
      str(name),
      Medium(_picture(folder, split, name)),
      (rounds[place][1],),
      question=rounds[place][0],
      caption=record["caption"].strip(),
      history=tuple(rounds[:place]),
      options=options,
      label=asked["gt_index"] if rated is not None else None,
      relevance=relevance,
    )

  return read_examples(path, dialogs, example)


def _rated(folder: pathlib.Path) -> dict[int, tuple[int, tuple[float, ...]]]:
  """By picture: which round is rated, counted from 0, and the relevance of its candidates."""
  path = annotation_file(folder, "visdial_1.0_val_dense_annotations.json", SOURCE)
  try:
    return {
      record["image_id"]: (record["round_id"] - 1, tuple(map(float, record["gt_relevance"])))
      for record in read_json(path)
    }
  except (KeyError, TypeError) as error:
    report(path, [f"its records lack {error}; image_id, round_id and gt_relevance are expected"])
    raise


def _picture(folder: pathlib.Path, split: str, name: int) -> str:
  if split == "val":
    return str(folder / "VisualDialog_val2018" / f"VisualDialog_val2018_{name:012d}.jpg")
  paths = [str(folder / part / f"COCO_{part}_{name:012d}.jpg") for part in ("train2014", "val2014")]
  return next((path for path in paths if exists(path)), paths[0])
