"""`flamingo evaluate` as a user runs it, on real pictures, in processes of its own where that matters."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from evaluated import film
from finished import STEP, write_work
from PIL import Image

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.predictions import read_predictions, read_scores
from flamingo_jax.evaluation.published import FLAMINGO_3B
from flamingo_jax.evaluation.settings import BenchmarkConfig, FewShotConfig
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from launch.cli import main
from launch.config import load_config
from launch.evaluate import read_evaluation, with_settings
from launch.experiment import read_experiment
from launch.few_shot import FewShot, with_few_shot
from launch.generate import open_run, trained_parameters

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = """
from configs import base

def get_config():
  config = base.evaluation()
  config.batch_size = 2
  shared = dict(folder={folder!r}, support=6)
  config.benchmarks = dict(
    describe=base.benchmark(task="pictures", shots=(0, 2), new_tokens=5, **shared),
    match=base.benchmark(task="matching", shots=(2,), selection="nearest", orders=2, **shared),
  )
  return config
"""
QUICK = {  # programs that run for microseconds, of which all processes need the same
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
QUERIES, NAMES = 5, ("A", "BB", "CAB", "DAD", "a fACe")


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_gguf) -> pathlib.Path:
  """A finished run in `run`, JPEGs with captions in `pictures`, and the config of an evaluation."""
  folder = write_work(tmp_path_factory.mktemp("work"), write_gguf)
  write_pictures(folder / "pictures")
  (folder / "config.py").write_text(CONFIG.format(folder=str(folder / "pictures")))
  return folder


def write_pictures(folder: pathlib.Path) -> None:
  """Six examples to choose shots from, and the queries; candidates are all names."""
  random = np.random.default_rng(0)
  lines = []
  for split, count in (("train", 6), ("heldout", QUERIES)):
    (folder / split).mkdir(parents=True)
    for number in range(count):
      pixels = random.integers(0, 256, (24, 40, 3), np.uint8)
      Image.fromarray(pixels).save(folder / split / f"{number}.jpg")
      label = number % len(NAMES)
      lines.append(
        dict(id=f"{split}-{number}", image=f"{split}/{number}.jpg", split=split, captions=[NAMES[label]])
        | dict(candidates=NAMES, label=label)
      )
  (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(work: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
  asked = [f"--config={work / 'config.py'}", f"--checkpoint={work / 'run'}", f"--out={out}", *more]
  return [sys.executable, "-m", "launch.cli", "evaluate", *asked]


def start(work: pathlib.Path, out: pathlib.Path, *more: str) -> subprocess.Popen:
  environment = os.environ | QUICK | {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")}
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return subprocess.Popen(command(work, out, *more), cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> str:
  printed, _ = process.communicate(timeout=300)
  assert process.returncode == 0, printed
  return printed


def found(out: pathlib.Path) -> dict:
  """All that an evaluation found, without where the pictures lie."""
  return {
    line["setting"]: read_predictions(out / "predictions" / f"{line['setting']}.jsonl") for line in read_scores(out)
  }


@pytest.fixture(scope="module")
def evaluated(work) -> tuple[pathlib.Path, str]:
  """An evaluation in one process, and what it printed."""
  out = work / "whole"
  return out, finish(start(work, out))


def test_an_evaluation_leaves_predictions_with_receipts_scores_and_a_report(work, evaluated):
  out, printed = evaluated
  settings = ["describe-0-random-seed0", "describe-2-random-seed0"]
  settings.append("match-2-nearest-seed0-orders2")
  assert [line["setting"] for line in read_scores(out)] == settings
  for setting, (receipt, lines) in found(out).items():
    assert [line["id"] for line in lines] == [f"heldout-{number}" for number in range(QUERIES)]
    assert receipt["checkpoint"]["step"] == STEP and set(receipt["checkpoint"]["hashes"]) >= {"vision", "trained"}
    assert receipt["films"] == dict(frames=30, frames_per_second=3.0)
    assert f"{setting} {QUERIES}/{QUERIES}" in printed
  for line in read_scores(out)[2:]:
    lines = found(out)[line["setting"]][1]
    right = [np.argmax(each["scores"]) == each["label"] for each in lines]
    assert line["score"] == pytest.approx(np.mean(right)) and line["low"] <= line["score"] <= line["high"]
    assert line["per_example"] == right
  config = json.loads((out / "config.json").read_text())
  assert config["checkpoint"]["step"] == STEP and config["benchmarks"]["match"]["orders"] == 2
  assert (
    "describe-2-random-seed0" in (out / "report.html").read_text() or "describe" in (out / "report.html").read_text()
  )
  assert str(out / "report.html") in printed.replace("\n", "")


def test_an_evaluation_that_is_killed_goes_on_to_the_same_end(work, evaluated):
  out = work / "killed"
  process = start(work, out)
  first = out / "predictions" / "describe-2-random-seed0.jsonl"
  until = time.monotonic() + 300
  while not (first.exists() and len(first.read_text().splitlines()) > 1) and time.monotonic() < until:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (out / "report.html").exists()
  finish(start(work, out))
  assert found(out) == found(evaluated[0])
  assert read_scores(out) == read_scores(evaluated[0])


def test_two_processes_find_what_one_does(work, evaluated):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  out = work / "two"
  job = ["--config.mesh.fsdp=2", f"--coordinator={address}", "--processes=2"]
  processes = [start(work, out, *job, f"--process={number}") for number in (0, 1)]
  for process in processes:
    finish(process)
  expected, here = found(evaluated[0]), found(out)
  assert here.keys() == expected.keys()
  for setting, (receipt, lines) in expected.items():
    assert here[setting][0] == receipt
    for line, other in zip(lines, here[setting][1], strict=True):
      np.testing.assert_allclose(other.pop("scores", []), line.pop("scores", []), rtol=1e-4)
      assert other == line


def test_a_control_stands_beside_and_two_evaluations_are_compared(work, evaluated, capsys):
  asked = command(work, work / "blind", "--control=image_blind", "--benchmark=match")[4:]
  assert main(["evaluate", *asked]) == 0
  assert list(found(work / "blind")) == ["match-2-nearest-seed0-orders2-image_blind"]
  capsys.readouterr()
  page = work / "compared.html"
  assert main(["evaluate", "--compare", str(evaluated[0]), str(work / "blind"), f"--out={page}"]) == 0
  printed = capsys.readouterr().out
  assert "match" in printed and page.exists()


def test_evaluations_during_training_score_as_this_command_does(work, evaluated):
  experiment = open_run(work / "run")
  pictures = dict(folder=str(work / "pictures"), support=6, shots=(2,))
  benchmarks = dict(match=BenchmarkConfig(task="matching", selection="nearest", orders=2, **pictures))
  few_shot = FewShot(FewShotConfig(batch_size=2), benchmarks)
  measure = with_few_shot(lambda *_: {"loss": 1.0}, experiment.model, experiment.tokenizer(), few_shot)
  parameters, mesh = trained_parameters(experiment, work / "run"), make_mesh(MeshConfig())
  [score] = [line["score"] for line in read_scores(evaluated[0]) if line["benchmark"] == "match"]
  assert measure(parameters, mesh, False) == {"loss": 1.0, "few_shot/match/2": pytest.approx(score)}
  assert measure(parameters, mesh, True) == {"loss": 1.0}


@pytest.mark.parametrize("name", ["quickstart", "paper"])
def test_shipped_evaluations_are_whole(name):
  path = f"configs/evaluation/{name}.py"
  benchmarks = read_evaluation(load_config(path, {}), path).few_shot.benchmarks
  assert all(pathlib.Path(config.folder).is_absolute() for config in benchmarks.values())
  if name == "paper":
    assert set(benchmarks) == {*FLAMINGO_3B, "kinetics"}
    assert benchmarks["visdial"].shots == (0, 4, 8, 16) and benchmarks["coco"].shots == (0, 4, 8, 16, 32)


@pytest.mark.parametrize(("name", "without"), [("quickstart", set()), ("paper", {"rareact"})])
def test_shipped_evaluations_can_shuffle_pictures(name, without):
  path = f"configs/evaluation/{name}.py"
  whole = read_evaluation(load_config(path, {}) | dict(control="shuffled_images"), path)
  kept, told = with_settings(whole, path)
  assert whole.few_shot.benchmarks.keys() - kept.few_shot.benchmarks.keys() == without
  assert "'shuffled_images' leaves out 0 shots" in told and ("nothing is left of rareact" in told) == bool(without)
  plain = read_evaluation(load_config(path, {}), path)
  assert with_settings(plain, path) == (plain, "")


def test_shuffled_pictures_leave_out_settings_without_shots_and_say_so(work, capsys):
  out = work / "shuffled"
  asked = command(work, out, "--control=shuffled_images", "--config.benchmarks.match.shots=(0,)")[4:]
  assert main(["evaluate", *asked]) == 0
  assert list(found(out)) == ["describe-2-random-seed0-shuffled_images"]
  [line] = [line for line in capsys.readouterr().out.splitlines() if "leaves out" in line]
  assert line == (
    "control 'shuffled_images' leaves out 0 shots, where one picture alone cannot change places; nothing is left of "
    "match."
  )


def test_predictions_of_another_tokenizer_are_not_gone_on_with(work, evaluated, capsys):
  tokenizer = open_run(work / "run").tokenizer()
  out = work / "another_tokenizer"
  shutil.copytree(evaluated[0], out)
  path = out / "predictions" / "describe-0-random-seed0.jsonl"
  receipt, *lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert receipt["receipt"]["tokenizer"] == dict(hash=tokenizer.fingerprint(), bos=tokenizer.bos, eos=tokenizer.eos)
  receipt["receipt"]["tokenizer"] = dict(hash="other", bos=tokenizer.bos + 1, eos=tokenizer.eos)
  path.write_text("".join(json.dumps(line) + "\n" for line in [receipt, *lines]))
  told = fails(capsys, *command(work, out)[4:])
  assert f"tokenizer.bos: {tokenizer.bos + 1} there, {tokenizer.bos} here" in told
  assert "tokenizer.hash: 'other' there" in told


def test_a_run_refuses_benchmarks_that_cannot_be():
  config = load_config("configs/tiny.py", {})
  config["few_shot"]["benchmarks"]["coco"] = dict(folder="data/coco", beams=0, shotz=3)
  with pytest.raises(UserError, match=r"benchmarks\.coco\.shotz: no such field; did you mean .*\.shots\?"):
    read_experiment(config, "tiny")
  config["few_shot"]["benchmarks"]["coco"].pop("shotz")
  with pytest.raises(UserError, match=r"few_shot\.benchmarks\.coco\.beams is 0"):
    read_experiment(config, "tiny")
  config["few_shot"]["benchmarks"]["coco"].pop("beams")
  [kept] = read_experiment(config, "tiny").raw["few_shot"]["benchmarks"].values()
  assert kept["folder"] == str(pathlib.Path("data/coco").absolute())


def fails(capsys, *arguments: str) -> str:
  assert main(["evaluate", *arguments]) == 2
  return capsys.readouterr().err


def test_all_faults_of_a_config_are_told_together(work, capsys):
  wrong = ["selection='best'", "shots=(0,0)", "beams=0", "queries=-1", "split='test'"]
  settings = [f"--config.benchmarks.describe.{setting}".replace("'", "") for setting in wrong]
  told = fails(capsys, f"--config={work / 'config.py'}", "--checkpoint=nowhere", *settings, "--config.context=0")
  for part in (
    "describe.selection is 'best'",
    "describe.shots is (0, 0)",
    "describe.beams is 0",
    "describe.queries is -1",
  ):
    assert part in told
  assert "describe.split is 'test'; it is one of '', 'train', 'heldout'" in told and "context is 0" in told


def test_faults_of_all_data_sets_are_told_together(work, capsys):
  settings = [f"--config.benchmarks.{name}.folder=/nowhere/{name}" for name in ("describe", "match")]
  told = fails(capsys, f"--config={work / 'config.py'}", f"--checkpoint={work / 'run'}", *settings)
  assert "benchmarks.describe: /nowhere/describe" in told and "benchmarks.match: /nowhere/match" in told


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--benchmark=other"], "--benchmark is 'other'; "),
    (["--config.benchmarks.match.shots=(0,40)"], "match.shots has 40; matching takes at most 32"),
    (["--config.benchmarks.match.support=50"], "50 examples are asked for, but there are 6"),
    (["--config.benchmarks.describe.shots=(6,)", "--config.context=20"], "shots fit: set benchmarks.describe.shots"),
    (["--config.mesh.fsdp=3"], "mesh: "),
    (["--checkpoint=/nowhere"], "/nowhere/config.json: missing"),
    (
      ["--control=shuffled_images", "--benchmark=describe", "--config.benchmarks.describe.shots=(0,)"],
      "describe: no other shots are set",
    ),
    (["--config.benchmarks.describe.task=nextqa"], "wordnet is empty, but WUPS of benchmarks.describe needs WordNet"),
    (["--config.benchmarks.describe.task=nextqa", "--config.wordnet=/nowhere"], "/stopwords.txt: there is no such"),
  ],
)
def test_bad_input_is_one_clear_message(work, capsys, tmp_path, more, message):
  told = fails(capsys, *command(work, tmp_path / "out")[4:], *more)
  assert message in told
  assert not (tmp_path / "out" / "scores.json").exists()


FILM_CONFIG = """
from configs import base

