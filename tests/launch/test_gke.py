"""The JobSet for GKE, held to the models that Kubeflow makes of Kubernetes' and JobSet's own schemas."""

import json
import os
import re
import sys

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from flamingo_jax.errors import DONE, HUNG, PEER_LOST, PREEMPTED, USER_FAULT
from launch.cli import main

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
