import io
import json
import random
import subprocess
import sys

import pytest
from PIL import Image

from data_pipelines.schema import parse
from data_pipelines.shards import open_shards
from flamingo_jax.errors import USER_FAULT
from launch.cli import main

BUILD_ONLY = ("apache_beam", "fastwarc", "imagehash", "py3langid", "pyarrow")


@pytest.fixture
def folder(tmp_path):
  """A page, and pairs in a table, of one picture."""
  file = io.BytesIO()
  Image.frombytes("RGB", (80, 70), random.Random(0).randbytes(3 * 80 * 70)).save(file, "PNG")
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.png").write_bytes(file.getvalue())
  (tmp_path / "in" / "a.html").write_text('A page of ten words, which is what a build asks for. <img src="a.png">')
  (tmp_path / "in" / "b.html").write_text('Too few words.<img src="a.png">')
  rows = [{"image": "a.png", "caption": caption} for caption in ("A cat.", "Cat")]
  (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return tmp_path


def test_a_build_prints_what_became_of_its_input(folder, capsys):
  output = folder / "out"
  arguments = ["data", "build-pages", f"--input={folder / 'in'}/", f"--output={output}", "--licence=CC-BY-4.0"]
  (folder / "in" / "rows.jsonl").unlink()
  assert main([*arguments, "--name=mine", "--", "--direct_running_mode=in_memory"]) == 0
  printed = capsys.readouterr().out
  table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
  assert table == [["read", "2", "2"], ["kept", "1", "1"], ["short_text", "1", ""], ["with_document", "", "1"]]
  assert f"{output}/manifest.json: 1 records in 1 shards" in printed
  [example] = [parse(record) for record in map(open_shards(output).__getitem__, range(1))]
  assert (example.source, example.license) == ("mine/a.html", "CC-BY-4.0")


def test_options_reach_the_build(folder):
  output = folder / "out"
  rows = folder / "in" / "rows.jsonl"
  assert main(["data", "build-pairs", f"--input={rows}", f"--output={output}", "--shortest-text=3"]) == 0
  manifest = json.loads((output / "manifest.json").read_text())
  assert manifest["records"] == 2 and manifest["sources"] == {"rows": 2}
  assert manifest["build"]["settings"]["text"]["shortest"] == 3


@pytest.mark.parametrize(
  ("job", "options", "message"),
  [
    ("build-pages", ["--input=none"], "does not exist"),
    ("build-videos", ["--input=in"], "video"),
    ("build-pairs", ["--input=in", "--similarity-model=run"], "--similarity-model: give --minimum-similarity too"),
    ("build-pairs", ["--input=in", "--similarity-model=run", "--minimum-similarity=0.2"], "run/config.json: missing"),
    ("build-pairs", ["--input=in", "--tfds=coco"], "--tfds: give --picture-column and --text-column"),
    (
      "build-pairs",
      ["--input=in", "--tfds=coco", "--picture-column=a", "--text-column=b", "--question-column=c"],
      "--question-column: it is of tables",
    ),
    ("build-pages", ["--input=in", "--most-errors=2"], "--most-errors is 2.0; it is a share, from 0 to 1"),
    ("build-pages", ["--input=in", "folder"], "folder: not an option of Beam"),
    ("build-pages", ["--input=in", "--minimum-similarity=0.5", "--runner=Nobody"], "--runner=Nobody: "),
  ],
)
def test_what_is_wrong_is_one_message(folder, monkeypatch, capsys, job, options, message):
  monkeypatch.chdir(folder)
  assert main(["data", job, *options, "--output=out"]) == USER_FAULT
  error = capsys.readouterr().err
  assert error.startswith("flamingo data: ") and message in error and "Traceback" not in error


@pytest.mark.parametrize("option", ["--largest-aspect", "--minimum-similarity", "--most-linked"])
@pytest.mark.parametrize("limit", ["nan", "inf", "-inf"])
def test_a_limit_that_drops_nothing_or_everything_is_refused(option, limit, capsys):
  with pytest.raises(SystemExit):
    main(["data", "build-pages", "--input=in", "--output=out", f"{option}={limit}"])
  assert f"argument {option}: {limit} is not a finite number" in capsys.readouterr().err


def test_no_picture_has_an_aspect_under_one(capsys):
  with pytest.raises(SystemExit):
    main(["data", "build-pages", "--input=in", "--output=out", "--largest-aspect=0.5"])
  assert "argument --largest-aspect: 0.5 is not a finite number of at least 1" in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_brings_it(folder, monkeypatch, capsys):
  for name in [name for name in sys.modules if name.startswith(("data_pipelines.build.job", "apache_beam"))]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  assert main(["data", "build-pages", f"--input={folder}", f"--output={folder / 'out'}"]) == USER_FAULT
  assert "apache_beam is not installed; `pip install 'flamingo_jax[build]'`" in capsys.readouterr().err


def test_streams_and_the_quickstart_need_nothing_that_only_builds_need():
  """They are imported where these packages cannot be."""
  program = f"import sys\nfor name in {BUILD_ONLY}: sys.modules[name] = None\n"
  program += "import data_pipelines.build.quickstart, data_pipelines.stream"
  subprocess.run([sys.executable, "-c", program], check=True)
