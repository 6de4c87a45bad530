import collections
import random

import pytest

from data_pipelines.build.duplicates import drops, fingerprints
from data_pipelines.build.settings import BuildSettings


def entry(*hashes: int, text: str = "t", sha: str = "s", clip=(0.0, None)) -> dict:
  media = [{"perceptual": f"{hash:016x}", "sha256": sha} for hash in hashes]
  return {"text": text, "media": media, "clip": clip}


def dropped(parts: list[list[dict]], kind: str, **settings) -> set[tuple[int, int, int, str]]:
  """(part, record, medium, cause), as a job would find them: by key, in any order."""
  settings = BuildSettings(kind, "in", "mine", **settings)
  groups = collections.defaultdict(list)
  for part, entries in enumerate(parts):
    for group, fingerprint in fingerprints(part, entries, settings):
      groups[group].append(fingerprint)
  found = set()
  for group, members in groups.items():
    random.Random(0).shuffle(members)
    found |= {(part, drop.record, drop.medium, drop.cause) for part, drop in drops(group, members, settings)}
  return found


def test_of_equal_pages_the_first_stays():
  parts = [[entry(1), entry(2, text="u")], [entry(1), entry(1, sha="other"), entry(2)]]
  assert dropped(parts, "pages") == {(1, 0, -1, "duplicate"), (1, 2, -1, "duplicate")}
  assert dropped(parts, "pages", duplicates="keep") == set()


def test_pictures_on_too_many_pages_go_everywhere():
  parts = [[entry(7, number, text=str(number)) for number in range(3)] for _ in range(2)]
  parts[1] = [entry(7, 7, text="x"), entry(9, text="y")]
  assert dropped(parts, "pages", most_repeats=4) == set()
  found = dropped(parts, "pages", most_repeats=3)
  assert found == {(part, record, medium, "repeated") for part, record, medium in
                   [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 0, 1)]}  # fmt: skip
  assert dropped(parts, "pages", most_repeats=0) == set()


def test_of_a_page_that_has_more_copies_than_a_picture_may_have_pages_one_stays():
  copies = [[entry(7, 8) for _ in range(3)] for _ in range(2)]
  assert dropped(copies, "pages", most_repeats=3) == {
    (part, record, -1, "duplicate") for part in range(2) for record in range(3) if (part, record) != (0, 0)
  }


def test_copies_of_a_page_count_once_among_the_pages_that_show_a_picture():
  parts = [[entry(7, text=text) for text in "aaabbc"]]
  assert not {cause for *_, cause in dropped(parts, "pages", most_repeats=3)} & {"repeated"}
  found = dropped(parts, "pages", most_repeats=2)
  assert {drop for drop in found if drop[3] == "repeated"} == {(0, record, 0, "repeated") for record in range(6)}


@pytest.mark.parametrize(
  ("duplicates", "expected"),
  [("drop", {(0, 1), (1, 0)}), ("pictures", {(0, 1), (0, 2), (1, 0)}), ("keep", set())],
)
def test_like_pairs_go_with_the_same_text_or_any(duplicates, expected):
  far = 2**64 - 1
  parts = [[entry(0), entry(0b1111), entry(0b1, text="u")], [entry(0b11), entry(far), entry(far ^ 0b11111, text="v")]]
  found = dropped(parts, "pairs", duplicates=duplicates)
  assert {(part, record) for part, record, _, _ in found} == expected
  assert all((medium, cause) == (-1, "duplicate") for _, _, medium, cause in found)


def test_five_bits_are_not_four():
  assert dropped([[entry(0), entry(0b11111)]], "pairs") == set()
  assert dropped([[entry(0), entry(0b11111)]], "pairs", near_bits=5) == {(0, 1, -1, "duplicate")}
  assert dropped([[entry(0), entry(1)]], "pairs", near_bits=0) == set()


def test_clips_of_one_video_are_no_duplicates():
  parts = [[entry(0, clip=(0.0, 1.0)), entry(0, clip=(1.0, 2.0)), entry(0, clip=(0.0, 1.0))]]
  assert dropped(parts, "videos") == {(0, 2, -1, "duplicate")}


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_the_same_is_dropped_as_by_comparing_all_with_all(bits):
  choose = random.Random(bits)
  hashes = [choose.getrandbits(64)]
  for _ in range(150):  # a few clusters of near ones
    near = choose.choice(hashes) ^ sum(1 << bit for bit in choose.sample(range(64), choose.randrange(6)))
    hashes.append(near if choose.random() < 0.7 else choose.getrandbits(64))
  parts = [[entry(hash) for hash in hashes[start : start + 40]] for start in range(0, len(hashes), 40)]
  expected = {at for at, hash in enumerate(hashes) if any((hash ^ other).bit_count() <= bits for other in hashes[:at])}
  found = {40 * part + record for part, record, _, _ in dropped(parts, "pairs", near_bits=bits)}
  assert found == expected and 0 < len(expected) < len(hashes)
