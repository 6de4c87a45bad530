import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from configs import tiny
from flamingo_jax.errors import USER_FAULT
from flamingo_jax.planning.parameters import Comparison, compare
from flamingo_jax.planning.topologies import GENERATIONS
from launch.planning import explanations, preset, short

ROOT = pathlib.Path(__file__).parent.parent.parent


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def plan(*arguments: str, folder: pathlib.Path, what: str = "--parameters") -> subprocess.CompletedProcess:
  """Runs the command where there is no data, no tokenizer and no weights."""
  command = [sys.executable, "-m", "launch.cli", "plan", what, *arguments]
  environment = {"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"}
  return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_80b_is_planned_from_its_config_alone(tmp_path):
  """Against the closed forms of the language model's width D; gated layers read media of that width."""
  finished = plan("--config=configs/flamingo_80b.py", "--json", folder=tmp_path)
  assert finished.returncode == 0, finished.stderr
  parts = json.loads(finished.stdout)["parts"]
  d, layers, gated = 8192, 80, 12
  norms, gates = 2 * 2 * d, 2
  assert parts["gated cross-attention"] == dict(
    trained=gated * (12 * d**2 + norms + gates),
    frozen=0,
    count=gated * (12 * d**2 + norms + gates),
    published=10_000_000_000,
    difference_percent=-3.36,
  )
  scales, biases = 2 * d, 2 * d  # of norms; of content and distance
  assert parts["language model"]["frozen"] == layers * (13 * d**2 + scales + biases) + 32_000 * d + d
  assert parts["added token embeddings"]["trained"] == 2 * d
  everything = [part["count"] for name, part in parts.items() if name != "total"]
  assert parts["total"]["count"] == sum(everything)
  assert list(tmp_path.iterdir()) == []


def test_the_table_shows_the_paper_and_says_why_we_differ(tmp_path):
  finished = plan("--config=configs/flamingo_9b.py", folder=tmp_path)
  assert finished.returncode == 0, finished.stderr
  lines = {line.split("│")[1].strip(): line.split() for line in finished.stdout.splitlines() if line.startswith("│")}
  assert {"8.856B", "7.1B", "+24.7%"} <= set(lines["language model"])
  assert {"430.6M", "435M", "-1.0%"} <= set(lines["vision encoder"])
  assert "configs/flamingo_9b_counts.py" in finished.stdout
  assert "\nvision encoder:" not in finished.stdout


def test_a_wrong_config_is_one_clear_message(tmp_path):
  finished = plan("--config=configs/flamingo_3b.py", "--config.model.language.width='wide'", folder=tmp_path)
  assert finished.returncode == USER_FAULT
  assert finished.stdout == ""
  (line,) = [line for line in finished.stderr.splitlines() if line.startswith("flamingo plan:")]
  assert line == "flamingo plan: configs/flamingo_3b.py: model.language.width is 'wide'; it is of type int."
  assert "Traceback" not in finished.stderr


@needs_libtpu
def test_a_step_is_compiled_for_a_slice(tmp_path):
  given = ("--config=configs/tiny.py", "--config.mesh.replica=1", "--config.mesh.fsdp=4", "--search=1", "--json")
  finished = plan(*given, folder=tmp_path, what="--topology=v5e:2x2")
  assert finished.returncode == 0, finished.stderr
  printed = json.loads(finished.stdout)
  ranked = printed["ranked"]
  assert printed["too_large"] == []
  [cost] = ranked
  assert cost["settings"] == {}  # the nearest settings are the config's own
  assert cost["mesh"] == dict(replica=1, fsdp=4, model=1)
  config = tiny.get_config()
  assert cost["tokens_per_step"] == sum(stream.batch_size * stream.length for stream in config.streams.values())
  assert cost["step_seconds"] == max(cost["roofline_seconds"].values())
  assert cost["mfu_bound"] == pytest.approx(
    cost["model_flops_per_step"] / (4 * GENERATIONS["v5e"].flops * cost["step_seconds"])
  )
  assert cost["days"] == pytest.approx(config.total_steps * cost["step_seconds"] / 86400)
  assert cost["model_flops"]["vision encoder"]["weights"] == 0 < cost["model_flops"]["resampler"]["weights"]
  held = cost["argument_bytes_per_chip"]
  assert held <= cost["peak_bytes_per_chip"] < cost["usable_bytes"]
  assert cost["collective_bytes_per_chip"]["all-gather"] > 0  # fully sharded weights


