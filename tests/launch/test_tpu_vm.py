"""What the workers of a TPU are told: a program in the place of gcloud lets bash run it, as their shells would."""

import json
import os
import pathlib
import re
import shlex
import socket
import sys
import time

import pytest

from flamingo_jax.errors import DONE, USER_FAULT
from launch.arguments import make_parser
from launch.cli import main, take_overrides
from launch.launchers import checked
from launch.tpu_vm import launch_tpu_vm
from launch.train_command import Run

# Two workers, each with a home directory; ends with the highest code of their shells.
GCLOUD = """
import json, os, pathlib, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
(cloud / "told").write_text(json.dumps(sys.argv[1:]))
[command] = [text.removeprefix("--command=") for text in sys.argv if text.startswith("--command=")]
shells = [subprocess.Popen(["bash", "-c", command], cwd=cloud / worker) for worker in ("worker-0", "worker-1")]
sys.exit(max(shell.wait() for shell in shells))
"""
FLAMINGO = """
import json, os, pathlib, signal, sys, time
if os.environ.get("FAILS"):
  sys.exit("flamingo: something to mend")
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not sys.stdin.read()
time.sleep(float(os.environ.get("RUNS", "0")))
pathlib.Path("told.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A folder with the homes of two workers; its gcloud is the first on PATH."""
  folder = tmp_path / "cloud"
  projects = [f"worker-{number}/{name}" for number in range(2) for name in ("flamingo_jax", "my code")]
  programs = {"gcloud": GCLOUD} | {f"{project}/.venv/bin/flamingo": FLAMINGO for project in projects}
  for name, text in programs.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("CLOUD", str(folder))
  monkeypatch.setattr("launch.tpu_vm.LOOK", 0.5)
  return folder


def heard(folder: pathlib.Path) -> list[str]:
  """What the launcher on a worker was told."""
  deadline = time.monotonic() + 60
  path = folder / "told.json"
  while time.monotonic() < deadline and not (path.exists() and path.read_text()):
    time.sleep(0.02)
  return json.loads(path.read_text())


HOSTILE = ["a b", "it's", '"', "; touch pwned", "$(touch pwned)", "`touch pwned`", "two\nlines", "--", "*", "$x", "\\"]


def test_names_and_values_arrive_as_they_are(cloud):
  for value in HOSTILE:
    run = Run(f"configs/{value}.py", f"/mnt/runs/{value}", {"streams.pages.source": value}, f"a{value}", 7.0)
    assert launch_tpu_vm(run, name="pod", zone="us-east5-a", folder="my code", restarts=3, grace=9.0) == DONE
    for number in range(2):
      given = heard(cloud / f"worker-{number}" / "my code")
      assert given[:7] == ["launch", "--on=local", "--coordinator=auto", *run.arguments()]
      assert given[7:] == ["--peer-timeout=7.0", "--restarts=3", "--grace=9.0"]
      (cloud / f"worker-{number}" / "my code" / "told.json").unlink()
  assert not list(cloud.rglob("pwned"))


def test_the_launcher_of_a_worker_takes_what_it_is_told(cloud):
  launch_tpu_vm(Run("configs/tiny.py", "/mnt/runs/mine", {"seed": "3"}, "data"), name="pod", zone="z")
  given, overrides = take_overrides(heard(cloud / "worker-0" / "flamingo_jax"))
  told = make_parser().parse_args(given)
  options = vars(told)
  assert (options["on"], options["config"], options["workdir"]) == ("local", "configs/tiny.py", "/mnt/runs/mine")
  assert (options["allow_changed"], overrides) == ("data", {"seed": "3"})
  checked(told)


def test_it_outlives_the_connection(cloud, monkeypatch):
  monkeypatch.setenv("RUNS", "2")
  launch_tpu_vm(Run("configs/tiny.py", "/mnt/runs/mine", {}), name="pod", zone="z")
  assert not list(cloud.rglob("told.json"))
  assert heard(cloud / "worker-1" / "flamingo_jax")[0] == "launch"


def test_gcloud_is_told_which_tpu(cloud):
  launch_tpu_vm(Run("configs/tiny.py", "/mnt/runs/mine", {}), name="pod", zone="us-east5-a", project="vision")
  *given, command = json.loads((cloud / "told").read_text())
  assert given[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
  assert given[5:] == ["--zone=us-east5-a", "--worker=all", "--project=vision"]
  assert command.startswith("--command=cd flamingo_jax && ")


COMMON = ["launch", "--on=tpu-vm", "--config=configs/tiny.py", "--workdir=/mnt/runs/mine", "--name=pod", "--zone=z"]


def test_what_ends_at_once_is_shown(cloud, monkeypatch, capfd):
  monkeypatch.setenv("FAILS", "yes")
  assert main(COMMON) == USER_FAULT
  printed = capfd.readouterr()
  assert "flamingo: something to mend" in printed.out and "gcloud ended with code 1" in printed.err


def test_a_worker_without_the_project_is_a_fault(cloud):
  assert main([*COMMON, "--folder=nowhere"]) == USER_FAULT


@pytest.mark.parametrize("folder", ["flamingo_jax", "my code"])
def test_a_worker_where_nothing_is_installed_says_so(cloud, capfd, folder):
  (cloud / "worker-1" / folder / ".venv/bin/flamingo").unlink()
  assert main([*COMMON, f"--folder={folder}"]) == USER_FAULT
  said = capfd.readouterr().err
  assert f"{socket.gethostname()}: {folder}/.venv/bin/flamingo is missing. Put the project there" in said
  assert heard(cloud / "worker-0" / folder)[0] == "launch"


def test_a_dry_run_prints_the_command_and_does_nothing(cloud, capfd):
  assert main([*COMMON, "--dry-run"]) == DONE
  printed = capfd.readouterr()
  assert not (cloud / "told").exists() and not printed.err
  assert main(COMMON) == DONE
  assert shlex.split(printed.out)[1:] == json.loads((cloud / "told").read_text())


def test_a_machine_without_gcloud_is_told_of_the_dry_run(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert main(COMMON) == USER_FAULT
  assert re.search("gcloud is not on .*--dry-run", capsys.readouterr().err)
