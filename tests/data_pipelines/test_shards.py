import collections
import concurrent.futures
import hashlib
import json
import random

import pytest

from data_pipelines.schema import Example, parse
from data_pipelines.shards import open_shards, read_manifest, write_shards
from flamingo_jax.errors import UserError

BYTES = random.Random(0).randbytes


@pytest.fixture(scope="module")
def examples():
  return [Example(("", f"caption {i}"), (BYTES(3000 + i),), f"c{i % 2}/{i}", "CC0-1.0") for i in range(25)]


@pytest.fixture
def stream(tmp_path, examples):
  write_shards(tmp_path / "stream", examples, {"broken": 3}, name="pairs", records_per_shard=10)
  return tmp_path / "stream"


def test_records_are_found_by_index(stream, examples):
  shards = open_shards(stream)
  assert len(shards) == 25
  assert [parse(shards[i]) for i in (24, 0, 10, 9, 19, 20)] == [examples[i] for i in (24, 0, 10, 9, 19, 20)]


@pytest.mark.parametrize("index", [-1, 25])
def test_an_index_outside_is_an_index_error(stream, index):
  with pytest.raises(IndexError):
    open_shards(stream)[index]


def test_many_threads_read_the_right_records(stream, examples):
  shards = open_shards(stream)
  indices = random.Random(1).choices(range(25), k=2000)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    records = list(pool.map(shards.__getitem__, indices))
  assert all(parse(record) == examples[index] for record, index in zip(records, indices, strict=True))


def test_the_manifest_tells_what_is_there(stream):
  manifest = json.loads((stream / "manifest.json").read_text())
  files = sorted(stream.glob("*.array_record"))
  assert [file.name for file in files] == [f"pairs-0000{i}-of-00003.array_record" for i in range(3)]
  assert [(shard["file"], shard["sha256"]) for shard in manifest["shards"]] == [
    (file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files
  ]
  assert [shard["records"] for shard in manifest["shards"]] == [10, 10, 5]
  assert (manifest["records"], manifest["media"], manifest["statistics"]) == (25, 25, {"broken": 3})
  assert (manifest["sources"], manifest["licenses"]) == ({"c0": 13, "c1": 12}, {"CC0-1.0": 25})


def test_statistics_are_read_after_the_examples(tmp_path, examples):
  counts = collections.Counter()

  def counting():
    yield examples[0]
    counts["too_small"] += 7

  assert write_shards(tmp_path / "s", counting(), counts)["statistics"] == {"too_small": 7}


def test_the_content_hash_is_that_of_the_records(tmp_path, stream, examples):
  write_shards(tmp_path / "same", examples, {"other": 1}, name="other", records_per_shard=10)
  write_shards(tmp_path / "reversed", examples[::-1], {}, records_per_shard=10)
  assert open_shards(tmp_path / "same").content_hash == open_shards(stream).content_hash
  assert open_shards(tmp_path / "reversed").content_hash != open_shards(stream).content_hash


def test_a_killed_build_leaves_nothing(tmp_path, examples):
  def killed():
    yield from examples[:15]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_shards(tmp_path / "stream", killed(), {}, records_per_shard=10)
  assert list(tmp_path.iterdir()) == []


def test_a_killed_rebuild_leaves_the_old_stream(stream, examples):
  before = open_shards(stream).content_hash

  def killed():
    yield examples[3]
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    write_shards(stream, killed(), {})
  assert open_shards(stream).content_hash == before


def test_a_rebuild_replaces_the_old_stream(stream, examples):
  write_shards(stream, examples[:2], {})
  assert len(open_shards(stream)) == 2
  assert len(list(stream.iterdir())) == 2
  assert list(stream.parent.iterdir()) == [stream]


def test_a_stream_of_nothing_is_refused_with_the_causes(tmp_path):
  with pytest.raises(UserError, match=r"no example to write.*'broken_page': 4"):
    write_shards(tmp_path / "s", [], {"broken_page": 4})
  assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_user_error(tmp_path, examples):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_shards(tmp_path / "file" / "s", examples, {})


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    open_shards(tmp_path / "nowhere")


def test_a_directory_without_manifest_is_not_complete(stream):
  (stream / "manifest.json").unlink()
  with pytest.raises(UserError, match=r"has no manifest\.json"):
    open_shards(stream)


def test_a_missing_shard_is_named(stream):
  (stream / "pairs-00001-of-00003.array_record").unlink()
  with pytest.raises(UserError, match=r"pairs-00001-of-00003\.array_record is missing"):
    open_shards(stream)


def test_a_truncated_shard_is_named(stream):
  path = stream / "pairs-00002-of-00003.array_record"
  path.write_bytes(path.read_bytes()[:-5000])
  with pytest.raises(UserError, match=r"pairs-00002-of-00003\.array_record has .* bytes; the manifest says"):
    open_shards(stream)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda manifest: manifest.update(records=26), "25 records, but the manifest says 26"),
    (lambda manifest: manifest.update(shards=[]), "0 records, but the manifest says 25"),
    (lambda manifest: manifest.update(shards=[], records=0), r": has no records\. Build the stream again"),
    (lambda manifest: manifest["shards"][0].update(records=11), "holds 10 records; the manifest says 11"),
    (lambda manifest: manifest.update(schema_version=2), "schema version 2; this program reads 1"),
    (lambda manifest: manifest.pop("shards"), "lacks 'shards'"),
    (lambda manifest: manifest.update(shards=5), "'shards' is 5, and should be a list"),
    (lambda manifest: manifest.update(shards=[5]), "shard 0 is 5, and should be an object that has file, records"),
    (lambda manifest: manifest["shards"][1].pop("file"), "shard 1 lacks 'file'"),
    (lambda manifest: manifest["shards"][2].update(sha256=5), "shard 2 has 5 for 'sha256', which should be a string"),
    (lambda manifest: manifest["shards"][0].update(records=0), "shard 0 has 0 for 'records'"),
    (lambda manifest: manifest["shards"][0].update(bytes="1"), "'1' for 'bytes', which should be a whole number"),
    (lambda manifest: manifest.update(records="25"), "has '25' for 'records', a whole number"),
    (lambda manifest: manifest.pop("records"), "lacks 'records', a whole number"),
    (lambda manifest: manifest.pop("schema_version"), "cannot be read"),
  ],
)
def test_a_manifest_that_is_not_true_is_refused(stream, change, message):
  manifest = read_manifest(stream)
  change(manifest)
  (stream / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=message):
    open_shards(stream)


def test_a_manifest_that_is_not_json_is_refused(stream):
  (stream / "manifest.json").write_text('{"schema_version": 1')
  with pytest.raises(UserError, match="cannot be read"):
    open_shards(stream)


def test_a_flipped_bit_is_found_and_its_record_named(stream, examples):
  path = stream / "pairs-00001-of-00003.array_record"
  data = bytearray(path.read_bytes())
  data[data.index(examples[13].media[0]) + 100] ^= 1
  path.write_bytes(data)
  shards = open_shards(stream)
  assert parse(shards[12]) == examples[12]
  with pytest.raises(UserError, match=r"pairs-00001-of-00003\.array_record: record 3 is damaged"):
    shards[13]
  assert parse(shards[14]) == examples[14]
