import json
import re

import pytest

from data_pipelines.faults import decode_faults
from flamingo_jax.errors import DONE, USER_FAULT
from launch.cli import main
from launch.config import load_config
from launch.experiment import read_experiment


@pytest.fixture
def explain(small_data, capsys):
  """Runs the command; what it prints, or its error."""

  def run(record: str, *options: str, fails: bool = False) -> str:
    capsys.readouterr()
    code = main(["data", "explain", record, f"--config={small_data.config}", *options])
    assert code == (USER_FAULT if fails else DONE)
    printed = capsys.readouterr()
    return printed.err if fails else printed.out

  return run


def test_the_table_says_what_every_token_sees_and_whether_it_is_learnt(explain, small_data):
  printed = explain(small_data.shard("pages") + ":0")
  rows = [line.split() for line in printed.splitlines()]
  special = [row[2:] for row in rows if len(row) > 2 and row[2].startswith("<")]
  assert special == [  # previous, next, loss
    ["<BOS>", "-", "0", "-"],
    ["<image>", "0", "0", "-"],
    ["<EOC>", "0", "1", "1"],
    ["<image>", "1", "1", "-"],
    ["<EOC>", "1", "2", "1"],
    ["<image>", "2", "2", "-"],
    ["<EOC>", "2", "-", "1"],
  ]
  words = [row for row in rows if len(row) > 2 and row[2].startswith('"')]
  assert list(dict.fromkeys(tuple(row[-3:]) for row in words)) == [("0", "1", "1"), ("1", "2", "1"), ("2", "-", "1")]
  assert printed.splitlines()[0] == small_data.shard("pages") + ":0"
  assert "the previous medium with probability 0.5, the next medium with probability 0.5" in printed


def test_json_has_the_same(explain, small_data):
  told = json.loads(explain(small_data.shard("pages") + ":1", "--json"))
  assert [token["text"] for token in told["tokens"]][:3] == ["<BOS>", "<image>", "this"]
  assert [medium["broken"] for medium in told["media"]] == [False, True]
  assert (told["stream"], told["source"], told["step"]) == ("pages/train", "pages/1", None)


def test_what_a_run_has_skipped_can_be_explained_as_it_was_read(explain, small_data):
  """The names of skipped.jsonl are those that the command takes."""
  stream = read_experiment(load_config(str(small_data.config), {}), "config").streams("train", training=True)["pages"]
  for step, batch in zip(range(1, 4), stream.batches(), strict=False):
    rows = decode_faults(batch["faults"])
    [row] = [number for number, faults in enumerate(rows) if faults]
    [fault] = rows[row]
    told = json.loads(explain(f"{fault.shard}:{fault.record}", f"--step={step}", "--json"))
    assert told["place"]["row"] == row
    [seen] = {tuple(token["sees"]) for token in told["tokens"]}
    count = len(told["tokens"])
    assert [token["sees"][seen[0]] for token in told["tokens"]] == batch["media_index"][row][:count].tolist()
    assert [token["id"] for token in told["tokens"]] == batch["tokens"][row][:count].tolist()


def test_a_pair_of_a_packed_row_says_where_it_stands(explain, small_data):
  printed = explain(small_data.shard("captions") + ":1", "--step=1")
  assert re.search(r"step 1: row \d of the batch, position \d, pair \d of it, from token \d+", printed)
  assert "space was drawn before the caption" in printed


def test_the_last_step_that_a_run_can_have_is_explained(explain, small_data):
  printed = explain(small_data.shard("pages") + ":0", "--step=2147483647", "--config.streams.pages.batch_size=8")
  assert printed.count("step 2147483647: row") == 2  # of 4 records


def test_a_step_that_does_not_read_a_record_is_said(small_data, capsys):
  small = [f"--config={small_data.config}", "--config.streams.pages.batch_size=1", "--step=1"]
  shard = small_data.shard("pages")
  codes = [main(["data", "explain", f"{shard}:{record}", *small]) for record in range(4)]
  assert sorted(codes) == [DONE, USER_FAULT, USER_FAULT, USER_FAULT]
  assert capsys.readouterr().err.count("step 1 does not read it") == 3


@pytest.mark.parametrize(
  ("record", "options", "message"),
  [
    ("pages", [], "a record is named SHARD:NUMBER"),
    ("{pages}:4", [], "has 4 records, 0 to 3; there is no record 4"),
    ("{pages}x:0", [], "is not one of the 1 shards of"),
    ("nowhere/pages.array_record:0", [], "no stream of .* reads this folder. They read `train` and `heldout` in"),
    ("{pages}:0", ["--stream=captions"], "no stream of .* reads this folder"),
    ("{pages}:0", ["--stream=sounds"], "--stream is 'sounds'; .* has captions, pages, videos"),
    ("{pages}:0", ["--start=1"], "--start is 1.0; it is at least 0 and below 1"),
    ("{pages}:0", ["--step=0"], "--step is 0; the first step is 1"),
    ("{pages}:0", ["--step=2147483648"], "--step is 2147483648; .* and the last 2147483647"),
    ("{pages}:0", [f"--step={10**20 - 1}"], "--step is 9{20}; .* and the last 2147483647"),
    ("{pages}:0", ["--config.streams.pages.sauce=x"], "streams.pages.sauce: no such field"),
    ("{pages}:0", ["--config.streams.captions.source={folder}/pages"], "several streams read it; choose by --stream="),
  ],
)
def test_what_is_asked_wrongly_is_said_in_one_message(explain, small_data, record, options, message):
  names = dict(pages=small_data.shard("pages"), folder=small_data.folder)
  told = explain(record.format(**names), *(option.format(**names) for option in options), fails=True)
  assert told.startswith("flamingo data: ")
  assert re.search(message, told)
