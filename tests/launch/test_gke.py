"""The JobSet for GKE, held to the models that Kubeflow makes of Kubernetes' and JobSet's own schemas."""

import itertools
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from flamingo_jax.errors import DONE, HUNG, PEER_LOST, PREEMPTED, USER_FAULT
from launch import jobsets
from launch.cli import main
from launch.supervisor import INTERRUPTED

COMMON = ["launch", "--on=gke", "--config=configs/tiny.py", "--image=repository/flamingo:1", "--volume=runs:/runs"]


@pytest.fixture
def make(capsys):
  """The JobSet that a dry run prints, once Kubernetes' schemas have been found to know all of it."""

  def run(*options: str) -> dict:
    assert main([*COMMON, "--workdir=/runs/mine", "--dry-run", *options]) == DONE
    printed = capsys.readouterr()
    assert printed.err == "kubectl create --filename=-\n"
    jobset = yaml.safe_load(printed.out)
    # Values of a wrong type are refused, and what a schema does not know is left out.
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    return jobset

  return run


def parts(jobset: dict) -> tuple[dict, dict, dict, dict]:
  """The replicated job, its job, pod and container."""
  [replicated] = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  return replicated, job, pod, container


# Topology, label of the nodes, hosts, chips of each: rows of the tables in GKE's documentation ("Plan TPUs in GKE").
SLICES = [
  ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
  ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
  ("v4:8x12x16", "tpu-v4-podslice", 384, 4),
  ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
  ("v5e:2x2", "tpu-v5-lite-podslice", 1, 4),
  ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
  ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
  ("v5e:8x8", "tpu-v5-lite-podslice", 16, 4),
  ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
  ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
  ("v5p:2x4x4", "tpu-v5p-slice", 8, 4),
  ("v6e:2x4", "tpu-v6e-slice", 1, 8),
  ("v6e:8x16", "tpu-v6e-slice", 32, 4),
]


@pytest.mark.parametrize(("topology", "accelerator", "hosts", "chips"), SLICES)
def test_a_slice_has_the_hosts_that_gke_gives_it(make, topology, accelerator, hosts, chips):
  jobset = make(f"--topology={topology}")
  replicated, job, pod, container = parts(jobset)
  assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, hosts, hosts)
  assert job["completionMode"] == "Indexed"
  assert container["resources"]["limits"] == {"google.com/tpu": chips}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
  }
  assert container["args"][-2:] == ["--coordinator=auto", "--peer-timeout=100.0"]
  assert "gke-nodepool" in next(iter(jobset["metadata"]["annotations"].values()))  # a slice is a node pool
  assert "hostNetwork" not in pod


def test_several_slices_are_replicas(make):
  replicated, job, pod, _ = parts(make("--topology=v5p:2x2x2", "--slices=3"))
  assert (replicated["replicas"], job["completions"]) == (3, 2)
  assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_nodes_with_gpus_meet_at_the_first_pod(make):
  gpus = ["--gpus-per-node=8", "--nodes=4", "--accelerator=nvidia-h100-80gb"]
  replicated, job, pod, container = parts(make(*gpus, "--name=nine"))
  assert (replicated["replicas"], job["completions"]) == (1, 4)
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
  # JobSet's own name of a pod: <jobset>-<replicated job>-<job>-<pod>.<jobset>
  first = f"nine-{replicated['name']}-0-0.nine"
  [address] = [text for text in container["args"] if text.startswith("--coordinator=")]
  assert re.fullmatch(rf"--coordinator={first}:\d+", address)
  assert {"--processes=4", "--process=$(JOB_COMPLETION_INDEX)"} < set(container["args"])


def test_a_fault_to_mend_ends_all_and_anything_else_starts_all_again(make):
  spec = make("--topology=v5e:4x4", "--restarts=7", "--grace=90.5")["spec"]
  _, job, pod, container = parts(dict(spec=spec))
  [rule] = job["podFailurePolicy"]["rules"]
  [code] = rule["onExitCodes"]["values"]
  assert (rule["action"], rule["onExitCodes"]["operator"], code) == ("FailJob", "In", USER_FAULT)
  assert code not in (PREEMPTED, HUNG, PEER_LOST) and rule["onExitCodes"]["containerName"] == container["name"]
  # Any other failure ends the job as well (no retry within it), for another reason, and no rule speaks of that:
  # JobSet then starts all jobs again, so many times.
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  assert spec["failurePolicy"]["maxRestarts"] == 7
  [rule] = spec["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert pod["terminationGracePeriodSeconds"] == 91


def test_volumes_secrets_and_namespace(make):
  jobset = make("--topology=v5e:4x4", "--volume=data:/mnt/data", "--secret=wandb", "--namespace=vision")
  _, _, pod, container = parts(jobset)
  claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"]}
  mounted = {claims[each["name"]]: each["mountPath"] for each in container["volumeMounts"]}
  assert mounted == {"runs": "/runs", "data": "/mnt/data"}
  assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}]
  assert jobset["metadata"]["namespace"] == "vision"


