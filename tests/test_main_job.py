"""The main job as a user runs it, on real pages, pictures and videos, at the size of `configs/tiny.py`."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.errors import DONE, USER_FAULT
from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.metrics import untimed

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 12
WEIGHTS = dict(pages=1.0, captions=0.2, videos=0.03)


def flamingo(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
  environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  command = [sys.executable, "-m", "launch.cli", *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def train_arguments(workdir: pathlib.Path) -> list[str]:
  settings = [f"--config.total_steps={STEPS}", "--config.checkpoint.every=4", "--config.evaluate_every=6"]
  return ["train", "--config=configs/tiny.py", f"--workdir={workdir}", *settings]


def metrics(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_timing(lines: list[dict]) -> list[dict]:
  return [untimed(line) for line in lines]


def check_losses(found: list[dict], expected: list[dict]) -> None:
  """Sums are rounded otherwise on other devices, and each step of Adam's first ones doubles what that changes."""
  for tolerance, steps in ((1e-5, slice(STEPS // 2)), (1e-3, slice(STEPS))):
    losses = [[line["loss"] for line in lines[steps]] for lines in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=tolerance)


@pytest.fixture(scope="module")
def straight(quickstart_data, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp("runs") / "straight"
  done = flamingo(*train_arguments(workdir))
  assert done.returncode == DONE, done.stderr
  return workdir


def test_every_step_is_recorded_once_with_the_loss_of_every_stream(straight):
  lines = metrics(straight)
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
  for line in lines:
    assert line["loss"] == pytest.approx(sum(w * line[f"loss/{name}"] for name, w in WEIGHTS.items()), rel=1e-5)
  assert any(path.name.startswith("events") for path in (straight / "tensorboard").iterdir())


def test_the_loss_falls(straight):
  first, *_, last = metrics(straight)
  before = sum(weight * first[f"baseline/train/text_loss/{name}"] for name, weight in WEIGHTS.items())
  assert sum(weight * last[f"train/text_loss/{name}"] for name, weight in WEIGHTS.items()) < before


def test_evaluations_log_visual_gain_and_gates(straight):
  for step in (6, STEPS):
    line = metrics(straight)[step - 1]
    for stream in ("pages", "captions", "videos"):
      assert f"visual_gain/{stream}/other_media" in line
      assert f"visual_gain/{stream}/no_media" in line
    assert [name for name in line if name.startswith("gates/attention/")] == [f"gates/attention/{i}" for i in (0, 2, 4)]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(straight, tmp_path):
  """SIGKILL after a checkpoint, and the launcher starts it again; metrics and parameters end bitwise the same."""
  killed = tmp_path / "killed"
  command = [sys.executable, "-m", "launch.cli", "launch", "--on=local", *train_arguments(killed)[1:]]
  launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 300
  log = killed / "metrics.jsonl"
  while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 5):
    time.sleep(0.05)
  started = (tmp_path / "killed.logs" / "launch.log").read_text()
  os.kill(int(re.search(r"process 0 is (\d+)", started)[1]), signal.SIGKILL)
  said = launcher.communicate(timeout=600)[0]
  assert launcher.returncode == 0, said
  assert "was killed by SIGKILL" in said
  assert without_timing(metrics(killed)) == without_timing(metrics(straight))
  (expected, step, _), (found, found_step, _) = load_trainable(straight), load_trainable(killed)
  assert (step, found_step) == (STEPS, STEPS)
  assert all(np.array_equal(expected[path], found[path]) for path in expected)


def test_a_run_reproduced_on_eight_devices_draws_the_same_loss_curve_and_says_what_differs(straight, tmp_path):
  done = flamingo("train", f"--reproduce={straight}", f"--workdir={tmp_path / 'eight'}", devices=8)
  assert done.returncode == DONE, done.stderr
  assert "devices: '1 x cpu' then, '8 x cpu' now" in done.stderr and "packages" not in done.stderr
  check_losses(metrics(tmp_path / "eight"), metrics(straight))


def test_two_processes_draw_the_same_loss_curve_and_keep_one_record(straight, tmp_path):
  """Real processes over localhost, as on two hosts: one of them writes, both save."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-m", "launch.cli", *train_arguments(tmp_path / "two"), f"--coordinator={address}"]
  processes = [
    subprocess.Popen([*command, "--processes=2", f"--process={index}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for index in range(2)
  ]
  errors = [process.communicate(timeout=600)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], errors[0]
  lines = metrics(tmp_path / "two")
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
  check_losses(lines, metrics(straight))
  assert [line["tokens"] for line in lines] == [line["tokens"] for line in metrics(straight)]
  (expected, step, _), (found, found_step, _) = load_trainable(straight), load_trainable(tmp_path / "two")
  assert (step, found_step) == (STEPS, STEPS)
  assert found.keys() == expected.keys()


def test_generate_writes_text_and_report_shows_the_run(straight, tmp_path):
  picture = tmp_path / "a.png"
  Image.new("RGB", (120, 80), "orange").save(picture)
  done = flamingo("generate", f"--workdir={straight}", "--prompt=<image>Output:", f"--image={picture}")
  assert done.returncode == 0, done.stderr
  assert flamingo("report", str(straight)).returncode == 0
  page = (straight / "report.html").read_text()
  assert "gated cross-attention" in page


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--config=configs/tiny.py", "--config.total_step=3"], "did you mean total_steps?"),
    (["train", "--config=configs/tiny.py", "--config.streams.pages.source=nowhere"], "nowhere"),
    (["train", "--config=configs/tiny.py", "--config.tokenizer.path=nowhere"], "nowhere/tokenizer.json"),
    (["train", "--config=configs/tiny.py", "--config.mesh.fsdp=3"], "a multiple of 3 devices; there are 1."),
    (["train", "--config=configs/tiny.py", "--config.streams.videos.frames=9"], "the resampler is made for 4"),
  ],
)
def test_bad_settings_give_one_clear_error_and_claim_no_folder(quickstart_data, tmp_path, arguments, message):
  done = flamingo(*arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == USER_FAULT
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_leaves_a_bundle_that_can_be_run_again(quickstart_data, tmp_path):
  """Updates so large that nothing is finite afterwards."""
  huge = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_steps=1"]
  done = flamingo(*train_arguments(tmp_path / "run"), *huge, "--config.guard.skips_in_a_row=2")
  assert done.returncode == USER_FAULT
  assert "2 updates in a row were left out, the last at step 3" in done.stderr
  facts = json.loads((tmp_path / "run" / "crashes" / "step-3" / "crash.json").read_text())
  named = facts["rows"]["captions"][0]["records"][0]
  explained = flamingo("data", "explain", named, "--config=configs/tiny.py")
  assert explained.returncode == DONE, explained.stderr
  again = flamingo("train", f"--replay={tmp_path / 'run' / 'crashes' / 'step-3'}")
  assert again.returncode == DONE, again.stderr
  rows = [line for line in again.stdout.splitlines() if "captions" in line]
  assert len(rows) == 1 and rows[0].count("nan") == 4  # loss and gradient norm, then and now


def test_a_work_directory_of_another_config_is_refused(straight):
  done = flamingo(*train_arguments(straight), "--config.seed=1")
  assert done.returncode == USER_FAULT
  assert "seed: 0 there, 1 here" in done.stderr
  assert len(metrics(straight)) == STEPS