@needs_libtpu
def test_a_contrastive_step_hands_embeddings_round_and_gathers_none(tmp_path):
  """Each chip sends its embeddings to the next one, forward, and backward once more with their gradients."""
  small = ("model.vision.layers=1", "model.text.layers=1", "model.dtype=bfloat16", "mesh.replica=4")
  finished = plan(
    "--config=configs/quickstart_vision.py",
    *(f"--config.{setting}" for setting in small),
    "--json",
    folder=tmp_path,
    what="--topology=v5e:2x2",
  )
  assert finished.returncode == 0, finished.stderr
  cost = json.loads(finished.stdout)
  rows, width, turns = 96 // 4, 256, 4
  embeddings = 4 * rows * width
  sent = cost["collective_bytes_per_chip"]
  assert "all-gather" not in sent
  assert 3 * turns * embeddings <= sent["collective-permute"] < 3.2 * turns * embeddings
  assert cost["peak_bytes_per_chip"] < cost["usable_bytes"]


@needs_libtpu
def test_a_step_that_does_not_fit_names_numbers_and_meshes_that_would(tmp_path):
  wide = [f"--config.model.language.{name}" for name in ("width=8192", "feed_forward_width=65536", "layers=6")]
  finished = plan("--config=configs/tiny.py", *wide, folder=tmp_path, what="--topology=v5e:2x2")
  assert finished.returncode == USER_FAULT and finished.stdout == ""
  assert re.search(r"the step takes [\d.]+ GiB of a chip, which has 15.8", finished.stderr)
  assert "GiB are parameters, optimizer state and batches" in finished.stderr
  assert "Traceback" not in finished.stderr


def test_a_slice_or_mesh_that_does_not_fit_is_one_clear_message(tmp_path):
  finished = plan("--config=configs/tiny.py", folder=tmp_path, what="--topology=v5e:4x4x4")
  assert finished.returncode == USER_FAULT
  assert finished.stderr.splitlines()[-1].startswith("flamingo plan: --topology is 'v5e:4x4x4'; a slice of v5e has 2")


def test_steps_that_differ_are_not_planned_as_if_they_were_alike(tmp_path):
  finished = plan(
    "--config=configs/tiny.py", "--config.mixture=round_robin", folder=tmp_path, what="--topology=v5e:2x2"
  )
  assert finished.returncode == USER_FAULT
  assert "mixture is 'round_robin'" in finished.stderr


def test_a_config_of_ones_own_is_not_taken_for_the_preset_of_that_name(tmp_path):
  mine = tmp_path / "flamingo_3b.py"
  mine.write_text("")
  assert preset(str(mine)) == ""
  assert preset("configs/flamingo_3b.py") == "flamingo_3b"


def test_differences_are_explained_from_five_percent_on():
  counts = {"resampler": (106, 0), "language model": (0, 951), "vision encoder": (0, 7)}
  rows = compare(counts, {"resampler": 100, "language model": 1000, "total": 1000})
  assert rows[-1] == Comparison("total", 106, 958, 1000)
  assert [row.difference for row in rows] == [pytest.approx(6), pytest.approx(-4.9), None, pytest.approx(6.4)]
  assert explanations(rows, {"resampler": "why.", "language model": "not needed."}) == {
    "resampler": "why.",
    "total": "the command line changed the model.",
  }


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0"), (999, "999"), (16_384, "16.38K"), (435e6, "435M"), (1_157_824_560, "1.158B"), (70_057_992_192, "70.06B")],
)
def test_counts_are_short_to_read(count, text):
  assert short(count) == text
