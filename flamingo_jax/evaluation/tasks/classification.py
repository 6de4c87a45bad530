"""ImageNet and Kinetics700: pictures and films of one class each."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import Record, annotation_file, film, read_examples, read_table, report

KINETICS_FILES = {"train": "train", "val": "validate"}


def read_imagenet(folder: pathlib.Path, split: str) -> Split:
  """ImageNet as Kaggle packs it: LOC_synset_mapping.txt, LOC_<split>_solution.csv, ILSVRC/Data/CLS-LOC/<split>/.

  A class is called by the first of its synset's names.
  """
  source = "Kaggle's ImageNet Object Localization Challenge"
  mapping = annotation_file(folder, "LOC_synset_mapping.txt", source)
  lines = [line.split(" ", 1) for line in mapping.read_text("utf-8").splitlines() if line.strip()]
  report(mapping, [f"line {number} names no class" for number, line in enumerate(lines, 1) if len(line) < 2])
  labels = {synset: place for place, (synset, _) in enumerate(lines)}
  options = tuple(names.split(",")[0].strip() for _, names in lines)
  path = annotation_file(folder, f"LOC_{split}_solution.csv", source)
  pictures = folder / "ILSVRC" / "Data" / "CLS-LOC" / split

  def example(_: int, row: Record) -> Example:
    synset, name = row["PredictionString"].split()[0], row["ImageId"]
    place = pictures / synset / f"{name}.JPEG" if split == "train" else pictures / f"{name}.JPEG"
    return Example(name, Medium(str(place)), (options[labels[synset]],), options=options, label=labels[synset])

  return read_examples(path, read_table(path, ["ImageId", "PredictionString"]), example)


def read_kinetics(folder: pathlib.Path, split: str) -> Split:
  """Kinetics700 (2020): train.csv, validate.csv, and clips <split>/<youtube_id>_<first second>_<last second>."""
  source = "DeepMind's kinetics700_2020.tar.gz"
  columns = ["label", "youtube_id", "time_start", "time_end"]
  path = annotation_file(folder, f"{KINETICS_FILES[split]}.csv", source)
  rows = read_table(path, columns)
  names = {row["label"] for row in read_table(annotation_file(folder, "train.csv", source), columns)}
  options = tuple(sorted(names))
  labels = {name: place for place, name in enumerate(options)}

  def example(_: int, row: Record) -> Example:
    name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
    label = labels[row["label"]]
    return Example(name, Medium(film(folder / split, name)), (row["label"],), options=options, label=label)

  return read_examples(path, rows, example, films_vanish=True)
