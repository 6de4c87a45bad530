"""The second half of a build, part by part: candidates without what duplicates took become a shard and its index."""

import collections
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from array_record.python import array_record_module as array_record

from data_pipelines.build.candidates import read_candidate, read_marker, records_path
from data_pipelines.build.duplicates import Drop
from data_pipelines.build.files import read_json, temporary_name, write_json, write_json_lines
from data_pipelines.build.inputs import Part
from data_pipelines.build.interleaving import adjacent_media
from data_pipelines.build.plan import Plan
from data_pipelines.build.tally import Tally
from data_pipelines.schema import Example, parse, serialize
from data_pipelines.shards import READER_OPTIONS, file_sha256, record_writer

INDEX = "index"  # the folder in the output of one JSON Lines file a shard
Kept = tuple[bytes, Example, dict[str, Any]]  # a record, what it holds, and its entry


def write_shard(part: Part, drops: Iterable[Drop], plan: Plan) -> None:
  """Makes the shard of a part, unless that is done. It is done when its JSON file is there, which comes last."""
  marker = shard_marker_path(plan, part)
  if marker.exists():
    return
  candidates, name = read_marker(plan, part), plan.shard_name(part)
  tally = Tally.from_json(candidates["tally"])
  path = plan.output / f"{name}.array_record"
  temporary = temporary_name(path, plan.partial)
  lines, licenses, media = [], collections.Counter(), 0
  with record_writer(temporary) as write:
    for record, example, entry in kept(candidates["records"], records_path(plan, part), drops, plan, tally):
      write(record)
      lines.append(index_line(len(lines), example, entry))
      licenses[example.license] += 1
      media += len(example.media)
  shard = None
  if lines:
    index = f"{INDEX}/{name}.jsonl"
    write_json_lines(plan.output / index, lines, plan.partial)
    shard = {"file": path.name, "index": index, "records": len(lines), "bytes": temporary.stat().st_size}
    shard["sha256"] = file_sha256(temporary)
    temporary.replace(path)
  else:
    temporary.unlink()
  done = {"shard": shard, "media": media, "licenses": licenses, "tally": tally.to_json()}
  write_json(marker, done, plan.partial)
  records_path(plan, part).unlink(missing_ok=True)  # its place on the disk; what is compared stays


def kept(
  entries: list[dict[str, Any]], path: pathlib.Path, drops: Iterable[Drop], plan: Plan, tally: Tally
) -> Iterator[Kept]:
  """The candidates that stay, as they stay; the others are counted."""
  causes: dict[int, dict[int, str]] = collections.defaultdict(dict)
  for drop in drops:
    causes[drop.record][drop.medium] = drop.cause
  reader = array_record.ArrayRecordReader(str(path), READER_OPTIONS)
  for number, entry in enumerate(entries):
    lost = causes.get(number, {})
    if -1 in lost:
      tally.drop_document(lost[-1], len(entry["media"]))
      continue
    record = reader.read([number])[0]
    example = parse(record)
    if lost:
      tally.dropped_media.update(lost.values())
      left = len(example.media) - len(lost)
      if left < plan.settings.fewest_pictures:
        tally.drop_document("few_pictures" if left else "no_picture", left)
        continue
      example = read_candidate(entry, example.media).without(lost).example()
      record = serialize(example)
      entry = entry | {"media": [about for at, about in enumerate(entry["media"]) if at not in lost]}
    if adjacent := adjacent_media(example.texts):
      tally.notes["adjacent_media"] += adjacent
    yield record, example, entry


def index_line(number: int, example: Example, entry: dict[str, Any]) -> dict[str, Any]:
  """What can be known of a record without reading its shard: where it is from, under what terms, and what it holds."""
  return {
    "record": number,
    "source": example.source,
    "license": example.license,
    "characters": sum(map(len, example.texts)),
    "media": [{name: about[name] for name in ("address", "sha256", "perceptual")} for about in entry["media"]],
  }


def shard_marker_path(plan: Plan, part: Part) -> pathlib.Path:
  return plan.work / "shards" / f"{part.number:05d}.json"


def read_shard_marker(plan: Plan, part: Part) -> dict[str, Any]:
  return read_json(shard_marker_path(plan, part))
