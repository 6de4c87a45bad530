"""`flamingo data check`: reads whole sets of records, prints what is wrong, and says whether it would hurt a run."""

import dataclasses
import functools
import json
import pathlib
import statistics
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_pipelines.inspection.check import MEANINGS, NOTES, OF_MEDIA, Resemblance, Tally, check_records
from data_pipelines.stream import Stream, decoding_pool
from flamingo_jax.errors import UserError
from launch.data_streams import SPLITS, folder_streams, open_experiment, open_stream

UNEVEN = 2.0  # times the median, above which a shard is large


@dataclasses.dataclass(frozen=True)
class CheckedSet:
  """A split of a stream, or a folder of shards.

  Attributes:
    name: "pages/train", or the folder.
    tally: what was found.
    tolerated: the share of it that does not hurt.
    shards: (file, records, bytes) of each.
  """

  name: str
  tally: Tally
  tolerated: float
  shards: list[tuple[str, int, int]]

  @property
  def hurting(self) -> list[str]:
    return [cause for cause in MEANINGS if self.tally.hurts(cause, self.tolerated)]

  def balance(self) -> dict[str, float]:
    """Records and bytes of the shards: the fewest, the median, the most."""
    spread: dict[str, float] = {}
    columns = dict(records=[count for _, count, _ in self.shards], bytes=[size for _, _, size in self.shards])
    for what, numbers in columns.items():
      spread |= {f"fewest_{what}": min(numbers), f"median_{what}": statistics.median(numbers)}
      spread[f"most_{what}"] = max(numbers)
    return spread

  def as_json(self) -> dict[str, Any]:
    tally = self.tally
    findings = {
      cause: dict(
        meaning=meaning,
        count=tally.found[cause],
        records=tally.at_fault[cause],
        share=tally.share(cause),
        hurts=cause in self.hurting,
        first=[vars(fault) for fault in tally.named[cause]],
      )
      for cause, meaning in MEANINGS.items()
      if tally.found[cause]
    }
    counts = dict(name=self.name, records=tally.records, media=tally.media, unusable_records=tally.unusable)
    return counts | dict(tolerated=self.tolerated, shards=len(self.shards), **self.balance(), findings=findings)


def check_data(
  folder: str | None,
  path: str | None,
  overrides: dict[str, str],
  names: list[str],
  *,
  evaluation_images: str | None,
  near_bits: int,
  tolerate: float | None,
  most: int,
  as_json: bool,
) -> None:
  """Checks the streams of a config, training and held-out, or all shards in a folder, and prints what was found.

  Args:
    folder: of shards; None where there is a config.
    path: of the config; None where there is a folder.
    overrides: of its fields.
    names: which of its streams; empty: all.
    evaluation_images: a folder of pictures that the data must not show.
    near_bits: of 64, by which the hash of a like picture may differ.
    tolerate: the share that does not hurt; None: the stream's `maximum_skipped`.
    most: how many of each finding are named.
    as_json: print one object in place of tables.

  Raises:
    UserError: there is nothing to check, or something was found that would hurt; then it says what.
  """
  if (folder is None) == (path is None):
    raise UserError("give a folder of shards or --config=FILE, and not both.")
  if tolerate is not None and not 0 <= tolerate <= 1:
    raise UserError(f"--tolerate is {tolerate}; it is a share, from 0 to 1.")
  streams = open_sets(folder, path, overrides, names)
  resemblance = resemblance_to(evaluation_images, near_bits, streams)
  checked = [
    CheckedSet(name, tally, limit if tolerate is None else tolerate, shards_of(streams[name][0]))
    for (name, tally), (_, limit) in zip(tallies(streams, resemblance, most), streams.values(), strict=True)
  ]
  if as_json:
    print(json.dumps(dict(hurts=any(each.hurting for each in checked), sets=[each.as_json() for each in checked])))
  else:
    show(checked)
  if faults := [fault for each in checked for fault in in_words(each)]:
    raise UserError("this data would hurt a run:\n" + "\n".join(faults))


def open_sets(
  folder: str | None, path: str | None, overrides: dict[str, str], names: list[str]
) -> dict[str, tuple[Stream, float]]:
  """What is to be checked, by name, and what share of it may be at fault."""
  if folder is not None:
    if names:
      raise UserError("--stream goes with --config; a folder has none.")
    return {name: (each, each.config.maximum_skipped) for name, each in folder_streams(pathlib.Path(folder)).items()}
  experiment = open_experiment(path, overrides, names)
  return {
    f"{name}/{split}": (open_stream(experiment, name, split), config.maximum_skipped)
    for name, config in experiment.stream_configs.items()
    for split in SPLITS
  }


