"""The script for Slurm, run by bash under programs that stand in for a cluster's: sbatch, srun and scontrol."""

import json
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
import time

import pytest
from jax._src.clusters.slurm_cluster import SlurmCluster

from flamingo_jax.errors import DONE, PREEMPTED, USER_FAULT, UserError
from launch.cli import main
from launch.slurm import launch_slurm
from launch.supervisor import INTERRUPTED
from launch.train_command import Run

# Runs the script, and again for as long as it asks to be queued again; keeps the script and its last code. With --wait
# it tells the number of the job first, and ends with its code.
SBATCH = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(os.environ["CLUSTER"])
(folder / "script").write_text(sys.stdin.read())
if "--wait" in sys.argv:
  print("5123;somewhere", flush=True)
job = {"SLURM_JOB_ID": "5123", "SLURM_JOB_NODELIST": "node[001-002]"}
for start in range(20):
  (folder / "again").unlink(missing_ok=True)
  count = {"SLURM_RESTART_COUNT": str(start)} if start else {}
  code = subprocess.run(["bash", folder / "script"], env=os.environ | job | count).returncode
  (folder / "code").write_text(str(code))
  if (folder / "cancelled").exists() or not (folder / "again").exists():
    break
sys.exit(code if "--wait" in sys.argv else 0)
"""
# Two tasks, each in a process group; once both have asked for it, each group gets SIGTERM, as before a time limit.
SRUN = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["CLUSTER"])
command = sys.argv[1:]
while command[0].startswith("-"):
  command.pop(0)
step = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"]}
places = [{"SLURM_PROCID": str(n), "SLURM_LOCALID": "0"} for n in range(2)]
tasks = [subprocess.Popen(command, env=os.environ | step | place, process_group=0) for place in places]
while any(task.poll() is None for task in tasks):
  waiting = list(folder.glob("waiting-*"))
  if len(waiting) == 2:
    for path, task in zip(waiting, tasks):
      path.unlink()
      os.killpg(task.pid, signal.SIGTERM)
  time.sleep(0.02)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["CLUSTER"])
if sys.argv[1:3] == ["show", "hostnames"]:
  print("node001", "node002", sep=chr(10))
elif sys.argv[1:] == ["requeue", "5123"]:
  if os.environ.get("REFUSES"):
    sys.exit("Requested operation not supported")
  (folder / "again").touch()
"""
SCANCEL = """
import os, pathlib, sys
(pathlib.Path(os.environ["CLUSTER"]) / "cancelled").write_text(" ".join(sys.argv[1:]))
"""
# In the place of Python with flamingo: keeps its arguments and place, then ends as told for this start and process.
# "step 1" writes a line of metrics before it ends with 1; "wait" saves after SIGTERM, and ends with 75.
PYTHON = """
import json, os, pathlib, signal, sys, time
folder, number = pathlib.Path(os.environ["CLUSTER"]), int(os.environ["SLURM_PROCID"])
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
slurm = {name: value for name, value in os.environ.items() if name.startswith("SLURM")}
(folder / f"told-{start}-{number}").write_text(json.dumps([sys.argv[1:], slurm]))
endings = json.loads(os.environ["ENDINGS"])
*words, last = endings[min(start, len(endings) - 1)][number].split()
print(f"start {start + 1} of process {number}")
if "step" in words:
  [work] = [argument.removeprefix("--workdir=") for argument in sys.argv if argument.startswith("--workdir=")]
  pathlib.Path(work).mkdir(parents=True, exist_ok=True)
  with (pathlib.Path(work) / "metrics.jsonl").open("a") as file:
    print("{}", file=file)
if last == "wait":
  heard = []
  signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
  (folder / f"waiting-{number}").touch()
  while not heard:
    time.sleep(0.02)
  time.sleep(0.3)
  print("saved")
  last = 75
if int(last) < 0:
  os.kill(os.getpid(), -int(last))
sys.exit(int(last))
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A folder of what the cluster keeps; its programs are the first on PATH."""
  folder = tmp_path / "cluster"
  folder.mkdir()
  for name, text in dict(sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL, scancel=SCANCEL, python=PYTHON).items():
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("CLUSTER", str(folder))
  monkeypatch.setattr("launch.slurm.FLAMINGO", [str(folder / "python"), "-m", "launch.cli"])
  return folder


@pytest.fixture
def launch(cluster, tmp_path, monkeypatch):
  """Launches on two nodes with these endings, a pair for each start; returns the last code and the number of starts."""

  def run(*endings: tuple[str, str], **options) -> tuple[int, int]:
    monkeypatch.setenv("ENDINGS", json.dumps(endings))
    assert launch_slurm(Run("configs/tiny.py", str(tmp_path / "mine"), {}), nodes=2, **options) == DONE
    return int((cluster / "code").read_text()), starts(cluster)

  return run


def starts(cluster: pathlib.Path) -> int:
  return len(list(cluster.glob("told-*-0")))


