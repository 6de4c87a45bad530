"""docs/tutorial.md, line after line, as a reader types it, from an empty folder that only has the quickstart's data.

What differs from the page: its first block, the quarter of an hour of `make train`, is replaced by a run of random
parameters; `mine.py` begins with configs/tiny.py instead of configs/quickstart.py; 12 pictures are kept of 1,470; and
trainings and evaluations are short (SMALL).
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from documents import ROOT, blocks, files, of_lines
from finished import write_run

from launch.cli import main
from launch.config import load_config

PAGE = "docs/tutorial.md"
TEXT = (ROOT / PAGE).read_text()
QUICK = ["--config.batch_size=4", "--config.benchmarks.captions.new_tokens=3"]
QUICK += [f"--config.benchmarks.{name}.{field}" for name in ("captions", "matching", "matching_rices")
          for field in ("shots=(0,)", "queries=3", "support=4")]  # fmt: skip
SMALL = {
  "train": ["--config.total_steps=4", "--config.evaluate_every=4", "--config.checkpoint.every=2"],
  "evaluate": QUICK,
  "generate": ["--new-tokens=3"],
}
BEGIN = "config = quickstart.get_config()"
TINY = "config = tiny.get_config()\n  config.model.language.layers = 2"


@pytest.fixture(scope="module")
def done(quickstart_data, tmp_path_factory) -> pathlib.Path:
  """The folder in which the page was followed."""
  folder = tmp_path_factory.mktemp("tutorial")
  with contextlib.chdir(folder):
    shrink(quickstart_data)
    write_run(pathlib.Path("runs/quickstart/flamingo"), load_config("configs/tiny.py", {"model.language.layers": "2"}))
    [(name, text)] = files(TEXT).items()
    assert BEGIN in text
    pathlib.Path(name).write_text(text.replace("import base, quickstart", "import base, tiny").replace(BEGIN, TINY))
    for block in blocks(TEXT, "sh")[1:]:
      for line in block.splitlines():
        follow(line)
  return folder


def shrink(quickstart_data: pathlib.Path) -> None:
  """The quickstart's data, with twelve of its captioned pictures, those that the page names among them."""
  evaluation = pathlib.Path("data/quickstart/evaluation")
  evaluation.mkdir(parents=True)
  for name in ("language_model", "streams"):
    os.symlink(quickstart_data / name, evaluation.parent / name)
  lines = (quickstart_data / "evaluation/captions.jsonl").read_text().splitlines()
  named = [line for line in lines if json.loads(line)["id"] in TEXT]
  assert len(named) == 2
  kept = [line for line in lines if '"split": "train"' in line][:6]
  kept += named + [line for line in lines if '"split": "heldout"' in line and line not in named][:4]
  (evaluation / "captions.jsonl").write_text("\n".join(kept) + "\n")
  for line in kept:
    picture = json.loads(line)["image"]
    (evaluation / picture).parent.mkdir(exist_ok=True)
    shutil.copy(quickstart_data / "evaluation" / picture, evaluation / picture)


def follow(line: str) -> None:
  """Types one line: a shell's in a shell, ours in this process."""
  if not line.startswith("flamingo "):
    subprocess.run(line, shell=True, check=True)
    return
  [command] = of_lines(line, PAGE)
  small = [] if "--compare" in command.words else SMALL.get(command.words[1], [])
  assert main([*command.words[1:], *small]) == 0, str(command)


def records(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_command_of_the_page_works_after_the_one_before(done):
  for name in ("runs/quickstart/flamingo", "runs/mine"):
    scores = json.loads((done / name / "evaluations/quickstart/scores.json").read_text())
    assert len(scores) == 3
  for page in ("runs/mine.html", "runs/mine/report.html", "runs/compared.html", "exports/mine/README.md"):
    assert (done / page).stat().st_size > 1000
  assert (done / "exports/mine/model.stablehlo").is_file()


def test_the_run_learns_from_the_pictures_that_were_built(done):
  manifest = json.loads((done / "data/mine/train/manifest.json").read_text())
  assert (manifest["records"], manifest["sources"]) == (6, {"mine": 6})
  lines = records(done / "runs/mine")
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert "visual_gain/mine/other_media" in lines[-1]


def test_a_run_goes_back_behind_batches_as_the_page_on_runs_says(done):
  """docs/runs.md's command, with this run's config, folder and steps."""
  assert "--rewind=1000 --skip-steps=1041:1050" in (ROOT / "docs/runs.md").read_text()
  with contextlib.chdir(done):
    asked = ["train", "--config=mine.py", "--workdir=runs/mine", *SMALL["train"], "--rewind=2", "--skip-steps=3:4"]
    assert main(asked) == 0
  assert [(line["step"], line.get("batch")) for line in records(done / "runs/mine")][2:] == [(3, 4), (4, 5)]