def expanded(text: str, variables: dict[str, str]) -> str:
  """What a container gets of an argument, as Kubernetes' documentation has it: $$ is $, unknown names stay."""
  return re.sub(
    r"\$\$|\$\(([^)]*)\)", lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]), text
  )


HOSTILE = ["a b", "it's", '"', "$(HOME)", "$$(HOME)", "$HOME", "$", "two\nlines", "# no", "- x", "yes", "1e3", "é: {}"]


@pytest.mark.parametrize("value", HOSTILE)
def test_values_arrive_as_they_are(make, value):
  options = ["--topology=v5e:4x4", f"--config.model.path={value}", f"--allow-changed={value}", "--name=nine"]
  _, _, _, container = parts(make(*options))
  given = [expanded(text, {"HOME": "/root"}) for text in container["command"] + container["args"]]
  fields = [f"--config.model.path={value}", f"--allow-changed={value}"]
  assert given[:6] == ["flamingo", "train", "--config=configs/tiny.py", "--workdir=/runs/mine", *fields]


FAULTS = [
  (["--workdir=/elsewhere/mine", "--topology=v5e:4x4"], ["--workdir=/elsewhere/mine is in none of --volume"]),
  (["--workdir=/runs/1x", "--topology=v5e:4x4"], ["--name is '1x'"]),
  (["--workdir=/runs/x", f"--name={'x' * 41}", "--topology=v5e:4x4"], ["40 at most"]),
  (["--workdir=/runs/x", "--volume=x", "--topology=v5e:3x3"], ["--volume=x:", "9 chips"]),
  (["--workdir=/runs/x", "--topology=v9:2x2"], ["v9:2x2"]),
  (["--workdir=/runs/x"], ["--topology=", "--gpus-per-node="]),
  (["--workdir=/runs/x", "--slices=2", "--gpus-per-node=8"], ["--slices"]),
  (["--workdir=/runs/x", "--topology=v5e:4x4", "--gpus-per-node=8", "--nodes=2"], ["--gpus-per-node, --nodes"]),
]


@pytest.mark.parametrize(("options", "named"), FAULTS)
def test_what_does_not_fit_is_named(options, named, capsys):
  assert main([*COMMON, *options, "--dry-run"]) == USER_FAULT
  printed = capsys.readouterr()
  assert not printed.out
  assert all(word in printed.err for word in named)


KEEP = """
import json, os, pathlib, sys
pathlib.Path(os.environ["KEPT"]).write_text(json.dumps([sys.argv[1:], sys.stdin.read()]))
"""


def test_kubectl_gets_what_a_dry_run_prints(make, tmp_path, monkeypatch):
  """A program in the place of kubectl keeps what it is given."""
  kubectl = tmp_path / "kubectl"
  kubectl.write_text(f"#!{sys.executable}\n{KEEP}")
  kubectl.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("KEPT", str(tmp_path / "kept"))
  dry = make("--topology=v5e:4x4")
  assert main([*COMMON, "--workdir=/runs/mine", "--topology=v5e:4x4"]) == DONE
  arguments, text = json.loads((tmp_path / "kept").read_text())
  assert arguments == ["create", "--filename=-"]
  assert yaml.safe_load(text) == dry