def resemblance_to(folder: str | None, near_bits: int, streams: dict[str, tuple[Stream, float]]) -> Resemblance | None:
  """What tells media that look like the pictures in a folder; None: there is no folder."""
  if folder is None:
    return None
  if blind := [name for name, (stream, _) in streams.items() if stream.features is not None]:
    raise UserError(f"--evaluation-images: {blind[0]} holds features, of which no picture can be told.")
  from data_pipelines.build.fingerprints import folder_hashes
  from data_pipelines.inspection.resemblance import EvaluationImages

  return EvaluationImages(folder_hashes(pathlib.Path(folder)), near_bits).resemblance


def tallies(streams: dict[str, tuple[Stream, float]], resemblance: Resemblance | None, most: int):
  """(name, Tally) of each set, read one after the other while a bar on the terminal shows how far it is."""
  columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
  with Progress(*columns, console=Console(stderr=True), transient=True) as progress, decoding_pool() as pool:
    tasks = {name: progress.add_task(name, total=len(stream.sources)) for name, (stream, _) in streams.items()}
    for name, (stream, _) in streams.items():
      task = tasks[name]
      yield name, check_records(stream, pool, resemblance, most, functools.partial(progress.advance, task))


def shards_of(stream: Stream) -> list[tuple[str, int, int]]:
  return [
    (str(part.directory / entry["file"]), entry["records"], entry["bytes"])
    for part in stream.sources.parts
    for entry in part.manifest["shards"]
  ]


def in_words(checked: CheckedSet) -> list[str]:
  """What hurts, a line each."""
  return [
    f"  {checked.name}: {MEANINGS[cause]}: {checked.tally.found[cause]:,}, {share(checked, cause)}"
    for cause in checked.hurting
  ]


def share(checked: CheckedSet, cause: str) -> str:
  return f"{checked.tally.share(cause):.2%} of {'media' if cause in OF_MEDIA else 'records'}"


def show(checked: list[CheckedSet]) -> None:
  console = Console(highlight=False)
  console.print(shards_table(checked))
  if any(each.tally.found for each in checked):
    console.print(findings_table(checked))
    for each in checked:
      for line in named(each):
        console.print(escape(line), soft_wrap=True)
  else:
    console.print("Nothing is wrong with any record.")


def shards_table(checked: list[CheckedSet]) -> Table:
  table = Table(title="What was read", title_justify="left", box=box.SIMPLE)
  table.add_column("", no_wrap=True)
  for column in ("records", "media", "shards", "records each", "MB each", ""):
    table.add_column(column, justify="right")
  for each in checked:
    balance = each.balance()
    records = [f"{balance[f'{kind}_records']:,.0f}" for kind in ("fewest", "most")]
    megabytes = [f"{balance[f'{kind}_bytes'] / 1e6:,.1f}" for kind in ("fewest", "most")]
    uneven = balance["most_bytes"] > UNEVEN * balance["median_bytes"]
    counts = (f"{each.tally.records:,}", f"{each.tally.media:,}", f"{len(each.shards):,}")
    table.add_row(each.name, *counts, "-".join(records), "-".join(megabytes), "uneven" if uneven else "even")
  return table


def findings_table(checked: list[CheckedSet]) -> Table:
  table = Table(title="What was found", title_justify="left", box=box.SIMPLE)
  table.add_column("", no_wrap=True)
  table.add_column("what")
  for column in ("count", "share"):
    table.add_column(column, justify="right")
  table.add_column("")
  for each in checked:
    for cause, meaning in MEANINGS.items():
      if not each.tally.found[cause]:
        continue
      hurts = cause in each.hurting
      verdict = "FAULT" if hurts else "as it is" if cause in NOTES else "tolerated"
      row = (each.name, meaning, f"{each.tally.found[cause]:,}", share(each, cause), verdict)
      table.add_row(*row, style="red" if hurts else None)
  return table


def named(checked: CheckedSet) -> list[str]:
  """The first records of each finding, as `flamingo data explain` takes them, and how many others there are."""
  lines = []
  for cause, faults in checked.tally.named.items():
    lines.append(f"{checked.name}, {MEANINGS[cause]} ({cause}):")
    lines += [
      f"  {fault.shard}:{fault.record}" + f", medium {fault.medium}" * (fault.medium is not None) + f" ({fault.detail})"
      for fault in faults
    ]
    rest = checked.tally.found[cause] - len(faults)
    lines += [f"  and {rest:,} more"] * (rest > 0)
  return lines
