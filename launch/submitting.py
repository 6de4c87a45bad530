"""Hands a run over to the program of a cluster; or, with --dry-run, prints what would be handed over."""

import shlex
import shutil
import subprocess
import sys

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import DONE, UserError


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
  program, *arguments = command
  path = shutil.which(program)
  if path is None:
    raise UserError(
      f"{program} is not on this machine's PATH. Launch where it is, or see what would be run with --dry-run."
    )
  code = subprocess.run([path, *arguments], input=text, text=True, check=False).returncode
  if code != DONE:
    raise UserError(f"{program} ended with code {code}; what it says is above.")
  return DONE
