import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.schema import Example, parse
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources, make_schedule

SHARES = st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple)


@given(SHARES, st.integers(0, 3))
def test_every_source_has_its_share_of_each_cycle_and_its_times_count_up(shares, cycles):
  total = sum(shares)
  sources, times = make_schedule(shares).at(np.arange((cycles + 1) * total))
  assert np.bincount(sources[-total:]).tolist() == list(shares)
  for source in range(len(shares)):
    own = times[sources == source]
    assert own.tolist() == list(range(len(own)))


@given(SHARES, st.integers(0, 100))
def test_the_turns_of_a_source_are_where_it_stands(shares, count):
  schedule = make_schedule(shares)
  for source in range(len(shares)):
    sources, times = schedule.at(schedule.positions(source, count))
    assert (sources == source).all()
    assert times.tolist() == list(range(count))


@given(SHARES)
def test_turns_are_spread_evenly(shares):
  sources, times = make_schedule(shares).at(np.arange(sum(shares)))
  for place, (source, time) in enumerate(zip(sources, times, strict=True)):
    due = shares[source] * (place + 1) / sum(shares)
    assert abs(time + 1 - due) < len(shares)  # with two sources less than one turn early or late


def test_a_schedule_that_a_person_can_check():
  sources, times = make_schedule((3, 1)).at(np.arange(8))
  assert sources.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
  assert times.tolist() == [0, 1, 0, 2, 3, 4, 1, 5]


def test_a_far_position_is_found_at_once():
  schedule = make_schedule((5, 2))
  sources, times = schedule.at(np.array([7 * 10**15 + 3]))
  near, near_times = schedule.at(np.array([3]))
  assert sources == near
  assert times == near_times + 10**15 * [5, 2][int(near[0])]


@pytest.fixture
def two(tmp_path) -> Sources:
  for name, count in (("a", 5), ("b", 3)):
    examples = [Example((f"{name}{i}",), (), f"{name}/{i}", "CC0") for i in range(count)]
    write_shards(tmp_path / name, examples, {}, name=name, records_per_shard=2)
  return Sources((open_shards(tmp_path / "a"), open_shards(tmp_path / "b")))


def test_records_of_all_sources_are_one_sequence(two):
  assert len(two) == 8
  assert [parse(two[i]).texts[0] for i in range(8)] == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2"]
  assert [two.first(part) for part in range(2)] == [0, 5]


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_outside_is_an_index_error(two, index):
  with pytest.raises(IndexError):
    two[index]


@pytest.mark.parametrize(("index", "file", "record"), [(3, "a-00001-of-00003", 1), (7, "b-00001-of-00002", 0)])
def test_a_record_is_named_by_its_file_and_its_number_there(two, index, file, record):
  path, number = two.where(index)
  assert path.endswith(f"/{file[0]}/{file}.array_record")
  assert number == record


def test_the_content_hash_is_that_of_all_records_in_order(two):
  assert Sources(two.parts[::-1]).content_hash != two.content_hash
  assert Sources(two.parts[:1]).content_hash == two.parts[0].content_hash
