import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizer import load_tokenizer, save_bpe
from flamingo_jax.errors import UserError

BYTES = 256  # of the small tokenizer: 0 is <|endoftext|>, then a token a byte, then th, the and Ġthe


@given(st.text())
@settings(deadline=None)
def test_any_text_survives_the_way_to_tokens_and_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from(["<image>", "<EOC>", "<BOS>", "<EOS>", "<|endoftext|>", " ", "the"])).map("".join))
@settings(deadline=None)
def test_no_text_encodes_to_a_special_token(tokenizer, text):
  special = {tokenizer.image, tokenizer.end_of_chunk, tokenizer.bos, tokenizer.eos}
  assert special.isdisjoint(tokenizer.encode(text))
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokens_that_another_program_added_are_letters_too(tokenizer_folder, tmp_path):
  other = load_tokenizer(tokenizer_folder)
  other.backend.add_special_tokens(["<image>", "<|endofchunk|>", "</s>"])
  other.backend.save(str(tmp_path / "tokenizer.json"))
  tokenizer = load_tokenizer(tmp_path)
  text = "<image>the<|endofchunk|></s>"
  assert max(tokenizer.encode(text)) < 1 + BYTES + 3
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_added_tokens_come_after_the_vocabulary(tokenizer):
  assert tokenizer.vocabulary == 1 + BYTES + 3
  assert (tokenizer.image, tokenizer.end_of_chunk, tokenizer.size) == (260, 261, 262)


def test_merges_are_applied_in_order(tokenizer):
  assert tokenizer.encode("the the") == [BYTES + 2, BYTES + 3]
  assert [len(tokenizer.encode(text)) for text in ("th", "eht", "ü", "  the")] == [1, 3, 2, 2]


@pytest.mark.parametrize(("pre_tokenizer", "tokens"), [("gpt-2", 1), ("smollm", 2)])
def test_digits_are_split_where_the_model_had_them_split(tmp_path, pre_tokenizer, tokens):
  save_bpe(tmp_path, ["<|endoftext|>", "1", "2", "12"], ["1 2"], pre_tokenizer)
  assert len(load_tokenizer(tmp_path).encode("12")) == tokens


def test_special_tokens_are_left_out_of_text_and_named_in_pieces(tokenizer):
  the = tokenizer.encode("the")[0]
  row = [tokenizer.bos, the, tokenizer.end_of_chunk, tokenizer.image, the, tokenizer.eos]
  assert tokenizer.decode(row) == "thethe"
  assert tokenizer.pieces(row) == ["<BOS>", "the", "<EOC>", "<image>", "the", "<EOS>"]
  assert tokenizer.pieces([]) == []


def test_a_model_may_have_two_tokens_for_begin_and_end(tokenizer_folder):
  tokenizer = load_tokenizer(tokenizer_folder, bos=3, eos=4)
  assert tokenizer.pieces([3, 258, 4]) == ["<BOS>", "the", "<EOS>"]
  assert tokenizer.decode([3, 258, 4]) == "the"


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_ones(tmp_path):
  with pytest.raises(UserError, match=r"'llama-bpe'; known are: smollm, gpt-2"):
    save_bpe(tmp_path, ["a"], [], "llama-bpe")


def test_a_missing_tokenizer_is_named(tmp_path):
  with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer there"):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}", b"[]", json.dumps({"model": 1}).encode()])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
  (tmp_path / "tokenizer.json").write_bytes(content)
  with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
    load_tokenizer(tmp_path)
