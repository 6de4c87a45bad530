"""The digits of configs/miniature, from a wheel made here in the layout of scikit-learn's."""

import csv
import gzip
import io
import pathlib
import random
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import miniature
from data_pipelines.build.miniature import COLOURS, NAMES, WORDS
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.tasks import read_split


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Forty digits whose kind is written into their first pixels."""
  draws = np.random.default_rng(0)
  rows = [[kind, *draws.integers(0, 17, 63), kind] for kind in [(place + place // 10) % 10 for place in range(40)]]
  text = io.StringIO()
  csv.writer(text).writerows(rows)
  wheel = tmp_path_factory.mktemp("wheel") / "scikit_learn-1-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr(miniature.MEMBER, gzip.compress(text.getvalue().encode()))
  return miniature.read_digits(wheel)


def kind_of(encoded: bytes) -> tuple[int, tuple[int, ...]]:
  """The kind written into a picture, and its brightest colour."""
  pixels = np.asarray(Image.open(io.BytesIO(encoded)), np.float64)
  assert pixels.shape == (16, 16, 3)
  brightest = pixels.reshape(-1, 3)[pixels.sum(axis=2).argmax()]
  return round(16 * pixels[0, 0].max() / max(brightest.max(), 1)), tuple(brightest)


def test_a_fifth_is_held_out_and_no_digit_is_on_both_sides(digits):
  assert (len(digits["train"]), len(digits["heldout"])) == (32, 8)
  sides = [{each.brightness.tobytes() for each in digits[split]} for split in ("train", "heldout")]
  assert not sides[0] & sides[1]


def test_captions_say_kind_and_colour(digits):
  examples = list(miniature.captions(digits["heldout"]))
  assert len(examples) == 8 * len(COLOURS)
  for example in examples:
    colour, word = re.fullmatch(r"a (\w+) (\w+)", example.texts[1]).groups()
    kind, shown = kind_of(example.media[0])
    if max(shown) == max(COLOURS[colour]):  # a digit that has a pixel of full brightness
      assert WORDS[kind] == word and shown == tuple(map(float, COLOURS[colour]))


def test_a_page_has_one_name_for_each_kind_and_the_next_has_others(digits):
  meanings, described = [], []
  for example in miniature.pages(digits["train"], 60, random.Random(0)):
    names = [re.search(r"Output: (\w+)$", text)[1] for text in example.texts[1:]]
    kinds = [digit_of(digits["train"], medium) for medium in example.media]
    assert len(names) == miniature.SHOWN and set(names) <= set(NAMES)
    pairs = set(zip(kinds, names, strict=True))
    assert len(pairs) == len(set(kinds)) == len(set(names)) <= miniature.KINDS[1]
    found = [re.fullmatch(r"(?:(?:a \w+ )?(\w+)(?:\n| |, |: ))?Output: \w+", text)[1] for text in example.texts[1:]]
    assert all(word in (None, WORDS[kind]) for word, kind in zip(found, kinds, strict=True))
    described += [word is not None for word in found]
    meanings += pairs
  assert 0.4 < np.mean(described) < 0.6
  by_kind = {kind: {name for other, name in meanings if other == kind} for kind in range(10)}
  assert min(map(len, by_kind.values())) > 5  # what a name means is not to be learnt across pages


def digit_of(digits, encoded: bytes) -> int:
  """The kind of the digit that a picture shows, by its shape: which of them its brightness is a multiple of."""
  shape = np.asarray(Image.open(io.BytesIO(encoded)), np.float64)[::2, ::2].max(axis=2)
  distances = [
    np.abs(shape / max(shape.max(), 1) - each.brightness / max(each.brightness.max(), 1e-9)).max() for each in digits
  ]
  return digits[int(np.argmin(distances))].kind


def test_words_and_pages_come_again_for_the_same_seed(digits):
  first, second = (list(miniature.documents(30, random.Random(5))) for _ in range(2))
  assert first == second
  assert list(miniature.pages(digits["train"], 3, random.Random(1))) == list(
    miniature.pages(digits["train"], 3, random.Random(1))
  )


def test_benchmarks_are_read_as_any_pictures_with_candidates(digits, tmp_path):
  miniature.write_benchmark(tmp_path, digits, random.Random(2))
  meanings = set()
  for split in ("train", "heldout"):
    for example in read_split("matching", tmp_path, split).examples:
      encoded = pathlib.Path(example.medium.path).read_bytes()
      meanings.add((digit_of(digits[split], encoded), example.options[example.label]))
      assert set(example.options) <= set(NAMES) and len(example.options) == miniature.CANDIDATES
  assert len(meanings) == len({kind for kind, _ in meanings}) == len({name for _, name in meanings})


def test_a_wheel_without_the_digits_is_named(tmp_path):
  path = tmp_path / "scikit_learn-1.whl"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("other", "")
  with pytest.raises(UserError, match="not a readable scikit-learn wheel"):
    miniature.read_digits(path)
