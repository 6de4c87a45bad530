import csv
import itertools
import json
import random
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.build.interleaving import Fault
from data_pipelines.build.readers.rows import read_rows, split

ROWS = [
  {"number": str(number), "text": random.Random(number).choice(['a "b",\nc', "", "ü\r\nx", "tab\tbed", "plain"])}
  for number in range(23)
]


def write(path) -> None:
  if path.suffix == ".parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=5)
  elif path.suffix == ".jsonl":
    path.write_text("\n\n".join(map(json.dumps, ROWS)))  # empty lines are no rows
  else:
    with path.open("w", encoding="utf-8", newline="") as file:
      writer = csv.DictWriter(file, ["number", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
      writer.writeheader()
      writer.writerows(ROWS)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 22, 23, 100])
def test_ranges_of_any_size_have_every_row_once_and_in_order(tmp_path, form, size):
  path = tmp_path / f"rows.{form}"
  write(path)
  ranges = split(path, size)
  read = [[row for _, row in read_rows(path, start, stop)] for start, stop in ranges]
  assert [len(rows) for rows in read] == [len(ROWS[start : start + size]) for start in range(0, len(ROWS), size)]
  assert list(itertools.chain(*read)) == ROWS


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_name_says_where_its_row_begins(tmp_path, form):
  path = tmp_path / f"rows.{form}"
  write(path)
  for start, stop in split(path, 4):
    for name, row in read_rows(path, start, stop):
      line = path.read_bytes()[int(name.removeprefix("byte ")) :]
      assert row["number"].encode() in line[:20]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_file_without_rows_has_none(tmp_path, form):
  path = tmp_path / f"rows.{form}"
  if form == "parquet":
    pyarrow.parquet.write_table(pyarrow.table({"a": []}), path)
  else:
    path.write_text("" if form == "jsonl" else "a,b\n")
  assert [row for start, stop in split(path, 5) for row in read_rows(path, start, stop)] == []


def test_all_json_lines_of_a_zip_are_read_and_named_by_their_file(tmp_path):
  path = tmp_path / "rows.jsonl.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.mkdir("deep.jsonl")
    archive.writestr("README.txt", "no rows")
    archive.writestr("deep.jsonl/b.JSONL", '{"a": 1}\n{"a": 2}\n')
    archive.writestr("__MACOSX/._c.jsonl", b"\0\5\x16\7")
    archive.writestr("c.jsonl", '{"a": 3}\n[]\n')
  [(start, stop)] = split(path, 1)
  *rows, fault = read_rows(path, start, stop)
  assert rows == [
    ("deep.jsonl/b.JSONL, byte 0", {"a": 1}),
    ("deep.jsonl/b.JSONL, byte 9", {"a": 2}),
    ("c.jsonl, byte 0", {"a": 3}),
  ]
  assert (fault.cause, fault.name) == ("bad_document", "rows.jsonl.zip, c.jsonl, byte 9")


def test_a_zip_without_json_lines_is_named_with_what_it_has(tmp_path):
  path = tmp_path / "rows.jsonl.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("rows.csv", "a\n1\n")
    archive.writestr("notes.txt", "no rows")
  [fault] = read_rows(path, 0, 0)
  assert fault == Fault("broken_file", "rows.jsonl.zip", "no .jsonl file is in it, but rows.csv, notes.txt")


STRAY = [  # as lines of a tab-separated file, with how the text reads
  ("plain", "plain"),
  ('"Stay hungry, a poster', '"Stay hungry, a poster'),
  ('a 5" pipe', 'a 5" pipe'),
  ('"a ""quoted"" text"', 'a "quoted" text'),
  ('"two\nlines"', "two\nlines"),
  ('"Stay" hungry', '"Stay" hungry'),
  ('"again', '"again'),
  ("the end", "the end"),
  ('"and one more', '"and one more'),
]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("order", range(6))
def test_a_quote_that_does_not_close_swallows_no_other_record(tmp_path, size, order):
  lines = random.Random(order).sample(STRAY, len(STRAY)) if order else STRAY
  path = tmp_path / "rows.tsv"
  path.write_text("".join(["number\ttext\n", *(f"{n}\t{line}\n" for n, (line, _) in enumerate(lines))]), newline="")
  read = [row for start, stop in split(path, size) for row in read_rows(path, start, stop)]
  assert [row for _, row in read] == [dict(number=str(n), text=text) for n, (_, text) in enumerate(lines)]


def test_broken_lines_are_named_and_the_others_read(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b'{"a": 1}\n{"a": \n\xff\n[1]\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
  found = [item for start, stop in split(path, 2) for item in read_rows(path, start, stop)]
  assert [item[1] for item in found if not isinstance(item, Fault)] == [{"a": 1}, {"a": 2}]
  assert [item.name for item in found if isinstance(item, Fault)] == [
    f"rows.jsonl, byte {offset}" for offset in (9, 16, 18, 22)
  ]
