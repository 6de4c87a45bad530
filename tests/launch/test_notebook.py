"""notebooks/pictures_to_answers.ipynb, run from its first cell to its last as a reader does."""

import json
import pathlib

import nbformat
import pytest
from documents import ROOT
from evaluated import COLOURS, picture
from finished import write_run
from nbclient import NotebookClient

from launch.config import load_config
from launch.generate import continue_prompt

PATH = ROOT / "notebooks" / "pictures_to_answers.ipynb"
COUNTS = dict(train=4, heldout=3)  # as many as the notebook shows and asks about


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
  """A folder of real JPEGs with captions, as docs/evaluation.md describes it."""
  folder = tmp_path_factory.mktemp("pictures")
  lines = []
  for split, count in COUNTS.items():
    for number, colour in enumerate(list(COLOURS)[:count]):
      name = f"{split}/{number}.jpg"
      picture(folder / name, colour)
      lines.append(dict(id=name, split=split, image=name, captions=[f"a {colour} wall"]))
  (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return folder


@pytest.fixture(scope="module")
def run(quickstart_data, tmp_path_factory) -> pathlib.Path:
  """A tiny run of random parameters, with the quickstart's tokenizer."""
  changes = {"model.language.layers": "2", "tokenizer.path": str(quickstart_data / "language_model")}
  return write_run(tmp_path_factory.mktemp("run"), load_config("configs/tiny.py", changes))


@pytest.fixture(scope="module")
def executed(run, pictures, tmp_path_factory):
  folder = tmp_path_factory.mktemp("notebook")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FLAMINGO_RUN", str(run))
    patch.setenv("FLAMINGO_PICTURES", str(pictures))
    notebook = nbformat.read(PATH, as_version=4)
    return NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def outputs(cell, kind: str) -> list:
  return [output for output in cell.outputs if output.output_type == kind]


def test_the_notebook_is_kept_without_outputs():
  cells = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
  assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def test_every_picture_is_shown(executed):
  shown = [len(outputs(cell, "display_data")) for cell in executed.cells if cell.cell_type == "code"]
  assert [count for count in shown if count] == [COUNTS["train"], COUNTS["heldout"]]


def test_the_answers_are_those_of_the_command(executed, run, pictures):
  printed = "".join(output.text for output in outputs(executed.cells[-1], "stream"))
  answers = [line.removeprefix("written:").strip() for line in printed.splitlines() if line.startswith("written:")]
  examples = [f"<image>Output: a {colour} wall<EOC>" for colour in COLOURS]
  shots = [str(pictures / f"train/{number}.jpg") for number in range(COUNTS["train"])]
  asked = ["".join(examples) + "<image>Output:", [*shots, str(pictures / "heldout/0.jpg")], 16]
  assert len(answers) == COUNTS["heldout"] and answers[0] == continue_prompt(str(run), *asked)
