"""The first half of a build, part by part: documents are read and judged one by one, and those that pass are written.

What is dropped only in the company of others, duplicates and pictures that are everywhere, is told by `duplicates`
from the fingerprints that are kept here; `shard_files` then makes the shards.
"""

import collections
import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.build.files import read_json, temporary_name, write_json
from data_pipelines.build.fingerprints import nearest, perceptual_hash
from data_pipelines.build.inputs import Part, read_part
from data_pipelines.build.interleaving import Document, Fault, Lost, Medium, interleave
from data_pipelines.build.pictures import Judge
from data_pipelines.build.plan import Plan
from data_pipelines.build.settings import BuildSettings
from data_pipelines.build.tally import Tally
from data_pipelines.build.texts import check_text, clean, text_digest, tidy
from data_pipelines.build.videos import VideoError, examine_video
from data_pipelines.schema import Example, serialize
from data_pipelines.shards import record_writer

SCORED_AT_ONCE = 32
# Pictures with their texts -> how alike a model finds them, cosines of their embeddings.
Score = Callable[[Sequence[tuple[bytes, str]]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A document that passed the filters.

  Attributes:
    parts: texts, not yet tidy, and numbers of media, in reading order.
    media: in this order.
    perceptual: the hash of each.
    source, license, clip: of the Example.
  """

  parts: tuple[str | int, ...]
  media: tuple[Medium, ...]
  perceptual: tuple[int, ...]
  source: str
  license: str
  clip: tuple[float, float | None]

  def example(self) -> Example:
    texts, media = interleave(part if isinstance(part, str) else self.media[part] for part in self.parts)
    data = tuple(medium.data for medium in media)
    return Example(texts, data, self.source, self.license, clip_start=self.clip[0], clip_end=self.clip[1])

  def without(self, lost: Iterable[int]) -> "Candidate":
    """The same, but for some media; the others keep their numbers in `media`."""
    gone = set(lost)
    return dataclasses.replace(self, parts=tuple(part for part in self.parts if part not in gone))


class Judgement:
  """What decides about documents, and counts what is dropped."""

  def __init__(self, settings: BuildSettings, evaluation: np.ndarray):
    self.tally = Tally()
    self._settings, self._evaluation = settings, evaluation
    self._pictures = Judge(settings.picture, perceptual_hash)

  def candidates(self, documents: Iterable[Document | Fault]) -> Iterator[Candidate]:
    """The documents that pass, in order."""
    for document in documents:
      self.tally.documents += 1
      if isinstance(document, Fault):
        self._drop(document.cause, 0)
        self.tally.error(document.cause, document.name, document.detail)
      elif candidate := self._judge(document):
        yield candidate

  def similar(self, candidates: Iterable[Candidate], score: Score, minimum: float) -> Iterator[Candidate]:
    """The pairs whose picture and text a model finds alike enough."""
    candidates = iter(candidates)
    while batch := list(itertools.islice(candidates, SCORED_AT_ONCE)):
      pairs = [(candidate.media[0].data, candidate.example().texts[1]) for candidate in batch]
      for candidate, similarity in zip(batch, score(pairs), strict=True):
        if similarity >= minimum:
          yield candidate
        else:
          self._drop("similarity", 0)
          self.tally.dropped_media["similarity"] += 1

  def _judge(self, document: Document) -> Candidate | None:
    media = [part for part in document.parts if not isinstance(part, str)]
    self.tally.media += len(media)
    text = tidy("".join(part for part in document.parts if isinstance(part, str)))
    cause = check_text(text, self._settings.text)
    if cause:  # before any picture is decoded
      self._drop(cause, len(media))
      return None
    parts: list[str | int] = []
    kept: list[Medium] = []
    hashes: list[int] = []
    causes = collections.Counter()
    for part in document.parts:
      if isinstance(part, str):
        parts.append(part)
        continue
      cause, hash, detail = self._look(part, document)
      if cause:
        causes[cause] += 1
        self.tally.error(cause, document.name, f"{part.address}: {detail}" if detail else part.address)
      else:
        parts.append(len(kept))
        kept.append(part)
        hashes.append(hash)
    self.tally.dropped_media.update(causes)
    cause = self._too_few_or_many(len(kept), causes)
    if cause:
      self._drop(cause, len(kept))
      return None
    source = " ".join(clean(f"{self._settings.name}/{document.name}").split())
    license = " ".join(clean(document.license).split()) or self._settings.license
    return Candidate(tuple(parts), tuple(kept), tuple(hashes), source, license, document.clip)

  def _look(self, medium: Medium | Lost, document: Document) -> tuple[str | None, int, str]:
    """(why a medium is dropped, or None; its perceptual hash; what was found, in words)."""
    if isinstance(medium, Lost):
      return medium.cause, 0, ""
    least = self._settings.minimum_similarity
    if least is not None and medium.similarity is not None and medium.similarity < least:
      return "similarity", 0, ""
    if self._settings.kind == "videos":
      try:
        hash = perceptual_hash(examine_video(medium.data, document.clip, self._settings.picture).middle)
      except VideoError as error:
        return error.cause, 0, str(error)
    else:
      cause, hash = self._pictures.verdict(medium.data)
      if cause:
        return cause, 0, ""
    near = len(self._evaluation) and nearest(hash, self._evaluation) <= self._settings.near_bits
    return "evaluation" if near else None, hash, ""

  def _too_few_or_many(self, kept: int, causes: collections.Counter) -> str | None:
    settings = self._settings
    if settings.kind != "pages":
      return next(iter(causes), None)  # a pair goes for what its only medium goes for
    if kept < settings.fewest_pictures:
      return "no_picture" if not kept else "few_pictures"
    return "many_pictures" if settings.most_pictures and kept > settings.most_pictures else None

  def _drop(self, cause: str, media: int) -> None:
    self.tally.drop_document(cause, media)


def write_candidates(part: Part, plan: Plan, score: Score | None = None) -> None:
  """Reads and judges a part, unless that is done. It is done when its JSON file is there."""
  if marker_path(plan, part).exists():
    return
  judgement = Judgement(plan.settings, plan.evaluation_hashes())
  candidates = judgement.candidates(read_part(part, plan.source()))
  if score and plan.settings.minimum_similarity is not None:
    candidates = judgement.similar(candidates, score, plan.settings.minimum_similarity)
  path = records_path(plan, part)
  temporary = temporary_name(path, plan.partial)
  with record_writer(temporary) as write:
    entries = [_written(candidate, write) for candidate in candidates]
  path.parent.mkdir(exist_ok=True)
  temporary.replace(path)
  write_json(marker_path(plan, part), {"records": entries, "tally": judgement.tally.to_json()}, plan.partial)


def read_marker(plan: Plan, part: Part) -> dict[str, Any]:
  """{"records": what `read_candidate` needs and `duplicates` compares, "tally": ...} of a part that is done."""
  return read_json(marker_path(plan, part))


def read_candidate(entry: dict[str, Any], media: Sequence[bytes]) -> Candidate:
  """A candidate again, of its entry in the marker and its media."""
  described = zip(entry["media"], media, strict=True)
  return Candidate(
    parts=tuple(entry["parts"]),
    media=tuple(Medium(data, about["address"], about["description"]) for about, data in described),
    perceptual=tuple(int(about["perceptual"], 16) for about in entry["media"]),
    source=entry["source"],
    license=entry["license"],
    clip=tuple(entry["clip"]),
  )


def records_path(plan: Plan, part: Part) -> pathlib.Path:
  return plan.work / "candidates" / f"{part.number:05d}.array_record"


def marker_path(plan: Plan, part: Part) -> pathlib.Path:
  return records_path(plan, part).with_suffix(".json")


def _written(candidate: Candidate, write: Callable[[bytes], None]) -> dict[str, Any]:
  """Writes a candidate's Example; returns its entry."""
  example = candidate.example()
  write(serialize(example))
  digests = [hashlib.sha256(medium.data).hexdigest() for medium in candidate.media]
  return {
    "source": candidate.source,
    "license": candidate.license,
    "clip": candidate.clip,
    "text": text_digest(example.texts),
    "parts": [clean(part) if isinstance(part, str) else part for part in candidate.parts],
    "media": [
      {"address": medium.address, "description": medium.description, "sha256": digest, "perceptual": f"{hash:016x}"}
      for medium, digest, hash in zip(candidate.media, digests, candidate.perceptual, strict=True)
    ],
  }
