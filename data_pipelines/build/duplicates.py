"""Which documents and pictures go because of others: duplicates, and pictures that are on too many pages.

Every fingerprint has keys, and only those that share a key are compared, so that this can be done in any number of
groups at once. Of like ones the first stays, in the order of the input; one that is like an earlier one goes even if
that one goes too.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipelines.build.fingerprints import distance, near_keys
from data_pipelines.build.settings import BuildSettings

Group = tuple[str, str]  # what is compared, and a key that they share


@dataclasses.dataclass(frozen=True, order=True)
class Fingerprint:
  """One document or one medium of it, by its place in the input.

  Attributes:
    part, record: which document.
    medium: which of its media; -1: the document as a whole.
    perceptual: the medium's hash, or 0.
    page: of a page's medium, what its copies have in common.
  """

  part: int
  record: int
  medium: int = -1
  perceptual: int = 0
  page: str = ""


@dataclasses.dataclass(frozen=True)
class Drop:
  """A document (`medium` -1) or a medium of it that goes, and why."""

  record: int
  medium: int
  cause: str


def fingerprints(
  part: int, entries: list[dict[str, Any]], settings: BuildSettings
) -> Iterator[tuple[Group, Fingerprint]]:
  """Of the candidates of a part, each once for every key."""
  for record, entry in enumerate(entries):
    hashes = [int(medium["perceptual"], 16) for medium in entry["media"]]
    if settings.kind != "pages":
      if settings.duplicates != "keep":
        yield from _pair_fingerprints(part, record, entry, hashes[0], settings)
      continue
    page = _page_digest(entry)
    if settings.duplicates != "keep":
      yield ("page", page), Fingerprint(part, record)
    if settings.most_repeats:
      for number, hash in enumerate(hashes):
        yield ("picture", f"{hash:016x}"), Fingerprint(part, record, number, hash, page)


def drops(group: Group, members: Iterable[Fingerprint], settings: BuildSettings) -> Iterator[tuple[int, Drop]]:
  """(part, what goes) among those that share a key."""
  members = sorted(members)
  if group[0] == "picture":
    if len({member.page for member in members}) > settings.most_repeats:
      for member in members:
        yield member.part, Drop(member.record, member.medium, "repeated")
  else:
    for member in later_ones(members, 0 if group[0] == "page" else settings.near_bits):
      yield member.part, Drop(member.record, -1, "duplicate")


def later_ones(members: list[Fingerprint], bits: int) -> Iterator[Fingerprint]:
  """Those that look like one before them. Few different hashes are compared, however often each occurs."""
  known: dict[int, None] = {}
  for member in members:
    if member.perceptual in known or any(distance(member.perceptual, other) <= bits for other in known):
      yield member
    known[member.perceptual] = None


def _page_digest(entry: dict[str, Any]) -> str:
  """SHA-256, in hex, of a page's text and pictures."""
  digests = [entry["text"], *(medium["sha256"] for medium in entry["media"])]
  return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _pair_fingerprints(
  part: int, record: int, entry: dict[str, Any], hash: int, settings: BuildSettings
) -> Iterator[tuple[Group, Fingerprint]]:
  text = "" if settings.duplicates == "pictures" else entry["text"]
  clip = f"{entry['clip']}" if settings.kind == "videos" else ""
  for key in near_keys(hash, settings.near_bits):
    yield ("pair", f"{text} {clip} {key!r}"), Fingerprint(part, record, 0, hash)
