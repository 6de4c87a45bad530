"""`flamingo launch --on=gke`: one JobSet on slices of TPUs or nodes with GPUs (docs/launch.md)."""

import dataclasses
import functools
import math
import pathlib
import re

import yaml

from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.planning.topologies import parse_topology
from launch.jobsets import follow_jobset
from launch.submitting import submit
from launch.train_command import Run

ACCELERATORS = {  # generation -> label of the nodes (GKE's "Plan TPUs")
  "v4": "tpu-v4-podslice",
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
}
ONE_HOST = {(1, 1): 1, (2, 2): 4, (2, 4): 8}  # slices of v5e and v6e that are one machine; in all others it has 4 chips
CHIPS_OF_HOST = 4
PORT = 8476  # of the first process, where the cluster does not tell
JOB = "workers"
LONGEST_NAME = 40  # with what Kubernetes adds, a host name has 63 characters at most
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Machines:
  """What one replicated job runs on.

  Attributes:
    jobs: of it; a slice is one, all nodes with GPUs are one.
    hosts: of each job.
    resource: that a container asks for.
    devices: of it, of each host.
    selector: labels of the nodes.
    place: arguments by which a process finds the others.
  """

  jobs: int
  hosts: int
  resource: str
  devices: int
  selector: dict[str, str]
  place: list[str]


def launch_gke(
  run: Run,
  *,
  image: str,
  volume: list[str],
  dry_run: bool = False,
  wait: bool = False,
  name: str | None = None,
  secret: str | None = None,
  namespace: str | None = None,
  restarts: int = 20,
  grace: float = 120.0,
  **asked,
) -> int:
  """Creates one JobSet; returns an exit code.

  Args:
    run: what is trained; its paths are those of the container.
    image: that has the command `flamingo`.
    volume: persistent volume claims as CLAIM:PATH; one of them has the work directory.
    dry_run: print the JobSet and the command, and do nothing.
    wait: until the JobSet is over, for what it came to; asked to end by SIGTERM or Ctrl-C, the JobSet is deleted.
    name: of the JobSet; that of the work directory unless given.
    secret: whose entries become environment variables.
    namespace: of the JobSet.
    restarts: of all, whatever the cause.
    grace: seconds between asking a process to end and killing it.
    asked: TPUs by topology and slices; or GPUs by gpus_per_node, nodes and accelerator.

  Raises:
    UserError: anything of this is not as it should be, all at once; or there is no kubectl, or it fails.
  """
  name = name or re.sub(r"[^a-z0-9]+", "-", pathlib.PurePosixPath(run.workdir).name.lower()).strip("-")
  faults = name_faults(name) + mount_faults(run, volume)
  try:
    machines = find_machines(name, **asked)
  except UserError as error:
    faults.append(str(error))
  if faults:
    raise UserError("\n".join(faults))
  pod = pod_spec(run, machines, image, [split_volume(each) for each in volume], secret, grace)
  jobset = job_set(name, namespace, machines, pod, restarts)
  text = yaml.safe_dump(jobset, sort_keys=False, allow_unicode=True, width=math.inf)
  create = functools.partial(submit, ["kubectl", "create", "--filename=-"], text, dry_run=dry_run)
  return follow_jobset(jobset, create) if wait and not dry_run else create()


def name_faults(name: str) -> list[str]:
  if NAME.fullmatch(name) and len(name) <= LONGEST_NAME:
    return []
  return [
    f"--name is {name!r}; a JobSet's has a letter, then letters, digits and -, {LONGEST_NAME} at most, all small."
  ]


def mount_faults(run: Run, volumes: list[str]) -> list[str]:
  mounts = [split_volume(each) for each in volumes]
  faults = [
    f"--volume={each}: it is CLAIM:PATH, such as runs:/runs, with a path from the root."
    for each, (claim, path) in zip(volumes, mounts, strict=True)
    if not (claim and path.startswith("/"))
  ]
  workdir = pathlib.PurePosixPath(run.workdir)
  if not any(workdir.is_relative_to(path) for _, path in mounts if path.startswith("/")):
    faults.append(
      f"--workdir={run.workdir} is in none of --volume: it would end with its container, and each have its own."
    )
  return faults


def split_volume(volume: str) -> tuple[str, str]:
  """The claim and the path."""
  claim, _, path = volume.partition(":")
  return claim, path


