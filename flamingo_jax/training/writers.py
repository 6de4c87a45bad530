"""What a config's `writers` name: Weights & Biases and MLflow, which are sent the lines of metrics.jsonl.

Each has a thread that reads the record as it grows and sends on what is not there yet. So the loop never waits for a
network, nothing has to be kept in memory, and what could not be sent is sent when the other side answers again or when
the run is started again. `writers.json` in the work directory says which run over there is this one.

A run there only ever grows, and a rewind makes steps anew: after each, a new one begins, with all the lines of the
record, and says which one it follows. The old one stays as it was.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from flamingo_jax.credentials import redacted, redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.training.metrics import METRICS
from flamingo_jax.training.rewind import Rewind

FILE = "writers.json"
PROJECT = "flamingo_jax"  # where the environment names no other
POLL_SECONDS, RETRY_SECONDS = 1.0, 30.0
CLOSE_SECONDS = 20.0  # that all together may take after the last step: less than a machine that is taken away has left
CHUNK = 4 * 2**20  # bytes of the record that are read at once
MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000  # of a request to MLflow; characters of a parameter


@dataclasses.dataclass(frozen=True)
class Record:
  """What a run writes down, as a writer takes it.

  Attributes:
    workdir: of the run.
    config: as it is kept there.
    rewinds: that were made by now.
    total_steps: after which it is done.
  """

  workdir: pathlib.Path
  config: dict
  rewinds: tuple[Rewind, ...]
  total_steps: int

  @property
  def path(self) -> pathlib.Path:
    """Of metrics.jsonl."""
    return self.workdir / METRICS

  @property
  def name(self) -> str:
    return self.workdir.absolute().name + (f", rewind {len(self.rewinds)}" if self.rewinds else "")


class Destination(Protocol):
  """A run as another program keeps it; opened by the thread that then sends to it.

  Attributes:
    sent: the last step that is there.
  """

  sent: int

  def send(self, lines: list[dict]) -> None:
    """Adds lines of the record, all after `sent`."""

  def close(self, done: bool) -> None:
    """Waits until all is there; `done`: no step is left."""


class Wandb:
  """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and the like say where it goes."""

  def __init__(self, record: Record):
    import wandb

    self.workdir = record.workdir
    self.known = known_run(record, "wandb") or new_run(record, "wandb", id=uuid.uuid4().hex[:16], sent=0, open="")
    self.set_unfinished_aside()
    settings = wandb.Settings(
      console="off",
      disable_code=True,
      disable_git=True,
      x_disable_meta=True,  # the command line, among others
      x_save_requirements=False,
      finish_timeout=0.75 * CLOSE_SECONDS,
      finish_timeout_raises=True,
      reinit="create_new",
    )
    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
      raise UserError("no credentials: set WANDB_API_KEY, or run `wandb login`; or set WANDB_MODE=offline.")
    self.remember()  # so that a kill from here on does not leave a run there of which nobody knows
    self.run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      id=self.known["id"],
      name=record.name,
      notes=self.known["follows"] or None,
      config=redacted_config(record.config),
      dir=record.workdir,
      resume="allow",
      settings=settings,
    )
    self.sent = max(self.known["sent"], self.run.starting_step - 1)
    self.remember(open=pathlib.Path(self.run.dir).parent.name if self.run.offline else "")

  def set_unfinished_aside(self) -> None:
    """A kill loses what an offline run has not written yet, up to the last 32 KiB: all it was sent is sent again."""
    folder = self.workdir / "wandb"
    if self.known["open"] and (folder / self.known["open"]).exists():
      (folder / self.known["open"]).rename(folder / f"unfinished-{self.known['open']}")

  def remember(self, **changes) -> None:
    self.known |= changes
    write_known(self.workdir, "wandb", self.known)

  def send(self, lines: list[dict]) -> None:
    for line in lines:
      self.run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"], commit=True)
      self.sent = line["step"]

  def close(self, done: bool) -> None:
    self.run.finish(exit_code=0 if done else 1)
    self.remember(open="", sent=self.sent)


class MLflow:
  """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where it goes."""

  def __init__(self, record: Record):
    from mlflow import MlflowClient, entities

    self.client, self.entities = MlflowClient(), entities
    known = known_run(record, "mlflow")
    if known is None:
      tags = {"flamingo_jax.step": "0", "mlflow.note.content": followed(record, "mlflow")}
      run = self.client.create_run(self.experiment(), run_name=record.name, tags=tags)
      known = new_run(record, "mlflow", id=run.info.run_id)
      write_known(record.workdir, "mlflow", known)
    self.id = known["id"]
    run = self.client.get_run(self.id)
    self.client.update_run(self.id, status="RUNNING")
    self.sent = int(run.data.tags["flamingo_jax.step"])
    self.describe(record.config, run.data.params)

  def experiment(self) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = self.client.get_experiment_by_name(name)
    return found.experiment_id if found else self.client.create_experiment(name)

  def describe(self, config: dict, known: dict[str, str]) -> None:
    """The config as parameters, which stay; fields that changed since become tags."""
    fields = {name_for_mlflow(name): str(value)[:LONGEST] for name, value in flat(redacted_config(config))}
    new = [self.entities.Param(name, value) for name, value in fields.items() if name not in known]
    changed = [
      self.entities.RunTag(f"changed.{name}", value)
      for name, value in fields.items()
      if known.get(name, value) != value
    ]
    for kind, items in dict(params=new, tags=changed).items():
      for first in range(0, len(items), MOST_PARAMETERS):
        self.client.log_batch(self.id, **{kind: items[first : first + MOST_PARAMETERS]})

  def send(self, lines: list[dict]) -> None:
    now = int(1000 * time.time())
    for line in lines:
      metrics = [
        self.entities.Metric(name_for_mlflow(name), float(value), now, line["step"])
        for name, value in line.items()
        if name != "step"
      ]
      *parts, last = [metrics[first : first + MOST_METRICS] for first in range(0, len(metrics), MOST_METRICS)]
      for part in parts:
        self.client.log_batch(self.id, metrics=part)
      there = self.entities.RunTag("flamingo_jax.step", str(line["step"]))
      self.client.log_batch(self.id, metrics=last, tags=[there])
      self.sent = line["step"]

  def close(self, done: bool) -> None:
    self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


@dataclasses.dataclass(frozen=True)
class Writer:
  """Name of a person's, package that it needs, and how a run is opened there."""

  name: str
  package: str
  open: Callable[[Record], Destination]


