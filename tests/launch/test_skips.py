import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.faults import Fault, encode_faults
from data_pipelines.media import CAUSES
from data_pipelines.stream_config import StreamConfig
from flamingo_jax.errors import UserError
from launch.skips import LEAST, WINDOW, without_skipped

CONFIG = StreamConfig("data", "pairs")
BROKEN = Fault("broken_image", "data/train/a.array_record", 7, 0, "cut off")
DAMAGED = Fault("damaged_shard", "data/train/b.array_record", 3, None, "it is damaged")


def batch(*rows: list[Fault], segments: list[list[int]] | None = None) -> dict[str, np.ndarray]:
  faults = np.array([encode_faults(row) for row in rows], object)
  segments = segments or [[int(all(fault.medium is not None for fault in row))] for row in rows]
  return dict(segments=np.array(segments), faults=faults)


def run(batches, start=0, path=None, **limits):
  configs = {name: dataclasses.replace(CONFIG, maximum_skipped=limits.get(name, 0.01)) for name in batches[0]}
  return list(without_skipped(iter(batches), configs, start, path))


def test_what_was_skipped_is_taken_out_and_counted_by_stream_and_cause():
  [(batches, counts)] = run([dict(pages=batch([BROKEN, BROKEN], [], [DAMAGED]), pairs=batch([], []))])
  assert {name: list(left) for name, left in batches.items()} == dict(pages=["segments"], pairs=["segments"])
  assert counts.keys() == {f"skipped/{stream}/{cause}" for stream in ("pages", "pairs") for cause in CAUSES}
  found = {name: number for name, number in counts.items() if number}
  assert found == {"skipped/pages/broken_image": 2, "skipped/pages/damaged_shard": 1}


def test_shard_and_record_of_each_are_named_in_a_file(tmp_path):
  path = tmp_path / "skipped.jsonl"
  run([dict(pairs=batch([])), dict(pairs=batch([], [BROKEN])), dict(pairs=batch([DAMAGED, BROKEN]))], 4, path)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(line.pop("step"), line.pop("stream")) for line in lines] == [(6, "pairs"), (7, "pairs"), (7, "pairs")]
  assert [Fault(**line) for line in lines] == [BROKEN, DAMAGED, BROKEN]


def test_a_run_that_was_killed_names_nothing_twice(tmp_path):
  path = tmp_path / "skipped.jsonl"
  steps = [dict(pairs=batch([dataclasses.replace(BROKEN, record=step)])) for step in range(1, 6)]
  run(steps, 0, path)
  run(steps[2:], 2, path)
  assert [json.loads(line)["record"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def steps(rows: int, skipped: int, fault=BROKEN, size: int = 100):
  """Batches of so many rows, the last `skipped` of which have a fault."""
  faults = [[] for _ in range(rows - skipped)] + [[dataclasses.replace(fault, record=i)] for i in range(skipped)]
  return [dict(pairs=batch(*faults[at : at + size])) for at in range(0, rows, size)]


@pytest.mark.parametrize("fault", [BROKEN, DAMAGED])
def test_a_run_stops_above_its_share_and_says_why(tmp_path, fault):
  path = tmp_path / "skipped.jsonl"
  assert len(run(steps(2000, 20, fault), 0, path)) == 20
  with pytest.raises(UserError) as error:
    run(steps(2000, 21, fault), 0, path)
  message = str(error.value)
  assert "streams.pairs: of the last 2000 records, 21 could not be used: 21 " + fault.cause in message
  assert f"{fault.shard}, record 20: {fault.cause} ({fault.detail})" in message
  assert str(path) in message
  assert "streams.pairs.maximum_skipped is 0.01" in message


def test_a_run_does_not_stop_for_a_few_before_it_has_read_many():
  most = int(0.01 * LEAST)
  assert run(steps(100, most))
  with pytest.raises(UserError, match=f"of the last 100 records, {most + 1} could not be used"):
    run(steps(100, most + 1))


def test_what_was_read_long_ago_counts_no_more():
  rare = steps(WINDOW, 60) + steps(WINDOW, 60)  # in all 120 of 20,000, and never above 100 of 10,000
  assert len(run(rare)) == len(rare)
  good_then_bad = steps(5 * WINDOW, 0) + steps(200, 101)  # of all that was read, not even a hundredth
  with pytest.raises(UserError, match=r"of the last 100\d\d records, 101 could not"):
    run(good_then_bad)


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (1.0, False)])
def test_none_or_all_may_be_skipped(limit, stops):
  batches = steps(3000, 3000) if limit else steps(3000, 1)
  if stops:
    with pytest.raises(UserError):
      run(batches, pairs=limit)
  else:
    assert len(run(batches, pairs=limit)) == 30


def test_a_record_with_several_faults_is_one_and_packed_rows_have_several_records():
  page = [dataclasses.replace(BROKEN, medium=medium) for medium in range(5)]
  assert run([dict(pairs=batch(*[page] * 10))])  # 10 of 10 records; 50 faults would have been too many
  packed = batch(*[[]] * 2, [DAMAGED] * 2, segments=[[1, 1, 2, 3], [1, 2, 3, 4], [1, 1, 3, 0]])
  with pytest.raises(UserError, match="of the last 11 records"):
    run([dict(pairs=packed)], pairs=0.0)
