"""What a build is asked for. All of it decides what is written: a build goes on only under the same settings."""

import dataclasses

from data_pipelines.build.filters import PictureRules
from data_pipelines.build.texts import TextRules


@dataclasses.dataclass(frozen=True)
class Columns:
  """What the fields of a table or of a TFDS builder are called; empty: the first usual name that is there.

  Of a table, `question` is what `text` answers; empty: it is a caption.
  """

  picture: str = ""
  text: str = ""
  license: str = ""
  video: str = ""
  question: str = ""


@dataclasses.dataclass(frozen=True)
class BuildSettings:
  """Of one build.

  Attributes:
    kind: "pages", "pairs" or "videos".
    input: a folder, or one file.
    name: of the collection; every record's source begins with it.
    license: of records whose source names none.
    pictures: a folder of files, tars and WARC files where pictures are looked up that the input only names, or "".
    columns: of tables.
    tfds: the name of a builder whose data are in `input`, or "".
    split: of the builder.
    text: which texts are kept.
    picture: which pictures (and videos, by their frames) are kept.
    most_linked: blocks of a page are boilerplate if links hold a larger share of their text.
    fewest_pictures: that a page must have, after all filters.
    most_pictures: of a page; one with more is dropped. 0: any number.
    most_repeats: pages, copies aside, that may show a picture; one that more show is dropped everywhere. 0: any number.
    minimum_similarity: of a picture to its text, where the source or a model says it. None: whatever it is.
    similarity_model: the work directory of that model, or "".
    evaluation_images: a folder of pictures; whatever looks like one of them is dropped. Or "".
    near_bits: two pictures are alike if their 64-bit perceptual hashes differ in at most as many.
    duplicates: "drop": pages of the same text and pictures are kept once, and so are like pictures or videos with the
      same text; "pictures": like ones are kept once whatever their text; "keep": all stay.
    documents_per_shard: read, not kept.
  """

  kind: str
  input: str
  name: str
  license: str = "unknown"
  pictures: str = ""
  columns: Columns = Columns()
  tfds: str = ""
  split: str = "train"
  text: TextRules = TextRules()
  picture: PictureRules = PictureRules()
  most_linked: float = 0.5
  fewest_pictures: int = 1
  most_pictures: int = 30
  most_repeats: int = 10
  minimum_similarity: float | None = None
  similarity_model: str = ""
  evaluation_images: str = ""
  near_bits: int = 4
  duplicates: str = "drop"
  documents_per_shard: int = 1000


# Causes that are faults of the input; all others are filters, which drop as they should.
ERRORS = frozenset(
  [
    "bad_document",  # a row, sample or annotation that lacks what it must have
    "broken",  # a picture that does not decode
    "broken_file",  # an archive or table that ends early or cannot be parsed
    "broken_page",  # bytes that are no text
    "broken_video",
    "empty_video",  # no frame, or none in its clip
    "outside_folder",  # an address or an archive's member that leads out of its folder
    "too_large",  # a picture or video that claims more pixels or bytes than are read
    "unsupported_format",
  ]
)
