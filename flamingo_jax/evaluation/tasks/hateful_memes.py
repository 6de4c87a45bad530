"""HatefulMemes: pictures with the text written on them, hateful or not."""

import pathlib

from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import Record, annotation_file, read_examples, read_json_lines

OPTIONS = ("no", "yes")  # labels 0 and 1


def read_hateful_memes(folder: pathlib.Path, split: str) -> Split:
  """<split>.jsonl (train, dev_seen, test_seen, ...) and img/."""
  path = annotation_file(folder, f"{split}.jsonl", "the Hateful Memes Challenge's download")

  def example(_: int, record: Record) -> Example:
    if record["label"] not in (0, 1):
      raise ValueError(f"label {record['label']!r}; 0 or 1 is expected")
    medium = Medium(str(folder / record["img"]))
    return Example(str(record["id"]), medium, written=record["text"].strip(), options=OPTIONS, label=record["label"])

  return read_examples(path, read_json_lines(path), example)
