import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.schema import Example
from data_pipelines.shards import write_shards
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.tokenizer_training import BEGIN, END, UNKNOWN, learn, texts_of, train_tokenizer
from flamingo_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
VOCABULARY = 312
TEXTS = ["the theatre over there 1234 1234 1234", "schöne höhere Bögen, größere Vögel", f"{BEGIN}{END}<s></s>" * 9] * 3


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
  return Tokenizer(train_tokenizer(iter(TEXTS), VOCABULARY), VOCABULARY, bos=0, eos=1)


@given(
  st.one_of(
    st.text(),
    st.binary().map(lambda found: found.decode("latin-1")),
    st.sampled_from([*TEXTS, UNKNOWN, "<0x0A>", "\u2581 ", "<s>"]),
  )
)
@settings(deadline=None)
def test_any_text_survives_and_none_becomes_a_mark(learnt, text):
  tokens = learnt.encode(text)
  assert learnt.decode(tokens) == text
  assert all(2 < token < VOCABULARY for token in tokens)


def test_what_is_frequent_is_a_token_and_digits_stand_alone(learnt):
  assert len(learnt.encode("the the the")) < len("the the the") / 2
  assert len(learnt.encode("1234")) == 4


def test_texts_have_the_tokens_that_sentencepiece_itself_gives_them():
  """Where none reads like the name of a byte, which are marks to SentencePiece, or has its letter for a space."""
  texts = [file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))[:9]]
  theirs, ours = learn(texts, 1000), Tokenizer(train_tokenizer(texts, 1000), 1000, bos=0, eos=1)
  lines = [line for text in texts for line in text.splitlines(keepends=True)] + [
    "schöne Vögel 1234",
    " \N{GRINNING FACE} ",
  ]
  same = [ours.encode(line) == theirs.encode(line) for line in lines]
  assert np.mean(same) > 0.995  # of a few, two ways of cutting are as likely but for rounding


def test_every_byte_is_a_token(learnt):
  """Which show where a character was not in the text."""
  assert [learnt.pieces([token]) for token in learnt.encode("\N{GRINNING FACE}")] == [["\ufffd"]] * 4


def test_another_process_on_one_thread_writes_the_same_file(tmp_path):
  shards, out = tmp_path / "shards", tmp_path / "learnt"
  write_shards(shards / "train", [Example((text, text), (b"",), "books/one", "CC0") for text in TEXTS], {})
  command = [
    sys.executable,
    "-m",
    "launch.cli",
    "data",
    "train-tokenizer",
    f"--input={shards}",
    f"--vocabulary={VOCABULARY}",
  ]
  environment = os.environ | dict(TOKENIZERS_PARALLELISM="false")
  done = subprocess.run([*command, f"--out={out}"], env=environment, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.endswith(f"dict(path='{out}', bos=0, eos=1)\n"), done.stderr
  assert [path.name for path in out.iterdir()] == ["tokenizer.json"]
  train_tokenizer(texts_of(shards), VOCABULARY).save(str(tmp_path / "here.json"))
  assert (out / "tokenizer.json").read_bytes() == (tmp_path / "here.json").read_bytes()
  read = load_tokenizer(out, bos=0, eos=1)
  assert read.vocabulary == VOCABULARY
  assert read.pieces([0, *read.encode("a"), 1]) == ["<BOS>", "a", "<EOS>"]


def test_plain_files_are_read_in_the_order_of_their_names(tmp_path):
  (tmp_path / "b.txt").write_text("second\r\nhalf")
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "z.txt").write_text("first ü")
  (tmp_path / "c.md").write_text("not this")
  assert list(texts_of(tmp_path)) == ["first ü", "second\r\nhalf"]
  assert list(texts_of(tmp_path / "c.md")) == ["not this"]


def test_too_few_tokens_and_too_little_text_are_refused_with_what_would_do():
  with pytest.raises(UserError, match=r"--vocabulary is 280; .* take (\d+)") as raised:
    train_tokenizer(TEXTS, 280)
  least = int(str(raised.value).split(" take ")[1].split(".")[0])
  assert train_tokenizer(TEXTS, least + 1).get_vocab_size() == least + 1
  with pytest.raises(UserError, match=r"--vocabulary is 9999, but the text gives (\d+) tokens") as raised:
    train_tokenizer(TEXTS, 9999)
  most = int(str(raised.value).split(" gives ")[1].split()[0])
  assert train_tokenizer(TEXTS, most).get_vocab_size() == most


def test_input_that_is_none_is_named(tmp_path):
  with pytest.raises(UserError, match=r"neither a folder of shards"):
    texts_of(tmp_path)
  (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"a\.txt cannot be read as UTF-8"):
    train_tokenizer(texts_of(tmp_path), VOCABULARY)


def test_a_tokenizer_that_is_there_stays(tmp_path):
  from launch.tokenizer import write_tokenizer

  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match=r"tokenizer\.json is there already"):
    write_tokenizer("unread", VOCABULARY, str(tmp_path))
  assert (tmp_path / "tokenizer.json").read_text() == "{}"
