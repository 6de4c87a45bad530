"""Some hundreds of the records that benchmarks/fuzz_stream.py makes by the thousand."""

import pytest

from benchmarks.fuzz_stream import fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_every_damaged_record_is_read_or_named_once(tmp_path, seed):
  found = fuzz(600, seed, tmp_path)
  assert found["accounted"] == 1
  assert found["skipped"].keys() >= {"bad_record", "broken_image", "broken_video", "damaged_shard", "empty_text"}
