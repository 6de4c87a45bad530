"""COCO captions and Flickr30k by Karpathy's splits: dataset_coco.json and dataset_flickr30k.json."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import (
  Record,
  annotation_file,
  filled,
  of_split,
  part_of,
  read_examples,
  read_json,
  texts,
)

SOURCE = "Karpathy's caption_datasets.zip"


def read_coco(folder: pathlib.Path, split: str) -> Split:
  """COCO: pictures lie in train2014/ and val2014/, whichever part of Karpathy's they belong to."""
  path = annotation_file(folder, "dataset_coco.json", SOURCE)
  return _read(path, split, lambda image: folder / image["filepath"] / image["filename"])


def read_flickr30k(folder: pathlib.Path, split: str) -> Split:
  """Flickr30k: pictures lie in flickr30k-images/."""
  path = annotation_file(folder, "dataset_flickr30k.json", SOURCE)
  return _read(path, split, lambda image: folder / "flickr30k-images" / image["filename"])


def _read(path: pathlib.Path, split: str, picture) -> Split:
  images = of_split(part_of(read_json(path), "images", path), "split", split, path)

  def example(_: int, image: Record) -> Example:
    captions = filled(texts([sentence["raw"] for sentence in image["sentences"]]))
    return Example(image["filename"], Medium(str(picture(image))), captions)

  return read_examples(path, images, example)
