"""Inputs that once broke what reads files and configs, byte for byte, and what benchmarks/fuzz.py begins with."""

import pathlib
import random

import pytest

from benchmarks.fuzz_targets import TARGETS, Target

CASES = sorted((pathlib.Path(__file__).parent / "fuzz_cases").iterdir())
READERS = [name for name in TARGETS if name != "empty"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
  """A target by its name, made once."""
  made: dict[str, Target] = {}

  def make(name: str) -> Target:
    if name not in made:
      made[name] = TARGETS[name](tmp_path_factory.mktemp(name))
    return made[name]

  return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_the_fuzzer_found_is_refused_in_words(target, case):
  reader = target(case.name.split("-")[0])
  try:
    reader.run(case.read_bytes())
  except reader.allowed as error:
    assert str(error)


@pytest.mark.parametrize("name", READERS)
def test_seeds_and_what_is_near_them_are_read_or_refused(target, name):
  """Without the fuzzer's guidance: bytes of sound inputs are changed at random."""
  reader, chance, read = target(name), random.Random(0), 0
  for seed in reader.seeds:
    for damage in range(12):
      data = bytearray(seed)
      for _ in range(damage and chance.choice((1, 2, 8))):
        data[chance.randrange(len(data)) :] = data[chance.randrange(len(data)) :][: chance.choice((1, 8, 10**6))]
        if data:
          data[chance.randrange(len(data))] = chance.randrange(256)
        else:
          data = bytearray(b"\0")
      try:
        reader.run(bytes(data))
        read += 1
      except reader.allowed:
        pass
  assert read or name == "folders"  # whose weights are one tensor: nothing is ever whole
