"""Writing files so that no moment at which a machine is lost costs more than the newest version."""

import os
import pathlib


def replace_durably(path: pathlib.Path, text: str) -> None:
  """Writes a file anew: whatever becomes of the machine, the disk has all of the old one or all of the new one."""
  unfinished = path.with_name(path.name + ".new")
  with unfinished.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)
