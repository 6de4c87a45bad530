"""The settings of a stream, and what can be wrong with them."""

import dataclasses
import math

from data_pipelines.sequences import PAIR_MARKERS

OF_MEDIA = ("medium", "frames", "labels", "flip", "colour", "crop")  # fields that say how media are read
LONGEST_CYCLE = 10_000  # turns of all sources


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """One stream: where its records lie, how they become rows, how much they weigh."""

  source: str | tuple[str, ...]  # a folder with `train` and `heldout` shard folders, or several of them
  layout: str  # "interleaved": pages; "pairs": a medium and its caption; "text": documents, whose media are left out
  medium: str = "image"  # or "video", or "features": what `flamingo data features` made of either
  weight: float = 1.0  # of this stream's loss in the sum
  batch_size: int = 8  # rows, over all devices
  length: int = 256  # L, tokens
  media: int = 1  # N, slots a row; of a packed row, the most pairs or documents it may hold
  frames: int = 1  # F, frames a slot
  frames_per_second: float = 1.0  # 0: spread evenly over the clip
  pack: bool = False  # pairs, text: as many of them in a row as it has room for
  prompt: str = ""  # pairs: stands, unlearnt, before each caption, as "Output:"; {} in it: the text before the medium
  p_next: float = 0.5  # pages: how often tokens attend to the next medium (paper, section A.3.1)
  labels: str = "text"  # what is learnt: "text": all of it; "chunks": as OpenFlamingo, from an image to its <EOC>
  flip: bool = False  # left-right flips; off where pictures show text
  colour: float = 0.0  # strength of the colour jitter, 0 to 1
  crop: float = 1.0  # images: the smallest share of each side that a random crop keeps; 1: no crop
  shares: tuple[int, ...] = ()  # of several sources, how many rows each gives in its turn; empty: one each
  maximum_skipped: float = 0.01  # share of records with something unusable above which a run stops

  @property
  def sources(self) -> tuple[str, ...]:
    return (self.source,) if isinstance(self.source, str) else self.source

  @property
  def slots(self) -> int:
    """N, of the media of a row."""
    return 0 if self.layout == "text" else self.media


def check_stream(name: str, config: StreamConfig) -> list[str]:
  """What is wrong with a stream's settings, one line a fault."""
  faults = []
  if config.layout not in ("interleaved", "pairs", "text"):
    faults.append(f"streams.{name}.layout is {config.layout!r}; it is 'interleaved', 'pairs' or 'text'.")
  if config.labels not in ("text", "chunks"):
    faults.append(f"streams.{name}.labels is {config.labels!r}; it is 'text' or 'chunks'.")
  if config.medium not in ("image", "video", "features"):
    faults.append(f"streams.{name}.medium is {config.medium!r}; it is 'image', 'video' or 'features'.")
  if config.medium == "image" and config.frames != 1:
    faults.append(f"streams.{name}.frames is {config.frames}, but images have 1.")
  for field in ("batch_size", "media", "frames"):
    if getattr(config, field) < 1:
      faults.append(f"streams.{name}.{field} is {getattr(config, field)}; it is at least 1.")
  if config.length < PAIR_MARKERS:
    faults.append(f"streams.{name}.length is {config.length}; the special tokens alone take {PAIR_MARKERS}.")
  if not 0 < config.crop <= 1 or (config.medium == "video" and config.crop != 1):
    faults.append(f"streams.{name}.crop is {config.crop}; it is above 0 and at most 1, and 1 for videos.")
  if config.medium == "features":
    faults += [
      f"streams.{name}.{field} is {getattr(config, field)}, but features were computed before: it is {plain} for them."
      for field, plain in (("flip", False), ("colour", 0.0), ("crop", 1.0))
      if getattr(config, field) != plain
    ]
  if config.pack and config.layout not in ("pairs", "text"):
    faults.append(f"streams.{name}.pack is True, but layout is {config.layout!r}; only 'pairs' and 'text' are packed.")
  if config.layout == "text":
    faults += [
      f"streams.{name}.{field.name} is {getattr(config, field.name)!r}, but layout is 'text', which has no media: it "
      f"is {field.default!r} there."
      for field in dataclasses.fields(config)
      if field.name in OF_MEDIA and getattr(config, field.name) != field.default
    ]
  if config.prompt and config.layout != "pairs":
    faults.append(
      f"streams.{name}.prompt is {config.prompt!r}, but layout is {config.layout!r}; only 'pairs' have one."
    )
  if config.prompt != config.prompt.strip():
    faults.append(
      f"streams.{name}.prompt is {config.prompt!r}; leave out the spaces around it: one is put before the caption."
    )
  for field in ("weight", "frames_per_second"):
    if not 0 <= getattr(config, field) < math.inf:
      faults.append(f"streams.{name}.{field} is {getattr(config, field)}; it is not negative, and finite.")
  if not 0 <= config.colour <= 1:
    faults.append(f"streams.{name}.colour is {config.colour}; it is from 0 to 1.")
  if not 0 <= config.maximum_skipped <= 1:
    faults.append(f"streams.{name}.maximum_skipped is {config.maximum_skipped}; it is a share, from 0 to 1.")
  return faults + check_sources(name, config)


def check_sources(name: str, config: StreamConfig) -> list[str]:
  sources, shares = config.sources, config.shares
  if not sources:
    return [f"streams.{name}.source is empty; it names at least one folder."]
  if shares and len(shares) != len(sources):
    return [f"streams.{name}.shares has {len(shares)} numbers for {len(sources)} sources; there is one for each."]
  if shares and (min(shares) < 1 or sum(shares) > LONGEST_CYCLE):
    return [f"streams.{name}.shares is {shares}; each is at least 1, and all together at most {LONGEST_CYCLE}."]
  return []