def test_a_machine_without_kubectl_is_told_of_the_dry_run(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert main([*COMMON, "--workdir=/runs/mine", "--topology=v5e:4x4"]) == USER_FAULT
  assert re.search("kubectl is not on .*--dry-run", capsys.readouterr().err)


# Has one JobSet at most, in a file; of each look at it takes the next of the conditions that it is to have.
CLUSTER = """
import json, os, pathlib, sys, yaml
folder = pathlib.Path(os.environ["CLUSTER"])
jobset, told, conditions = folder / "jobset", folder / "told", folder / "conditions"
with told.open("a") as file:
  file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "create":
  if jobset.exists():
    sys.exit("AlreadyExists")
  jobset.write_text(sys.stdin.read())
elif sys.argv[1] == "delete":
  if (folder / "refuses").exists():
    sys.exit("Forbidden")
  jobset.unlink()
elif jobset.exists():
  first, *rest = json.loads(conditions.read_text())
  conditions.write_text(json.dumps(rest or [first]))
  if first == "down":
    sys.exit("no route to host")
  if first == "gone":
    jobset.unlink()
    sys.exit()
  kind, reason = first or ("StartupPolicyCompleted", "")
  status = dict(conditions=[dict(type=kind, status="True", reason=reason)])
  print(json.dumps(yaml.safe_load(jobset.read_text()) | dict(status=status)))
"""
WAITING = [*COMMON, "--workdir=/runs/mine", "--topology=v5e:4x4", "--wait", "--namespace=research"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A program in the place of kubectl: (the JobSet's conditions, look by look) -> the folder it keeps things in."""
  (tmp_path / "kubectl").write_text(f"#!{sys.executable}\n{CLUSTER}")
  (tmp_path / "kubectl").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("CLUSTER", str(tmp_path))
  monkeypatch.setattr(jobsets, "LOOK", 0.01)

  def make(*conditions) -> pathlib.Path:
    (tmp_path / "conditions").write_text(json.dumps(conditions))
    return tmp_path

  return make


def verbs(folder: pathlib.Path) -> list[str]:
  """What kubectl was told, without looks that follow each other."""
  return [verb for verb, _ in itertools.groupby(line.split()[0] for line in (folder / "told").open())]


ENDINGS = [
  ([None, None, ("Completed", "AllJobsCompleted")], DONE, ""),
  ([None, "down", "down", ("Completed", "AllJobsCompleted")], DONE, ""),
  ([None, ("Failed", "ReachedMaxRestarts")], 1, "failed: ReachedMaxRestarts"),
  ([None, ("Failed", "FailJobSetFailurePolicyAction")], USER_FAULT, "failed: FailJobSetFailurePolicyAction"),
  ([None, "gone", None], 1, "failed: it is not there any more"),
]


@pytest.mark.parametrize(("conditions", "code", "told"), ENDINGS)
def test_a_launch_that_waits_ends_as_its_jobset(cluster, capfd, conditions, code, told):
  folder = cluster(*conditions)
  assert main(WAITING) == code
  assert told in capfd.readouterr().out
  assert verbs(folder) == ["get", "create", "get"]
  assert all("jobset mine --namespace=research" in line for line in (folder / "told").open() if line.startswith("get"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)])
def test_a_launch_that_is_asked_to_end_deletes_its_jobset_and_waits_for_its_pods(cluster, number, code):
  folder = cluster(None)

  def ask() -> None:
    while not (folder / "jobset").exists() or verbs(folder)[-1] != "get":
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  threading.Thread(target=ask, daemon=True).start()
  assert main(WAITING) == code
  assert (folder / "told").read_text().splitlines()[-1] == (
    "delete jobset mine --namespace=research --cascade=foreground"
  )
  assert not (folder / "jobset").exists()


def test_a_jobset_that_cannot_be_deleted_is_not_taken_for_one_that_is(cluster, capfd):
  folder = cluster(None)
  (folder / "refuses").touch()

  def ask() -> None:
    while not (folder / "jobset").exists() or verbs(folder)[-1] != "get":
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=ask, daemon=True).start()
  assert main(WAITING) == USER_FAULT
  printed = capfd.readouterr()
  assert "JobSet mine could not be deleted, and may go on" in printed.out
  assert "kubectl ended with code 1; what it says is above" in printed.err


def test_a_jobset_of_the_same_run_is_waited_for_and_one_that_failed_is_created_anew(cluster, capfd):
  folder = cluster(None, ("Failed", "ReachedMaxRestarts"))
  assert main(WAITING) == 1
  (folder / "told").unlink()
  cluster(("Failed", "ReachedMaxRestarts"), None, ("Completed", ""))
  assert main(WAITING) == DONE
  assert verbs(folder) == ["get", "delete", "create", "get"]
  assert "had failed, and is created anew" in capfd.readouterr().out
  (folder / "told").unlink()
  cluster(None, None, ("Completed", ""))
  assert main(WAITING) == DONE  # as after a launch that was killed
  assert verbs(folder) == ["get"]


def test_a_jobset_of_another_run_is_left_alone(cluster, capfd):
  folder = cluster(("Failed", "ReachedMaxRestarts"))
  assert main(WAITING) == 1
  (folder / "told").unlink()
  assert main([option.replace("/runs/mine", "/runs/other/mine") for option in WAITING]) == USER_FAULT
  assert (
    "has a JobSet mine with --workdir=/runs/mine; this one has --workdir=/runs/other/mine" in capfd.readouterr().err
  )
  assert verbs(folder) == ["get"]


def test_a_sweep_hears_of_a_jobset_that_has_given_up(cluster, tmp_path, capfd, monkeypatch):
  folder = cluster(("Failed", "ReachedMaxRestarts"))
  file = tmp_path / "sweep_file.py"
  body = "return sweep.trials('configs/tiny.py', [{'seed': 1}], 'heldout/text_loss/pages')"
  file.write_text(f"from configs import sweep\n\ndef get_sweep():\n  {body}\n")
  told = ["sweep", f"--config={file}", f"--workdir={tmp_path / 'sweep'}", "--retries=1", "--", "--on=gke"]
  assert main([*told, "--image=repository/flamingo:1", f"--volume=runs:{tmp_path}", "--topology=v5e:4x4"]) == 1
  assert "seed=1: failed at step 0 (JobSet" in capfd.readouterr().out.replace("flamingo launch: ", "")
  assert verbs(folder) == ["get", "create", "get", "delete", "create", "get"]
