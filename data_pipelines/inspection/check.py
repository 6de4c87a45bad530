"""A whole set of records, each read as its stream reads it: what would hurt a run, and what is wasted.

Only counts and the first few names are kept, so memory does not grow with the set.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines.faults import Fault
from data_pipelines.inspection.explain import NEXT, possible, text_readers
from data_pipelines.media import CAUSES, MediaError
from data_pipelines.schema import Example
from data_pipelines.sequences import Row, document, windows
from data_pipelines.stream import Pool, Stream, TextDraw

Resemblance = Callable[[Stream, Example, int], str]  # a stream, a record of it, one of its media

AT_ONCE = 256  # records whose findings are held at once
MARKERS = ("<image>", "<EOC>", "<|endofchunk|>")

# What is found beside the causes for which a stream leaves something out.
MISSING, DEAD, NO_LOSS, LETTERS, EVALUATION = "missing_medium", "dead_medium", "no_loss", "marker_as_text", "evaluation"
SOME_NO_LOSS, NO_MEDIA = "some_no_loss", "no_media"

UNUSABLE = (*CAUSES, MISSING)
MOST_DEAD = 0.1  # of media; a dead one costs its slot and teaches nothing, but many of them are a mistake somewhere
OF_MEDIA = (DEAD, EVALUATION)  # their share is of media, that of others of records
NOTES = (SOME_NO_LOSS, NO_MEDIA)  # never a fault

MEANINGS = {
  "damaged_shard": "records that cannot be read",
  "bad_record": "records that lack what their stream needs",
  "empty_text": "records without text",
  MISSING: "markers without a picture: media of no bytes",
  "broken_image": "markers without a picture: corrupt pictures",
  "too_large": "markers without a picture: over 50 megapixels",
  "broken_video": "markers without a picture: corrupt videos",
  "empty_video": "markers without a picture: videos without a frame",
  LETTERS: "markers without a picture: spelt in the text",
  DEAD: "dead pictures: no learnt text ever sees them",
  NO_LOSS: "records whose rows carry no loss",
  SOME_NO_LOSS: "pages of which some windows carry no loss",
  NO_MEDIA: "pages without a picture",
  EVALUATION: "near-duplicates of evaluation images",
}


@dataclasses.dataclass
class Tally:
  """What was found in a set.

  Attributes:
    records: read so far.
    media: in them.
    found: how often, by cause.
    at_fault: in how many records, by cause.
    unusable: records with at least one of UNUSABLE, whichever.
    named: the first of each cause.
    most: how many of these are kept.
  """

  most: int
  records: int = 0
  media: int = 0
  unusable: int = 0
  found: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  at_fault: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  named: dict[str, list[Fault]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

  def add(self, media: int, faults: Sequence[Fault]) -> None:
    """Adds a record."""
    causes = {fault.cause for fault in faults}
    self.records, self.media = self.records + 1, self.media + media
    self.unusable += not causes.isdisjoint(UNUSABLE)
    self.at_fault.update(causes)
    for fault in faults:
      self.found[fault.cause] += 1
      if len(self.named[fault.cause]) < self.most:
        self.named[fault.cause].append(fault)

  def share(self, cause: str) -> float:
    """Of the records, or of the media, how many are at fault."""
    if cause in OF_MEDIA:
      return self.found[cause] / max(self.media, 1)
    return self.at_fault[cause] / max(self.records, 1)

  def hurts(self, cause: str, tolerated: float) -> bool:
    """Whether a cause is more than a nuisance.

    Evaluation images always hurt, dead media where they are more than MOST_DEAD. All for which records are left out
    counts together, as in a run.
    """
    if cause in NOTES or not self.found[cause]:
      return False
    if cause == EVALUATION:
      return True
    if cause == DEAD:
      return self.share(cause) > MOST_DEAD
    return (self.unusable / self.records if cause in UNUSABLE else self.share(cause)) > tolerated


def check_records(
  stream: Stream, pool: Pool, resemblance: Resemblance | None, most: int, advance: Callable[[int], None]
) -> Tally:
  """Reads every record of a stream once.

  Args:
    stream: of whatever split.
    pool: whose threads read.
    resemblance: says in words which of its media look like evaluation images; None: nobody looks.
    most: how many findings of a cause are named.
    advance: told how many more records are read.
  """
  tally, everything = Tally(most), range(len(stream.sources))
  for indices in (everything[start : start + AT_ONCE] for start in range(0, len(everything), AT_ONCE)):
    for media, faults in pool.map(lambda index: check_record(stream, index, resemblance), indices):
      tally.add(media, faults)
    advance(len(indices))
  return tally


def check_record(stream: Stream, index: int, resemblance: Resemblance | None) -> tuple[int, list[Fault]]:
  """How many media a record has, and all that is found in it."""
  shard, record = stream.sources.where(index)

  def fault(cause: str, medium: int | None, detail: str) -> Fault:
    return Fault(cause, shard, record, medium, detail)

  try:
    example = stream.example(index)
    rows = list(telling_rows(stream, example))
  except MediaError as error:
    return 0, [fault(error.cause, None, error.detail)]
  faults = [fault(*found) for found in (*text_findings(stream, example, rows), *media_findings(stream, example))]
  broken = {found.medium for found in faults if found.cause in UNUSABLE}
  for medium in dead_media(stream, example, rows):
    if medium not in broken:
      faults.append(fault(DEAD, medium, example.source))
  if resemblance is not None:
    faults += [
      fault(EVALUATION, medium, found)
      for medium in range(len(example.media))
      if medium not in broken and (found := resemblance(stream, example, medium))
    ]
  return len(example.media), faults


Finding = tuple[str, int | None, str]  # cause, medium, detail


def text_findings(stream: Stream, example: Example, rows: list[Row]) -> Iterator[Finding]:
  spelt = [(marker, text) for text in example.texts for marker in MARKERS if marker in text]
  if spelt:
    marker, text = spelt[0]
    at = text.index(marker)
    yield LETTERS, None, f"{text[max(at - 20, 0) : at + 30]!r}"
  without = sum(not stream.weights(row).any() for row in rows)
  if without:
    yield NO_LOSS if without == len(rows) else SOME_NO_LOSS, None, example.source
  if not example.media and stream.config.layout != "text":
    yield NO_MEDIA, None, example.source


def media_findings(stream: Stream, example: Example) -> Iterator[Finding]:
  for medium, encoded in enumerate(example.media):
    if not encoded:
      yield MISSING, medium, "0 bytes"
      continue
    try:
      stream.read_frames(example, medium)
    except MediaError as error:
      yield error.cause, medium, error.detail


def dead_media(stream: Stream, example: Example, rows: list[Row]) -> list[int]:
  """Media that no learnt text sees, in no window and under no draw."""
  seen = set()
  for row in rows:
    readers = text_readers(row, stream.weights(row), stream.tokenizer)
    seen.update(medium for medium, count in zip(row.media, readers, strict=True) if count)
  return [medium for medium in range(len(example.media)) if medium not in seen]


def telling_rows(stream: Stream, example: Example) -> Iterator[Row]:
  """Rows of a record among which is, for each of its media, one in which text sees it, if there is any such row.

  For text after a medium that is the last window that begins at or before its marker: it has most of that text, and
  fewest other media before it. For text before a medium it is the last one that begins at or before the end of that
  text; where only text between an image and its `<EOC>` is learnt, at or before that image.

  Raises:
    MediaError: the stream leaves the record out.
  """
  length = stream.config.length
  row = stream.text(example, TextDraw(), length)
  if stream.config.layout != "interleaved":
    yield row
    return
  chunks = stream.chunks(example)
  tokens = np.asarray(document(chunks, stream.tokenizer))
  count = windows(tokens, length)
  markers = np.flatnonzero(tokens == stream.tokenizer.image)
  firsts = np.unique(np.clip([0, count - 1, *markers, *(markers - 2)], 0, count - 1))  # -2: before the <EOC>
  for first, name in itertools.product(firsts.tolist(), possible(stream)):
    yield stream.window(chunks, TextDraw(start=(first + 0.5) / count, see_next=name == NEXT), length)
