"""The numbers of a run for TensorBoard. Imported when a run begins: tensorboardX imports torch where there is one."""

import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECONDS = 10.0


class Board:
  """Writes the files that TensorBoard reads.

  Written by the thread that trains: tensorboardX's own writer has a thread with a short queue, and a disk that refuses
  ends that thread, after which a run would wait for room in the queue for ever.
  """

  def __init__(self, folder: pathlib.Path, resume_step: int):
    folder.mkdir(exist_ok=True)
    self.events = EventsWriter(str(folder / "events"))
    # TensorBoard forgets what a killed run wrote from this step on.
    start = SessionLog(status=SessionLog.START)
    self.events.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
    self.flush()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    self.events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    if time.monotonic() - self.flushed > FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    self.events.flush()
    self.flushed = time.monotonic()

  def close(self) -> None:
    self.events.close()
