"""`flamingo launch --on=slurm`: a job that Slurm queues again until the run is done (docs/launch.md)."""

import math
import pathlib
import re
import shlex

from flamingo_jax.errors import DONE, USER_FAULT, UserError
from launch.local import FLAMINGO, log_folder
from launch.submitting import follow, submit
from launch.train_command import Run

# Slurm sends SIGTERM to all of a task, this shell included, which waits for flamingo to save. srun returns the highest
# code of all tasks: that of a fault to mend is made the highest.
TASK = f"""
task='
trap : TERM
log=$logs/process-$SLURM_PROCID.log
start=$((${{SLURM_RESTART_COUNT:-0}} + 1))
echo "=== $(date -u +%FT%TZ) start $start, process $SLURM_PROCID of $SLURM_NTASKS" >>"$log"
"$@"PLACE >>"$log" 2>&1
code=$?
[[ $code == {USER_FAULT} ]] && code=255
exit $code'
"""

# The counts are the supervisor's: restarts in a row without a new step. metrics.jsonl has one line a step.
BODY = f"""
say() {{ echo "$(date -u +%FT%TZ) $*"; }}
steps() {{ if [[ -f $metrics ]]; then wc -l <"$metrics"; else echo 0; fi; }}

mkdir -p "$logs"
state=$logs/restarts-$SLURM_JOB_ID
[[ -f $state ]] || echo "0 0" >"$state"
say "start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
srun --input=none --kill-on-bad-exit=0 --cpu-bind=none --distribution=block bash -c "$task" bash "${{train[@]}}"
code=$?
step=$(steps)
if ((code == 0)); then
  say "done, at step $step."
  exit {DONE}
fi
if ((code == 255)); then
  say "not queued again: $logs/process-*.log say what is to be mended."
  exit {USER_FAULT}
fi
read -r failures reached <"$state"
if ((step > reached)); then
  failures=1 reached=$step
else
  failures=$((failures + 1))
fi
echo "$failures $reached" >"$state"
say "ended with code $code at step $step."
if ((failures > restarts)); then
  say "not queued again: $restarts restarts without a step beyond $reached. See $logs."
  exit 1
fi
say "queued again; restart $failures of $restarts without a new step."
scontrol requeue "$SLURM_JOB_ID" && exit $code
say "Slurm does not queue it again; the same flamingo launch goes on from the newest checkpoint."
exit $code
"""


def launch_slurm(
  run: Run,
  *,
  dry_run: bool = False,
  wait: bool = False,
  restarts: int = 5,
  grace: float = 120.0,
  gpus_per_node: int | None = None,
  task_per_gpu: bool = False,
  **asked,
) -> int:
  """Submits one job; returns an exit code.

  Args:
    run: what is trained; the work directory, its logs beside it and this Python are seen by all nodes.
    dry_run: print the script and the command, and do nothing.
    wait: until the job is over, for its code; asked to end by SIGTERM or Ctrl-C, the job is cancelled.
    restarts: that may follow each other without a new step.
    grace: seconds before the time limit at which the run is asked to save.
    gpus_per_node: that Slurm gives to the job.
    task_per_gpu: a process for each of them, not one for each node.
    asked: of Slurm, as `directives` takes it.

  Raises:
    UserError: the options do not fit together, or there is no sbatch, or it refuses.
  """
  if task_per_gpu and gpus_per_node is None:
    raise UserError("--task-per-gpu: --gpus-per-node says how many there are, and is missing.")
  tasks = gpus_per_node if task_per_gpu and gpus_per_node else 1
  logs = log_folder(run.workdir)
  asked = {"name": pathlib.Path(run.workdir).absolute().name} | asked
  text = "#!/bin/bash\n" + directives(logs, tasks=tasks, gpus_per_node=gpus_per_node, grace=grace, **asked)
  text += settings(run, logs, restarts) + meeting(run, task_per_gpu=task_per_gpu) + BODY
  if not dry_run:
    logs.mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
  command = ["sbatch", "--parsable", "--wait"] if wait else ["sbatch"]
  if wait and not dry_run:
    return follow(command, text, ["scancel"])
  return submit(command, text, dry_run=dry_run)


def directives(
  logs: pathlib.Path,
  *,
  name: str,
  tasks: int,
  grace: float,
  nodes: int = 1,
  gpus_per_node: int | None = None,
  partition: str | None = None,
  account: str | None = None,
  time: str | None = None,
  sbatch: list[str] | None = None,
) -> str:
  """The lines for sbatch; of two that contradict each other it takes the last, so those of `sbatch` come last.

  Raises:
    UserError: a line break in one of them, or a backslash in the path of the log.
  """
  options = {"job-name": name, "nodes": nodes, "ntasks-per-node": tasks, "gpus-per-node": gpus_per_node}
  options |= {"partition": partition, "account": account, "time": time, "signal": f"TERM@{math.ceil(grace)}"}
  log = str(logs / "slurm.log").replace("%", "%%")  # %j and the like are numbers of the job
  options |= {"open-mode": "append", "output": log}
  lines = ["--requeue"] + [f"--{key}={quoted(str(value))}" for key, value in options.items() if value is not None]
  lines += sbatch or []
  faults = [f"{line!r}: sbatch takes no line break in an option." for line in lines if "\n" in line]
  faults += [f"{log}: Slurm writes no log where a path has a backslash."] if "\\" in log else []
  if faults:
    raise UserError("\n".join(faults))
  return "".join(f"#SBATCH {line}\n" for line in lines)


def quoted(text: str) -> str:
  """For an #SBATCH line, which no shell reads: Slurm knows quotation marks, and backslashes within them."""
  return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else '"' + re.sub(r'["\\]', r"\\\g<0>", text) + '"'


def settings(run: Run, logs: pathlib.Path, restarts: int) -> str:
  lines = {"logs": str(logs), "metrics": str(pathlib.Path(run.workdir) / "metrics.jsonl"), "restarts": str(restarts)}
  train = shlex.join([*FLAMINGO, *run.train()])
  return "\n" + "".join(f"{name}={shlex.quote(value)}\n" for name, value in lines.items()) + f"train=({train})\n"


def meeting(run: Run, *, task_per_gpu: bool) -> str:
  """How the processes find each other.

  JAX's own look at Slurm (--coordinator=auto) gives each process the one GPU of its number on the node: right for a
  task each GPU, wrong for one each node, which is told its place in full. The port is the one that JAX would take.
  """
  if task_per_gpu:
    where, place = "--coordinator=auto", ""
  else:
    where = (
      '"--coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((61440 + SLURM_JOB_ID % 4096))"'
    )
    place = ' "--processes=$SLURM_NTASKS" "--process=$SLURM_PROCID"'
  return f"train+=({where} --peer-timeout={run.peer_timeout})\nexport logs PYTHONUNBUFFERED=1\n" + TASK.replace(
    "PLACE", place
  )
