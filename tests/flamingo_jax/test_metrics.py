import json
import os
import pathlib

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from flamingo_jax.errors import UserError
from flamingo_jax.training.metrics import MetricsLog, read_metrics

TIMES = {"tokens": 8, "seconds": 0.5, "tokens_per_second": 16.0, "input_wait": 0.25}
STEPS = [{"step": step, "loss": 4.0 / step, "loss/pages": 0.1 * step} | TIMES for step in range(1, 7)]


def write(workdir: pathlib.Path, lines: list[dict], resume_step: int = 0) -> None:
  with MetricsLog(workdir, resume_step) as log:
    for line in lines:
      log.write(line["step"], {name: value for name, value in line.items() if name != "step"})


def events(workdir: pathlib.Path) -> list[Event]:
  """Every event on disk, as TensorBoard reads them."""
  paths = sorted((workdir / "tensorboard").iterdir())
  return [event for path in paths for event in LegacyEventFileLoader(str(path)).Load()]


def scalars(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
  """What TensorBoard shows: a session's start drops what was written before of its step and of later ones."""
  shown: dict[tuple[str, int], float] = {}
  for event in events(workdir):
    if event.session_log.status == event.session_log.START:
      shown = {key: value for key, value in shown.items() if key[1] < event.step}
    shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
  return shown


def expected_scalars(lines: list[dict]) -> dict[tuple[str, int], float]:
  return {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}


def test_one_line_is_one_step_and_tensorboard_has_the_same_numbers(tmp_path):
  write(tmp_path, STEPS)
  assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == STEPS
  assert scalars(tmp_path) == pytest.approx(expected_scalars(STEPS), rel=1e-6)


def test_a_line_is_on_disk_when_the_step_is_done(tmp_path):
  with MetricsLog(tmp_path, 0) as log:
    log.write(1, {"loss": 2.0} | TIMES)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0} | TIMES]


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path):
  """The killed run had reached step 6, its checkpoint is of step 4, and the new run goes otherwise."""
  write(tmp_path, STEPS)
  (file,) = (tmp_path / "tensorboard").iterdir()
  file.rename(file.with_name(f"0.{file.name}"))  # names are of the second they were made in: here both the same
  again = [{"step": step, "loss": -1.0 * step} | TIMES for step in (5, 6, 7)]
  write(tmp_path, again, resume_step=4)
  assert read_metrics(tmp_path) == STEPS[:4] + again
  assert scalars(tmp_path) == pytest.approx(expected_scalars(STEPS[:4] + again), rel=1e-6)


@pytest.mark.parametrize("left", [1, 10, 30])
def test_a_last_line_that_was_cut_short_is_dropped(tmp_path, left):
  write(tmp_path, STEPS)
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text().splitlines(keepends=True)
  path.write_text("".join(whole[:-1]) + whole[-1][:left])
  assert read_metrics(tmp_path) == STEPS[:5]
  write(tmp_path, STEPS[5:], resume_step=5)
  assert path.read_text() == "".join(whole)


def test_the_record_of_a_start_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
  write(tmp_path, STEPS)
  synced, rename, order = os.fsync, pathlib.Path.replace, []

  def sync(number):
    order.append(("sync", os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_size))
    synced(number)

  def replace(path, target):
    order.append(("rename", str(target), path.stat().st_size))
    return rename(path, target)

  monkeypatch.setattr(os, "fsync", sync)
  monkeypatch.setattr(pathlib.Path, "replace", replace)
  write(tmp_path, [], resume_step=4)
  path = tmp_path / "metrics.jsonl"
  size = path.stat().st_size
  assert order[:2] == [("sync", f"{path}.new", size), ("rename", str(path), size)]
  assert order[2][:2] == ("sync", str(tmp_path))


@pytest.mark.parametrize(("last", "resume_step", "told"), [(4, 6, True), (0, 2, True), (6, 6, False), (6, 2, False)])
def test_a_record_that_does_not_reach_the_checkpoint_is_told_of(tmp_path, capsys, last, resume_step, told):
  write(tmp_path, STEPS[:last])
  capsys.readouterr()
  write(tmp_path, [], resume_step)
  said = capsys.readouterr().err
  path = tmp_path / "metrics.jsonl"
  assert (f"{path} ends at step {last}, but the run goes on from step {resume_step}" in said) == told
  assert said.count("\n") == told
  assert read_metrics(tmp_path) == STEPS[: min(last, resume_step)]


def test_a_record_that_is_gone_is_told_of_by_the_host_that_writes_it(tmp_path, capsys):
  with MetricsLog(tmp_path, 3, active=False):
    assert not capsys.readouterr().err
  write(tmp_path, [], resume_step=3)
  assert "metrics.jsonl ends at step 0, but the run goes on from step 3" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_starts_its_log_over(tmp_path):
  write(tmp_path, STEPS)
  write(tmp_path, STEPS[:2], resume_step=0)
  assert read_metrics(tmp_path) == STEPS[:2]


WHOLE = json.dumps(STEPS[0]).encode() + b"\n"
NO_STEP = [b"", b"\0\0\0", b"\xff\xfe", b"[1]", b'{"step":1,"lo', b'{"loss": 2.0}', b'{"step": "1"}', b"[" * 100_000]


@pytest.mark.parametrize("line", NO_STEP, ids=range(len(NO_STEP)))
def test_a_damaged_line_is_named_and_nothing_is_lost_with_it(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(WHOLE + line + b"\n" + WHOLE)
  for read in (lambda: read_metrics(tmp_path), lambda: write(tmp_path, [], resume_step=1)):
    with pytest.raises(UserError, match=rf"^{path}, line 2: is not a step of a run \(.*\)\. Bring the file back"):
      read()
    assert path.read_bytes() == WHOLE + line + b"\n" + WHOLE


@pytest.mark.parametrize("line", [b'{"step": 1}', json.dumps(STEPS[1] | {"loss": "x"}).encode()])
def test_a_step_without_its_numbers_is_named(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_bytes(WHOLE + line + b"\n")
  with pytest.raises(UserError, match=r"line 2: is not a step of a run \((it has no tokens|loss is 'x')"):
    read_metrics(tmp_path)


def test_a_folder_without_a_log_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"metrics\.jsonl: missing"):
    read_metrics(tmp_path)