def told(cluster: pathlib.Path, number: int = 0, start: int = 0) -> tuple[list[str], dict[str, str]]:
  return tuple(json.loads((cluster / f"told-{start}-{number}").read_text()))


def directives(script: str) -> list[str]:
  lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
  return [shlex.split(line)[0] for line in lines]  # quotation marks and backslashes mean the same there


def test_a_job_that_is_done_is_not_queued_again(launch):
  assert launch(("0", "0")) == (DONE, 1)


def test_sigterm_lets_every_process_save_and_the_job_is_queued_again(launch, tmp_path):
  assert launch(("wait", "wait"), ("0", "0")) == (DONE, 2)
  for number in range(2):
    lines = (tmp_path / "mine.logs" / f"process-{number}.log").read_text().splitlines()
    own = [line for line in lines if not line.startswith("===")]
    assert own == [f"start 1 of process {number}", "saved", f"start 2 of process {number}"]
    begun = [line.partition("Z ")[2] for line in lines if line.startswith("===")]
    assert begun == [f"start {n}, process {number} of 2" for n in (1, 2)]


def test_whatever_else_ends_it_the_job_is_queued_again(launch):
  assert launch(("76", "77"), ("-9", "77"), ("1", "0"), ("77", "77"), ("0", "75"), ("0", "0")) == (DONE, 6)


@pytest.mark.parametrize("endings", [("2", "77"), ("-9", "2"), ("2", "2")])
def test_a_fault_of_the_user_is_not_hidden_by_a_higher_code(launch, endings):
  assert launch(endings) == (USER_FAULT, 1)


def test_too_many_restarts_without_a_new_step_are_the_end(launch):
  assert launch(("1", "77"), restarts=3) == (1, 1 + 3)


def test_a_new_step_allows_as_many_restarts_again(launch):
  assert launch(("1", "0"), ("step 1", "0"), ("1", "0"), ("step 1", "0"), ("1", "0"), restarts=2) == (1, 4 + 2)


def test_where_slurm_does_not_queue_again_the_code_is_that_of_the_run(launch, monkeypatch, capfd):
  monkeypatch.setenv("REFUSES", "yes")
  assert launch(("75", "75")) == (75, 1)
  assert "goes on from the newest checkpoint" in capfd.readouterr().out


@pytest.mark.parametrize(("ending", "code"), [("0", DONE), ("2", USER_FAULT), ("1", 1)])
def test_a_launch_that_waits_ends_as_its_job(cluster, tmp_path, monkeypatch, ending, code):
  monkeypatch.setenv("ENDINGS", json.dumps([[ending, "0"]]))
  assert main(arguments(tmp_path, "--wait", "--restarts=1")) == code
  assert not (cluster / "cancelled").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)])
def test_a_launch_that_waits_and_is_asked_to_end_cancels_its_job(cluster, tmp_path, monkeypatch, number, code):
  monkeypatch.setenv("ENDINGS", json.dumps([["wait", "wait"]]))

  def ask() -> None:
    while not (cluster / "told-0-0").exists():
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  threading.Thread(target=ask, daemon=True).start()
  assert main(arguments(tmp_path, "--wait")) == code
  assert (cluster / "cancelled").read_text() == "5123"
  assert "saved" in (tmp_path / "mine.logs" / "process-0.log").read_text()


@pytest.mark.parametrize("code", [1, 0])
def test_a_sweep_hears_of_a_job_that_is_over_without_its_steps(cluster, tmp_path, capfd, code):
  (cluster / "sbatch").write_text(f"#!/bin/sh\necho 5123; exit {code}\n")
  file = tmp_path / "sweep_file.py"
  body = "return sweep.trials('configs/tiny.py', [{'seed': 1}], 'heldout/text_loss/pages')"
  file.write_text(f"from configs import sweep\n\ndef get_sweep():\n  {body}\n")
  told = ["sweep", f"--config={file}", f"--workdir={tmp_path / 'sweep'}", "--retries=1"]
  assert main([*told, "--", "--on=slurm"]) == 1
  assert "seed=1: launch 2" in (said := capfd.readouterr().out) and "seed=1: failed at step 0" in said


def test_each_node_is_told_the_place_that_jax_itself_reads(launch, cluster, monkeypatch):
  launch(("0", "0"))
  for number in range(2):
    arguments, slurm = told(cluster, number)
    for name, value in slurm.items():
      monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()
    assert arguments[-4:] == [
      f"--coordinator={SlurmCluster.get_coordinator_address(None, None)}",
      "--peer-timeout=100.0",
      f"--processes={SlurmCluster.get_process_count()}",
      f"--process={SlurmCluster.get_process_id()}",
    ]


