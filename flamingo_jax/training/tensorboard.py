"""The numbers of a run for TensorBoard."""

import os
import pathlib
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FLUSH_SECONDS = 10.0


class Board:
  """Writes the files that TensorBoard reads.

  Written by the thread that trains: TensorBoard's own writer has a thread with a short queue, and a disk that refuses
  ends that thread, after which a run would wait for room in the queue for ever.
  """

  def __init__(self, folder: pathlib.Path, resume_step: int):
    folder.mkdir(exist_ok=True)
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    self.records = RecordWriter((folder / name).open("ab"))
    self.add(Event(file_version="brain.Event:2"))
    # TensorBoard forgets what a killed run wrote from this step on.
    self.add(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))
    self.flush()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    self.add(Event(step=step, summary=Summary(value=values)))
    if time.monotonic() - self.flushed > FLUSH_SECONDS:
      self.flush()

  def add(self, event: Event) -> None:
    event.wall_time = time.time()
    self.records.write(event.SerializeToString())

  def flush(self) -> None:
    self.records.flush()
    self.flushed = time.monotonic()

  def close(self) -> None:
    self.records.close()
