import pytest

from data_pipelines.build.texts import TextRules, check_text, clean, language_of, refuse_languages, text_digest, tidy
from flamingo_jax.errors import UserError

ENGLISH = "The cat sat on the mat and looked out of the window at the rain that fell on the garden."
GERMAN = "Die Katze saß auf der Matte und sah aus dem Fenster in den Regen, der auf den Garten fiel."


def test_lines_are_tidy():
  assert tidy("  a \t b\u00a0c \n\n \n d\r\n") == "a b c\nd"


def test_control_characters_and_half_pairs_go():
  assert clean("a\x00b\x1b[0m\x7fc\td\ue000") == "ab[0mc\td\ue000"
  assert clean("a\ud800b") == "a\ufffdb"
  clean("a\ud800b").encode()


def test_literal_markers_are_text_like_any_other():
  assert tidy("<image> and <EOC>") == "<image> and <EOC>"


@pytest.mark.parametrize(
  ("text", "rules", "cause"),
  [
    ("", TextRules(), "empty_text"),
    ("x", TextRules(), None),
    ("four", TextRules(shortest=5), "short_text"),
    ("five!", TextRules(shortest=5), None),
    ("one two", TextRules(fewest_words=3), "short_text"),
    ("one two three", TextRules(fewest_words=3), None),
    ("123456", TextRules(longest=5), "long_text"),
    ("12345", TextRules(longest=5), None),
    (GERMAN, TextRules(languages=("en", "fr")), "language"),
    (GERMAN, TextRules(languages=("en", "de")), None),
  ],
)
def test_texts_are_judged(text, rules, cause):
  assert check_text(text, rules) == cause


def test_languages_are_told_and_named_as_they_are_told():
  assert (language_of(ENGLISH), language_of(GERMAN)) == ("en", "de")
  refuse_languages(("en", "de"))
  with pytest.raises(UserError, match=r"--languages: english cannot be told; it can be .*\ben\b"):
    refuse_languages(("en", "english"))


def test_a_digest_sees_past_case_and_space():
  assert text_digest(["A  cat\n", "sat"]) == text_digest(["a cat", " SAT "])
  assert text_digest(["a cat sat"]) != text_digest(["a cat sits"])