WRITERS = {
  "wandb": Writer("Weights & Biases", "wandb", Wandb),
  "mlflow": Writer("MLflow", "mlflow", MLflow),
}


def unknown_writers(names: tuple[str, ...]) -> list[str]:
  """What is wrong with the names of a config."""
  return [f"writers: {name!r} is none; known: {', '.join(WRITERS)}." for name in names if name not in WRITERS]


def check_writers(names: tuple[str, ...]) -> None:
  """Raises UserError that names what to install for writers that cannot be imported here."""
  absent = [name for name in names if importlib.util.find_spec(WRITERS[name].package) is None]
  if absent:
    raise UserError(
      f"writers names {', '.join(absent)}, which is not installed here. "
      f"`pip install 'flamingo_jax[{','.join(absent)}]'` brings it; --config.writers='()' does without."
    )


@contextlib.contextmanager
def following(names: tuple[str, ...], record: Record) -> Iterator[None]:
  """Sends the record on while it grows; on leaving, what is left of it, for CLOSE_SECONDS at most."""
  followers = [Follower(WRITERS[name], record) for name in names]
  try:
    yield
  finally:
    deadline = time.monotonic() + CLOSE_SECONDS
    for follower in followers:
      follower.closing.set()
    for follower in followers:
      follower.thread.join(max(0.0, deadline - time.monotonic()))
      if follower.thread.is_alive():
        follower.complain(f"it takes more than {CLOSE_SECONDS:g} s for the last lines.")


