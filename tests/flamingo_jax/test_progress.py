"""What a person sees of a run, on terminals and in logs."""

import os
import pty
import re
import subprocess
import sys

import pytest
from number_runs import ROOT

STEPS = 5
PROGRAM = f"""
from flamingo_jax.training.progress import TrainingProgress
with TrainingProgress("flamingo", {STEPS}, 0, plain_every=0.0) as progress:
  progress.say("{"a long word and " * 10}the end")
  for step in range(1, {STEPS + 1}):
    progress.update(step, {{f"loss/stream-{{n}}": 1.5 * step for n in range(8)}} | {{"tokens_per_second": 1000.0}})
"""


def on_terminal(kind: str) -> str:
  """All that a program writes to a terminal of 80 columns."""
  leader, follower = pty.openpty()
  environment = os.environ | {"TERM": kind, "COLUMNS": "80", "NO_COLOR": ""}
  with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, stdout=follower) as process:
    os.close(follower)
    written = b""
    try:
      while part := os.read(leader, 4096):
        written += part
    except OSError:  # how Linux tells that the other side has gone
      pass
  os.close(leader)
  assert process.returncode == 0
  return written.decode()


def check_lines(text: str) -> None:
  lines = text.splitlines()
  assert len(lines) == 1 + STEPS
  assert lines[0].endswith("the end")
  for step, line in enumerate(lines[1:], 1):
    assert line.startswith(f"flamingo {step}/{STEPS}  stream-0 {1.5 * step:.3f}  stream-1")
    assert "stream-7" in line and "1000 tokens/s" in line
    assert line.endswith(" s left") == (step > 1)  # the first step says nothing of those that follow
  assert "\x1b" not in text


def test_a_log_has_whole_lines():
  done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
  check_lines(done.stdout)


def test_a_terminal_that_cannot_move_its_cursor_has_lines_too():
  check_lines(on_terminal("dumb"))


@pytest.mark.parametrize("kind", ["xterm-256color", "screen", "linux"])
def test_other_terminals_have_a_live_line(kind):
  written = on_terminal(kind)
  assert "\x1b[2K" in written  # it is written over
  assert re.search(rf"{STEPS}/{STEPS}", written)
