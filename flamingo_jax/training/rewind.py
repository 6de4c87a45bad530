"""Going back: a run continues from an earlier checkpoint and leaves a span of its batches out.

A step takes the next batch that no rewind left out, so the batch of a step is a function of the step and of
`rewinds.json`, which is written before anything is moved: a kill in between is made good by the next start.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator

from flamingo_jax.errors import UserError
from flamingo_jax.training.durable import replace_durably

FILE = "rewinds.json"


@dataclasses.dataclass(frozen=True)
class Rewind:
  """Back to the checkpoint of step `to`, and from there on without the batches `first` to `last` - 1."""

  to: int
  first: int
  last: int


def read_rewinds(workdir: pathlib.Path) -> tuple[Rewind, ...]:
  """All that were made, oldest first. Raises UserError when the file is damaged."""
  path = workdir / FILE
  if not path.exists():
    return ()
  try:
    return tuple(Rewind(**each) for each in json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise UserError(f"{path}: not a list of rewinds ({error}). Bring it back from a copy.") from error


def check_rewind(workdir: pathlib.Path, rewind: Rewind, saved: list[int]) -> None:
  """Holds a rewind that is not known yet against a run.

  Args:
    workdir: of the run.
    rewind: the new one.
    saved: the steps with a checkpoint.

  Raises:
    UserError: there is no such checkpoint, or the span is none.
  """
  known = read_rewinds(workdir)
  if rewind in known:
    return
  if rewind.to not in saved:
    raise UserError(
      f"--rewind={rewind.to}: {workdir} has no checkpoint of that step. It has: {', '.join(map(str, saved)) or 'none'}."
    )
  used = batch_number(rewind.to, known)
  if not used < rewind.first < rewind.last:
    raise UserError(
      f"--skip-steps={rewind.first}:{rewind.last}: A:B leaves the batches A to B - 1 out, with A below B and "
      f"above {used}, the last batch that step {rewind.to} has learnt from."
    )


def add_rewind(workdir: pathlib.Path, rewind: Rewind) -> None:
  """Writes one more rewind down; the same one twice is one, so that a command can be run again."""
  known = read_rewinds(workdir)
  if rewind in known:
    return
  replace_durably(workdir / FILE, json.dumps([dataclasses.asdict(each) for each in (*known, rewind)]))


def in_force(saved: tuple[Rewind, ...], given: tuple[Rewind, ...]) -> int | None:
  """Up to which step a run goes on as it did when it knew of `saved` only; None: `given` does not begin with them."""
  if given[: len(saved)] != saved:
    return None
  return min((rewind.to for rewind in given[len(saved) :]), default=2**63)


def segments(start: int, stop: int, rewinds: tuple[Rewind, ...]) -> Iterator[tuple[int, int]]:
  """The batches of the steps `start` + 1 to `stop`, as runs of consecutive ones.

  Yields:
    (the first batch's number, how many); the first batch of a run without rewinds is number 1, that of its step 1.
  """
  steps: float = 0  # that have a batch
  number: float = 1  # of the next batch
  for first, last in [*sorted((rewind.first, rewind.last) for rewind in rewinds), (math.inf, math.inf)]:
    if last <= number:
      continue
    count = min(max(first - number, 0), stop - steps)
    before = min(max(start - steps, 0), count)
    if count > before:
      yield int(number + before), int(count - before)
    steps, number = steps + count, last
    if steps >= stop:
      return


def batch_number(step: int, rewinds: tuple[Rewind, ...]) -> int:
  """The number of the batch that a step takes; 0 for step 0."""
  return next((number for number, _ in segments(step - 1, step, rewinds)), 0)