class Follower:
  """A thread that reads the record and sends what its destination does not have.

  A fault is said once, and tried again every RETRY_SECONDS, from a new connection; the run goes on meanwhile.
  """

  def __init__(self, writer: Writer, record: Record):
    self.writer, self.record = writer, record
    self.destination: Destination | None = None
    self.offset, self.failing = 0, False
    self.closing = threading.Event()
    self.thread = threading.Thread(target=self.follow, name=writer.package, daemon=True)
    self.thread.start()

  def follow(self) -> None:
    is_last = False
    while not is_last:
      is_last = self.closing.is_set()  # what was written before that is read
      self.attempt(is_last)
      self.closing.wait(RETRY_SECONDS if self.failing else POLL_SECONDS)

  def attempt(self, is_last: bool) -> None:
    try:
      if self.destination is None:
        self.destination, self.offset = self.writer.open(self.record), 0
      while self.send_some():
        pass
      if is_last:
        self.destination.close(self.destination.sent >= self.record.total_steps)
    except Exception as error:  # whatever a network, a server or a disk can do; the run does not depend on it
      self.give_up()
      if not self.failing:
        self.complain(f"{type(error).__name__}: {error}")
      self.failing = True
    else:
      if self.failing:
        print(f"{self.writer.name} is written again, and has what it missed.", file=sys.stderr, flush=True)
      self.failing = False

  def give_up(self) -> None:
    """Leaves the connection that failed; the next attempt opens another."""
    if self.destination is not None:
      with contextlib.suppress(Exception):
        self.destination.close(done=False)
      self.destination = None

  def send_some(self) -> bool:
    """Whether there was more of the record to read."""
    if not self.record.path.exists():
      return False
    with self.record.path.open("rb") as file:
      file.seek(self.offset)
      whole, newline, _ = file.read(CHUNK).rpartition(b"\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    self.destination.send([line for line in lines if line["step"] > self.destination.sent])
    self.offset += len(whole) + len(newline)
    return bool(lines)

  def complain(self, fault: str) -> None:
    print(
      f"WARNING: {self.writer.name} is not written: {redacted(fault)}\nThe run goes on, and {self.record.path} has "
      "everything. What is missing there is sent as soon as that works, or when the same command is run again.",
      file=sys.stderr,
      flush=True,
    )


def known_run(record: Record, writer: str) -> dict | None:
  """What `writers.json` has of the run there; None where there is none, or none since the last rewind."""
  known = read_known(record.workdir).get(writer)
  return known if known and known["rewinds"] == len(record.rewinds) else None


def new_run(record: Record, writer: str, **facts) -> dict:
  return dict(rewinds=len(record.rewinds), follows=followed(record, writer)) | facts


def followed(record: Record, writer: str) -> str:
  """In words, which run there a new one takes the place of."""
  before = read_known(record.workdir).get(writer)
  if not before:
    return ""
  back = record.rewinds[-1]
  return (
    f"Went back to step {back.to}, and on without the batches {back.first} to {back.last - 1}. The steps before "
    f"that are those of the run {before['id']}, which has what was made of the others before."
  )


def read_known(workdir: pathlib.Path) -> dict[str, dict]:
  path = workdir / FILE
  return json.loads(path.read_text()) if path.exists() else {}


LOCK = threading.Lock()  # one file, and a thread for each writer


def write_known(workdir: pathlib.Path, writer: str, facts: dict) -> None:
  with LOCK:
    unfinished = workdir / (FILE + ".new")
    unfinished.write_text(json.dumps(read_known(workdir) | {writer: facts}, indent=2))
    os.replace(unfinished, workdir / FILE)


def flat(group: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
  """(field, value) of every field of nested dicts."""
  for name, value in group.items():
    if isinstance(value, dict) and value:
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def name_for_mlflow(name: str) -> str:
  """MLflow takes these characters only."""
  return re.sub(r"[^\w\-. :/]", "_", name)[:250]
