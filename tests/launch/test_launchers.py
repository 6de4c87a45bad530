"""What each launcher takes and refuses, and `--on=local` as one process of a job that other machines start."""

import json
import shlex
import socket
import sys

import pytest

from flamingo_jax.errors import DONE, USER_FAULT, UserError
from launch.cli import main
from launch.launchers import EVERY, TAKES
from launch.local import launch_local
from launch.train_command import Run

COMMON = ["launch", "--config=configs/tiny.py", "--workdir=/runs/mine"]


@pytest.mark.parametrize("on", TAKES)
def test_options_of_other_launchers_are_refused_by_name_all_at_once(on, capsys):
  value = {"coordinator": "auto", "time": "1:00"}
  strange = ["--" + name.replace("_", "-") for name in EVERY if name not in TAKES[on]]
  given = [
    option if option in ("--task-per-gpu", "--wait") else f"{option}={value.get(option.removeprefix('--'), '1')}"
    for option in strange
  ]
  assert main([*COMMON, f"--on={on}", *given]) == USER_FAULT
  said = capsys.readouterr().err
  assert strange and all(f"{option} is not of --on={on}, but of --on=" in said for option in strange)


def test_what_is_missing_is_named_too(capsys):
  assert main([*COMMON, "--on=tpu-vm", "--nodes=2"]) == USER_FAULT
  said = capsys.readouterr().err
  for line in ("--nodes is not of --on=tpu-vm, but of --on=slurm, --on=gke.", "--name is needed", "--zone is needed"):
    assert line in said


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ("sweep --config=configs/sweeps/tiny.py --workdir=w -- --on=slurm --dry-run", "--dry-run: a sweep waits"),
    ("sweep --config=configs/sweeps/tiny.py --workdir=w -- --on=local --nodes=2", "--nodes is not of --on=local"),
    ("train --replay=crash --rewind=3", "--rewind and --skip-steps go on with a run"),
    ("train --reproduce=run --workdir=w --allow-changed=data", "--allow-changed, --rewind"),
  ],
)
def test_what_would_mean_nothing_is_refused_before_anything_begins(arguments, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main(arguments.split()) == USER_FAULT
  assert said in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ("report run --config.seed=1", "--config.seed: `flamingo report` reads no config"),
    ("launch --config=c --workdir=w --on=local --restarts=-1", "-1 is not at least 0"),
    ("launch --config=c --workdir=w --on=slurm --grace=nan", "nan is not a time in seconds"),
    ("sweep --config=c --workdir=w --retries=-3", "-3 is not at least 0"),
  ],
)
def test_numbers_and_fields_that_cannot_be_meant_are_refused(arguments, said, capsys):
  with pytest.raises(SystemExit):
    main(arguments.split())
  assert said in capsys.readouterr().err


def test_a_dry_run_on_this_machine_prints_its_commands(tmp_path, capsys):
  work = tmp_path / "it's $x"
  dry = ["launch", "--on=local", "--dry-run", "--config=configs/tiny.py", f"--workdir={work}", "--config.a=b c"]
  assert main([*dry, "--processes=2", "--devices=4", "--allow-changed=data"]) == DONE
  first, second = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
  assert first[0] == "env"
  assert first[1].startswith("XLA_FLAGS=") and first[1].endswith("--xla_force_host_platform_device_count=4")
  train = ["train", "--config=configs/tiny.py", f"--workdir={work}", "--config.a=b c", "--allow-changed=data"]
  assert first[2:11] == ["JAX_PLATFORMS=cpu", sys.executable, "-m", "launch.cli", *train]
  assert (first[-1], second[-1]) == ("--process=0", "--process=1")
  assert first[:-1] == second[:-1]
  assert not list(tmp_path.iterdir())


def test_one_process_of_a_job_has_logs_of_its_own(tmp_path, monkeypatch):
  """The program in the place of Python writes its arguments down."""
  python = tmp_path / "python"
  python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
  python.chmod(0o755)
  monkeypatch.setattr("launch.local.FLAMINGO", [str(python), "-m", "launch.cli"])
  run = Run("configs/tiny.py", str(tmp_path / "mine"), {"seed": "3"}, peer_timeout=7.0)
  assert launch_local(run, coordinator="auto") == DONE
  lines = (tmp_path / "mine.logs" / socket.gethostname() / "process-0.log").read_text().splitlines()
  assert json.loads(lines[1]) == ["-m", "launch.cli", *run.train(), "--coordinator=auto", "--peer-timeout=7.0"]
  with pytest.raises(UserError, match="--processes"):
    launch_local(run, coordinator="auto", processes=2)