def get_config():
  config = base.evaluation()
  config.benchmarks = dict(
    vatex=base.benchmark(folder={folder!r}, support=4, shots=(3,), new_tokens=4),
    nextqa=base.benchmark(folder="nowhere"),  # which needs WordNet, that is not named
  )
  return config
"""


def write_films(folder: pathlib.Path) -> list[pathlib.Path]:
  """MP4 as VATEX has them, four to show and three to ask about; gives back one of each that was cut short."""
  broken = []
  for annotations, part, count in (("training_v1.0", "a", 4), ("public_test_english_v1.1", "b", 3)):
    names = [f"{part}ilm-{number:06d}_000000_000003" for number in range(count)]
    for name in names:
      film(folder / "videos" / f"{name}.mp4")
    broken.append(folder / "videos" / f"{names[1]}.mp4")
    broken[-1].write_bytes(broken[-1].read_bytes()[:500])
    rows = [dict(videoID=name, enCap=["red, green and blue"]) for name in names]
    (folder / f"vatex_{annotations}.json").write_text(json.dumps(rows))
  return broken


def test_films_of_youtube_that_cannot_be_decoded_are_told_and_left_out(work, capsys, tmp_path):
  broken = write_films(tmp_path / "vatex")
  (tmp_path / "films.py").write_text(FILM_CONFIG.format(folder=str(tmp_path / "vatex")))
  out = tmp_path / "out"
  asked = [f"--config={tmp_path / 'films.py'}", f"--checkpoint={work / 'run'}", f"--out={out}", "--benchmark=vatex"]
  assert main(["evaluate", *asked]) == 0
  told = capsys.readouterr().err
  assert all(f"{path}: broken_video" in told for path in broken)
  [score] = read_scores(out)
  assert (score["examples"], score["absent"], score["unreadable"]) == (2, 0, 1)
  _, lines = read_predictions(out / "predictions" / "vatex-3-random-seed0.jsonl")
  assert [line["id"] for line in lines if "unreadable" in line] == ["bilm-000001_000000_000003"]
  assert all("ailm-000001_000000_000003" not in line.get("support", ()) for line in lines)
  assert "2 examples (1 whose film cannot be decoded left out)" in (out / "report.html").read_text()


def test_a_broken_picture_is_named_and_what_was_predicted_stays(work, capsys, tmp_path):
  write_pictures(tmp_path / "pictures")
  last = tmp_path / "pictures" / "heldout" / "4.jpg"
  whole = last.read_bytes()
  last.write_bytes(whole[:200])
  out = tmp_path / "out"
  asked = [
    *command(work, out, "--benchmark=describe")[4:],
    f"--config.benchmarks.describe.folder={tmp_path / 'pictures'}",
  ]
  assert f"{last}: broken_image" in fails(capsys, *asked)
  assert len((out / "predictions" / "describe-0-random-seed0.jsonl").read_text().splitlines()) == 1 + 4
  last.write_bytes(whole)
  assert main(["evaluate", *asked]) == 0
