"""Hands a run over to the program of a cluster; or, with --dry-run, prints what would be handed over."""

import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import DONE, PREEMPTED, UserError
from launch.supervisor import INTERRUPTED, hearing

LOOK = 0.2  # seconds between looks at what is waited for


def submit(command: list[str], text: str = "", *, dry_run: bool) -> int:
  """Runs a command with a text as its input; what it prints is shown.

  With `dry_run`, the text goes to stdout and the command to stderr, so that the text alone can be kept or piped on; the
  command, quoted for a shell, goes to stdout where there is no text.

  Raises:
    UserError: there is no such program here, or it fails.
  """
  if dry_run:
    print(redacted(text), end="")
    print(redacted(shlex.join(command)), file=sys.stderr if text else sys.stdout)
    return DONE
  code = subprocess.run(found(command), input=text, text=True, check=False).returncode
  if code != DONE:
    raise refused(command, code)
  return DONE


def follow(command: list[str], text: str, cancel: list[str]) -> int:
  """Submits a job and waits until it is over. SIGTERM and Ctrl-C cancel it first.

  Args:
    command: prints the number of the job, and maybe more behind a semicolon, and ends with the job and its code.
    text: the input of the command.
    cancel: a command that, given the number, asks the job to end.

  Returns:
    The code of the job; of one that was cancelled before it was done PREEMPTED (SIGTERM) or INTERRUPTED (Ctrl-C).

  Raises:
    UserError: there is no such program here, or the job is refused.
  """
  command, cancel = found(command), found(cancel)
  with hearing() as asked, tempfile.TemporaryFile("w+") as script:
    script.write(text)
    script.seek(0)
    # In a session of its own: Ctrl-C is ours to pass on.
    waiting = subprocess.Popen(command, stdin=script, stdout=subprocess.PIPE, text=True, start_new_session=True)
    number = waiting.stdout.readline().strip().partition(";")[0]
    if not number:
      raise refused(command, waiting.wait())
    print(f"flamingo launch: job {number}", flush=True)
    cancelled = False
    while waiting.poll() is None:
      if asked and not cancelled:
        subprocess.run([*cancel, number], check=False)
        cancelled = True
      time.sleep(LOOK)
  if asked and waiting.returncode != DONE:
    return PREEMPTED if asked[0] == signal.SIGTERM else INTERRUPTED
  return waiting.returncode


def found(command: list[str]) -> list[str]:
  """A command with the path of its program. Raises UserError where it is not."""
  program, *arguments = command
  path = shutil.which(program)
  if path is None:
    raise UserError(
      f"{program} is not on this machine's PATH. Launch where it is, or see what would be run with --dry-run."
    )
  return [path, *arguments]


def refused(command: list[str], code: int) -> UserError:
  return UserError(f"{pathlib.Path(command[0]).name} ended with code {code}; what it says is above.")