def find_machines(
  name: str,
  *,
  topology: str | None = None,
  slices: int | None = None,
  gpus_per_node: int | None = None,
  nodes: int | None = None,
  accelerator: str | None = None,
) -> Machines:
  """Slices of TPUs, or nodes with GPUs.

  Raises:
    UserError: both or neither, or no such slice.
  """
  gpus = {"--gpus-per-node": gpus_per_node, "--nodes": nodes, "--accelerator": accelerator}
  given = [option for option, value in gpus.items() if value is not None]
  if topology and given:
    raise UserError(f"{', '.join(given)}: they are for GPUs, and --topology is for TPUs.")
  if topology:
    return slice_machines(topology, slices or 1)
  if slices:
    raise UserError("--slices: --topology says of what, and is missing.")
  if gpus_per_node is None:
    raise UserError("--topology=v5e:8x8 for TPUs, or --gpus-per-node=8 for GPUs, is needed with --on=gke.")
  selector = {"cloud.google.com/gke-accelerator": accelerator} if accelerator else {}
  hosts = nodes or 1
  # Kubernetes puts the variable in; the name is that of the first pod in the JobSet's own subdomain.
  first = f"{name}-{JOB}-0-0.{name}:{PORT}"
  place = [f"--coordinator={first}", f"--processes={hosts}", "--process=$(JOB_COMPLETION_INDEX)"]
  return Machines(1, hosts, "nvidia.com/gpu", gpus_per_node, selector, place)


def slice_machines(topology: str, slices: int) -> Machines:
  """JAX finds the hosts of a slice, and the slices, in what GKE puts into the environment."""
  _, shape = parse_topology(topology)
  generation, _, sides = topology.partition(":")
  chips = math.prod(shape)
  host = ONE_HOST.get(shape, CHIPS_OF_HOST)
  if chips % host:
    raise UserError(f"--topology={topology} has {chips} chips; GKE's machines have {CHIPS_OF_HOST}, so it has no such.")
  selector = {
    "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[generation],
    "cloud.google.com/gke-tpu-topology": sides,
  }
  return Machines(slices, chips // host, "google.com/tpu", host, selector, ["--coordinator=auto"])


def pod_spec(
  run: Run, machines: Machines, image: str, mounts: list[tuple[str, str]], secret: str | None, grace: float
) -> dict:
  volumes = [
    dict(name=f"volume-{n}", persistentVolumeClaim=dict(claimName=claim)) for n, (claim, _) in enumerate(mounts)
  ]
  amount = {machines.resource: machines.devices}
  container = dict(
    name="flamingo",
    image=image,
    command=["flamingo"],
    args=[literal(text) for text in run.train()] + [*machines.place, f"--peer-timeout={run.peer_timeout}"],
    env=[dict(name="PYTHONUNBUFFERED", value="1")],
    resources=dict(limits=amount, requests=dict(amount)),
    volumeMounts=[dict(name=f"volume-{n}", mountPath=path) for n, (_, path) in enumerate(mounts)],
  )
  if secret:
    container["envFrom"] = [dict(secretRef=dict(name=secret))]
  spec = dict(
    restartPolicy="Never",  # whoever starts one again starts all
    terminationGracePeriodSeconds=math.ceil(grace),
    nodeSelector=machines.selector,
    containers=[container],
    volumes=volumes,
  )
  if machines.resource == "google.com/tpu":
    container["securityContext"] = dict(privileged=True, runAsUser=0)  # the chips are files of root
  if machines.jobs > 1:
    spec |= dict(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")  # between slices, without a detour
  return spec


def literal(text: str) -> str:
  """An argument in which Kubernetes shall see no variable: it reads $(NAME), and $$ as $."""
  return text.replace("$", "$$")


def job_set(name: str, namespace: str | None, machines: Machines, pod: dict, restarts: int) -> dict:
  """Every failure of a process ends its job and starts all jobs again, but for a fault that the user has to mend."""
  metadata = dict(name=name, labels={"app.kubernetes.io/name": "flamingo"})
  if namespace:
    metadata["namespace"] = namespace
  if machines.resource == "google.com/tpu":  # one slice is one node pool
    metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  to_mend = dict(action="FailJob", onExitCodes=dict(containerName="flamingo", operator="In", values=[USER_FAULT]))
  job = dict(
    parallelism=machines.hosts,
    completions=machines.hosts,
    completionMode="Indexed",
    backoffLimit=0,
    podFailurePolicy=dict(rules=[to_mend]),
    template=dict(spec=pod),
  )
  rules = [dict(name="somethingToMend", action="FailJobSet", onJobFailureReasons=["PodFailurePolicy"])]
  return dict(
    apiVersion="jobset.x-k8s.io/v1alpha2",
    kind="JobSet",
    metadata=metadata,
    spec=dict(
      failurePolicy=dict(maxRestarts=restarts, rules=rules),
      replicatedJobs=[dict(name=JOB, replicas=machines.jobs, template=dict(spec=job))],
    ),
  )
