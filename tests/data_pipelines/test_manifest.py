import base64
import hashlib
import io
import json

import pytest
from rich.console import Console

from data_pipelines.build.manifest import refuse_errors, summary, tolerable
from data_pipelines.build.tally import Tally
from data_pipelines.schema import SCHEMA_VERSION
from flamingo_jax.errors import UserError


def row(picture: bytes, caption: str, **more) -> str:
  return json.dumps({"image": f"data:;base64,{base64.b64encode(picture).decode()}", "caption": caption, **more})


@pytest.fixture
def pairs(built, tmp_path, picture):
  """Nine rows, of which five stay, in two shards."""
  lines = [row(picture(number), f"Picture {number}", license=f"CC-{number % 2}") for number in range(5)]
  lines += [row(picture(0), "Picture 0"), row(picture(6, 10, 10), "Small"), row(picture(7)[:500], "Cut"), "[1]"]
  (tmp_path / "rows.jsonl").write_text("\n".join(lines))
  manifest, examples = built("pairs", tmp_path / "rows.jsonl", documents_per_shard=3)
  return tmp_path / "out", manifest, examples


def test_a_manifest_says_what_was_read_kept_and_dropped(pairs):
  output, manifest, examples = pairs
  assert json.loads((output / "manifest.json").read_text()) == manifest
  assert manifest["schema_version"] == SCHEMA_VERSION
  assert manifest["records"] == manifest["media"] == len(examples) == 5
  assert manifest["sources"] == {"mine": 5} and manifest["licenses"] == {"CC-0": 3, "CC-1": 2}
  assert manifest["read"] == {"documents": 9, "media": 8} and manifest["kept"] == {"documents": 5, "media": 5}
  assert manifest["dropped"]["documents"] == {"bad_document": 1, "broken": 1, "duplicate": 1, "too_small": 1}
  for what in ("documents", "media"):
    assert manifest["read"][what] == manifest["kept"][what] + sum(manifest["dropped"][what].values())
  assert {cause: found["count"] for cause, found in manifest["errors"].items()} == {"bad_document": 1, "broken": 1}
  assert manifest["build"]["settings"]["documents_per_shard"] == 3 and manifest["build"]["input_files"] == 1


def test_shards_and_records_are_named_with_their_hashes(pairs):
  output, manifest, examples = pairs
  lines = []
  for shard in manifest["shards"]:
    data = (output / shard["file"]).read_bytes()
    assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    index = [json.loads(line) for line in (output / shard["index"]).read_text().splitlines()]
    assert [line["record"] for line in index] == list(range(shard["records"]))
    lines += index
  for line, example in zip(lines, examples, strict=True):
    assert (line["source"], line["license"]) == (example.source, example.license)
    assert line["source"].startswith("mine/rows.jsonl, byte ")
    assert line["characters"] == len(example.texts[1])
    assert [medium["sha256"] for medium in line["media"]] == [hashlib.sha256(example.media[0]).hexdigest()]


def test_the_summary_is_a_table_of_causes(pairs):
  file = io.StringIO()
  Console(file=file, width=100).print(summary(pairs[1]))
  rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in file.getvalue().splitlines() if "│" in line]
  assert rows[:2] == [["read", "9", "8"], ["kept", "5", "5"]]
  assert ["broken (error)", "1", "1"] in rows and ["bad_document (error)", "1", ""] in rows
  assert ["too_small", "1", "1"] in rows and ["with_document", "", "1"] in rows


def test_the_share_of_errors_may_be_what_was_asked_and_no_more():
  assert tolerable(1, 100, 0.01) and not tolerable(2, 100, 0.01)
  assert tolerable(0, 0, 0.0) and not tolerable(1, 1_000_000, 0.0)


def test_the_commonest_causes_are_named_first_with_a_few_records():
  errors = [("broken", f"page{number}", "a.png") for number in range(7)] + [("broken_page", "bad.html", "")]
  with pytest.raises(UserError) as raised:
    refuse_errors(Tally(documents=10, media=10, errors=errors), 0.01)
  [first, broken, page, last] = str(raised.value).splitlines()
  assert first == "8 of 20 documents and media are broken, 40.0%; --most-errors=0.01 allows 1.0%:"
  assert broken.count("page") == 5 and broken.startswith("  broken: 7, such as page0 (a.png); page1 (a.png)")
  assert page == "  broken_page: 1, such as bad.html" and "run again" in last
