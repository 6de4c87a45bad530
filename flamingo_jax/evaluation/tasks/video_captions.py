"""VATEX and YouCook2: captions of films from YouTube."""

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
  report,
  texts,
)

VATEX_FILES = {
  "train": "vatex_training_v1.0.json",
  "val": "vatex_validation_v1.0.json",
  "test": "vatex_public_test_english_v1.1.json",
}
YOUCOOK2_SUBSETS = {"train": "training", "val": "validation"}


def read_vatex(folder: pathlib.Path, split: str) -> Split:
  """VATEX, English captions. Clips lie in videos/ under their videoID, which ends in the first and last second."""
  path = annotation_file(folder, VATEX_FILES[split], "VATEX's download page")

  def example(_: int, record: Record) -> Example:
    name = record["videoID"]
    return Example(name, Medium(film(folder / "videos", name)), filled(texts(record["enCap"])))

  return read_examples(path, list_of(read_json(path), path), example, films_vanish=True)


def read_youcook2(folder: pathlib.Path, split: str) -> Split:
  """YouCook2: every annotated step of a recipe is an example, a clip of raw_videos/<subset>/<recipe type>/<id>."""
  path = annotation_file(
    folder, "youcookii_annotations_trainval.json", "YouCook2's youcookii_annotations_trainval.tar.gz"
  )
  content = read_json(path)
  if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
    report(path, ['it has no object "database"'])
  subset, steps, faults = YOUCOOK2_SUBSETS[split], [], []
  for name, record in content["database"].items():
    try:
      if record["subset"] == subset:
        steps += [(name, record["recipe_type"], step) for step in record["annotations"]]
    except (KeyError, TypeError) as error:
      faults.append(f"film {name} is not as documented (it lacks {error})")
  report(path, faults)

  def example(_: int, record: tuple[str, str, Record]) -> Example:
    name, recipe, step = record
    start, end = map(float, step["segment"])
    medium = Medium(film(folder / "raw_videos" / subset / recipe, name), start, end)
    return Example(f"{name}_{step['id']}", medium, (step["sentence"].strip(),))

  return read_examples(path, steps, example, films_vanish=True)
