"""Stays with a JobSet by way of kubectl, until it is over."""

import json
import signal
import subprocess
import time
from collections.abc import Callable

from flamingo_jax.errors import DONE, PREEMPTED, USER_FAULT, UserError
from launch.submitting import found, refused
from launch.supervisor import INTERRUPTED, hearing

LOOK = 15.0  # seconds between looks at the cluster
TICK = 0.2  # seconds between looks at what was heard
COMPLETED, FAILED = "Completed", "Failed"  # JobSet's words for its two ends
TO_MEND = "FailJobSetFailurePolicyAction"  # its reason where our rule failed it: a process ended with USER_FAULT


def follow_jobset(jobset: dict, create: Callable[[], object]) -> int:
  """Creates a JobSet and waits until it is over. SIGTERM and Ctrl-C delete it, which asks its processes to end.

  One of the same name and work directory that is there already is waited for; one that has failed is created anew.

  Args:
    jobset: that is created.
    create: does that.

  Returns:
    DONE; USER_FAULT where a process said so; 1 where it failed in another way, or others deleted it; where it is
    deleted here PREEMPTED (SIGTERM) or INTERRUPTED (Ctrl-C).

  Raises:
    UserError: there is no kubectl, it fails, or a JobSet of this name has another work directory.
  """
  name = jobset["metadata"]["name"]
  getting = about(jobset, "get", "--output=json", "--ignore-not-found")
  looked = subprocess.run(getting, stdout=subprocess.PIPE, text=True, check=False)
  if looked.returncode != DONE:
    raise refused(getting, looked.returncode)
  there = json.loads(looked.stdout or "null")
  if there and workdir_of(there) != workdir_of(jobset):
    raise UserError(
      f"--name: the cluster has a JobSet {name} with {workdir_of(there)}; this one has {workdir_of(jobset)}. Give it "
      "another name."
    )
  with hearing() as asked:
    if there and ending(there)[0] == FAILED:
      print(f"flamingo launch: JobSet {name} had failed, and is created anew", flush=True)
      subprocess.run(about(jobset, "delete"), check=False)
      there = None
    if not there:
      create()
    return wait(name, getting, about(jobset, "delete", "--cascade=foreground"), asked)


def wait(name: str, getting: list[str], deleting: list[str], asked: list[int]) -> int:
  """Until a JobSet is over, or a signal is heard. A look that fails, as where the network is down, is made again.

  Raises:
    UserError: the JobSet was to be deleted, and could not be.
  """
  while not asked:
    looked = subprocess.run(getting, stdout=subprocess.PIPE, text=True, check=False)
    if looked.returncode == DONE:
      there = json.loads(looked.stdout or "null")
      end, reason = ending(there) if there else (FAILED, "it is not there any more")
      if end == COMPLETED:
        return DONE
      if end == FAILED:
        print(f"flamingo launch: JobSet {name} failed: {reason}", flush=True)
        return USER_FAULT if reason == TO_MEND else 1
    until = time.monotonic() + LOOK
    while time.monotonic() < until and not asked:
      time.sleep(TICK)
  if code := subprocess.run(deleting, check=False).returncode:
    print(f"flamingo launch: JobSet {name} could not be deleted, and may go on", flush=True)
    raise refused(deleting, code)
  return PREEMPTED if asked[0] == signal.SIGTERM else INTERRUPTED


def about(jobset: dict, verb: str, *options: str) -> list[str]:
  """What kubectl is told about a JobSet. Raises UserError where there is no kubectl."""
  metadata = jobset["metadata"]
  namespace = [f"--namespace={metadata['namespace']}"] if "namespace" in metadata else []
  return found(["kubectl", verb, "jobset", metadata["name"], *namespace, *options])


def ending(jobset: dict) -> tuple[str, str]:
  """(COMPLETED or FAILED, why); two empty texts for one that is at work."""
  for condition in jobset.get("status", {}).get("conditions", []):
    if condition["type"] in (COMPLETED, FAILED) and condition["status"] == "True":
      return condition["type"], condition.get("reason", "")
  return "", ""


def workdir_of(jobset: dict) -> str:
  """The argument of the processes of a JobSet; empty for one that is not of a run."""
  jobs = (job["template"]["spec"]["template"]["spec"] for job in jobset["spec"]["replicatedJobs"])
  arguments = (argument for job in jobs for container in job["containers"] for argument in container.get("args", ()))
  return next((argument for argument in arguments if argument.startswith("--workdir=")), "")
