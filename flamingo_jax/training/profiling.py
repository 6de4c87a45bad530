"""Traces of a run that goes on, when somebody asks: a file in the work directory, looked for after every step.

`flamingo profile` writes REQUEST; the first process of the job finds it, all are told with the numbers of the step, and
all trace the same steps. ANSWER says what came of it. Whatever goes wrong with a trace, the run goes
on.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import socket
import sys
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

REQUEST, ANSWER = "profile.request", "profile.answer"
FOLDER = "profiles"  # what XProf and TensorBoard are shown; each trace is in a folder of its own below


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for; `id` is found again in the answer."""

  id: str
  steps: int


def replace_file(path: pathlib.Path, facts: dict) -> None:
  """Whoever reads it sees all of it or what was there before."""
  unfinished = path.with_name(path.name + ".new")
  unfinished.write_text(json.dumps(facts))
  os.replace(unfinished, path)


def trace_folder(workdir: pathlib.Path, first: int, before: int = 0) -> pathlib.Path:
  """Where the trace is that began with step `first`, a file a machine; JAX puts it there.

  Args:
    workdir: of the run.
    first: step.
    before: processes of the job on the same machine that come before this one, whose file has the same name.
  """
  return workdir / FOLDER / "plugins" / "profile" / trace_name(first, before)


def trace_name(first: int, before: int) -> str:
  return f"step-{first}" + (f"-of-{before + 1}" if before else "")


def processes_before() -> int:
  """How many processes of the job before this one are on the same machine. All call it together."""
  if jax.process_count() == 1:
    return 0
  own = zlib.crc32(socket.gethostname().encode())
  hosts = multihost_utils.process_allgather(np.uint32(own))
  return int((hosts[: jax.process_index()] == own).sum())


class Profiler:
  """Traces steps of this process. A context: a trace that has begun ends with it."""

  def __init__(self, workdir: pathlib.Path, *, leads: bool):
    self.workdir, self.leads = workdir, leads
    self.request: Request | None = None
    self.first, self.last = 0, 0  # of the steps that are traced; 0: none
    self.ended = 0  # the last of all steps

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_) -> None:
    if self.last:
      self.stop()

  def asked(self) -> int:
    """How many steps are asked for now; asked before every step, and told to all processes of the job."""
    path = self.workdir / REQUEST
    if not self.leads or self.last or not path.exists():
      return 0
    try:
      request = Request(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # withdrawn at this moment, or not ours
      return 0
    if type(request.steps) is not int or request.steps < 1:
      return 0
    self.request = request
    return request.steps

  def step_ended(self, step: int, wanted: int, *, is_last: bool) -> None:
    """Begins or ends a trace.

    Args:
      step: that has ended.
      wanted: steps, as process 0 was `asked` before it.
      is_last: no other follows.
    """
    self.ended = step
    if self.last and (is_last or step >= self.last):
      self.stop()
    elif wanted and not self.last and not is_last:
      self.start(step + 1, wanted)

  def start(self, first: int, steps: int) -> None:
    name, fault = trace_name(first, processes_before()), why_not()
    if not fault:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # what Python does would be most of the file
      try:
        options.session_id = name
        jax.profiler.start_trace(self.workdir / FOLDER, profiler_options=options)
        self.first, self.last = first, first + steps - 1
      except Exception as error:  # such as a trace that somebody else has begun
        fault = f"{type(error).__name__}: {error}"
    self.answer(state="refused", why=fault) if fault else self.answer(state="tracing", first=self.first, last=self.last)

  def stop(self) -> None:
    try:
      jax.profiler.stop_trace()
      self.answer(state="done", first=self.first, last=self.ended)
    except Exception as error:  # such as a disk that is full
      self.answer(state="refused", why=f"{type(error).__name__}: {error}")
    self.first = self.last = 0

  def answer(self, **facts) -> None:
    if not self.leads or self.request is None:
      return
    try:
      (self.workdir / REQUEST).unlink(missing_ok=True)
      replace_file(self.workdir / ANSWER, dict(id=self.request.id) | facts)
    except OSError as error:
      print(f"profile: the answer cannot be written: {error}", file=sys.stderr, flush=True)


def why_not() -> str:
  """Why this process must not trace; empty: it may.

  A libtpu that is there without a TPU (it is, to plan for one) takes part in a trace, and ends the process if it is not
  of the version that JAX was built with.
  """
  platforms = jax.config.values["jax_platforms"]
  loaded = importlib.util.find_spec("libtpu") is not None and (not platforms or "tpu" in platforms)
  if loaded and jax.devices()[0].platform != "tpu":
    return f"libtpu is loaded and may end the run. Start it with JAX_PLATFORMS={jax.devices()[0].platform}."
  return ""