def test_a_task_each_gpu_leaves_its_place_to_jax(launch, cluster):
  launch(("0", "0"), gpus_per_node=8, task_per_gpu=True)
  assert told(cluster)[0][-2:] == ["--coordinator=auto", "--peer-timeout=100.0"]
  assert {"--ntasks-per-node=8", "--gpus-per-node=8"} <= set(directives((cluster / "script").read_text()))
  with pytest.raises(UserError, match="--gpus-per-node"):
    launch(("0", "0"), task_per_gpu=True)


def test_what_is_asked_of_slurm(launch, cluster, tmp_path):
  asked = dict(gpus_per_node=4, partition="a100", account="vision", time="24:00:00", name="nine b", grace=90.5)
  launch(("0", "0"), sbatch=["--mem=0", "--nodes=3"], **asked)
  script = (cluster / "script").read_text()
  assert script.startswith("#!/bin/bash\n#SBATCH ")
  assert directives(script) == [
    "--requeue",
    "--job-name=nine b",
    "--nodes=2",
    "--ntasks-per-node=1",
    "--gpus-per-node=4",
    "--partition=a100",
    "--account=vision",
    "--time=24:00:00",
    "--signal=TERM@91",
    "--open-mode=append",
    f"--output={tmp_path}/mine.logs/slurm.log",
    "--mem=0",
    "--nodes=3",
  ]


HOSTILE = ["a b", "it's", '"', "; touch pwned", "$(touch pwned)", "`touch pwned`", "--", "*", "$x", "é=1", "#", "%j"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_values_arrive_as_they_are(name, cluster, tmp_path, monkeypatch):
  monkeypatch.setenv("ENDINGS", json.dumps([["step 1", "0"], ["0", "0"]]))
  monkeypatch.chdir(tmp_path)
  work = tmp_path / "runs" / name
  run = Run(f"configs/{name}.py", str(work), {"streams.pages.source": f"{name}\n{name}"}, f"a{name}")
  launch_slurm(run, nodes=2)
  for start in range(2):
    assert told(cluster, start=start)[0][: 3 + 4] == ["-m", "launch.cli", "train", *run.arguments()]
  logs = work.with_name(f"{name}.logs")
  assert {path.name for path in logs.iterdir()} == {"process-0.log", "process-1.log", "restarts-5123"}
  assert (logs / "restarts-5123").read_text() == "1 1\n"  # its metrics were found
  [output] = [line for line in directives((cluster / "script").read_text()) if line.startswith("--output=")]
  assert output.removeprefix("--output=").replace("%%", "%") == f"{logs}/slurm.log"
  assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(("name", "fault"), [("two\nlines", "line break"), ("a\\b", "backslash")])
def test_a_path_that_slurm_cannot_write_to_is_refused(cluster, tmp_path, name, fault):
  with pytest.raises(UserError, match=fault):
    launch_slurm(Run("configs/tiny.py", str(tmp_path / name), {}))
  assert {path.name for path in tmp_path.iterdir()} == {"cluster"} and not (cluster / "script").exists()


def arguments(tmp_path: pathlib.Path, *more: str) -> list[str]:
  return ["launch", "--on=slurm", "--config=configs/tiny.py", f"--workdir={tmp_path / 'mine'}", "--nodes=2", *more]


def test_a_dry_run_prints_what_is_submitted_and_does_nothing(cluster, tmp_path, monkeypatch, capfd):
  assert main(arguments(tmp_path, "--dry-run")) == DONE
  printed = capfd.readouterr()
  assert printed.err == "sbatch\n"
  assert main(arguments(tmp_path, "--dry-run", "--wait")) == DONE
  assert capfd.readouterr() == (printed.out, "sbatch --parsable --wait\n")
  assert not (tmp_path / "mine.logs").exists() and not (cluster / "script").exists()
  monkeypatch.setenv("ENDINGS", json.dumps([["0", "0"]]))
  assert main(arguments(tmp_path)) == DONE
  assert (cluster / "script").read_text() == printed.out


def test_a_machine_without_sbatch_is_told_of_the_dry_run(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert main(arguments(tmp_path)) == USER_FAULT
  assert re.search("sbatch is not on .*--dry-run", capsys.readouterr().err)


def test_what_sbatch_refuses_is_a_fault_of_the_user(cluster, tmp_path, capfd):
  (cluster / "sbatch").write_text("#!/bin/sh\necho sbatch: no such partition >&2; exit 3\n")
  assert main(arguments(tmp_path)) == USER_FAULT
  said = capfd.readouterr().err
  assert "no such partition" in said and "sbatch ended with code 3" in said


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_credential_is_neither_printed_nor_submitted(cluster, tmp_path, capfd, dry):
  secret = "hf_" + "a1b2c3d4e5" * 3
  assert main(arguments(tmp_path, f"--config.model.path=https://me:{secret}@host/x", *dry)) == USER_FAULT
  printed = capfd.readouterr()
  assert "--config.model.path holds" in printed.err
  assert secret not in printed.err + printed.out
  assert not (cluster / "script").exists() and not (tmp_path / "mine.logs").exists()
