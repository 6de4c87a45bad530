"""A finished build's manifest, and the table that people see of it."""

import collections
import pathlib
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from data_pipelines.build.addresses import archive_faults
from data_pipelines.build.plan import Begun, identity
from data_pipelines.build.settings import ERRORS
from data_pipelines.build.shard_files import read_shard_marker
from data_pipelines.build.tally import Tally
from data_pipelines.schema import SCHEMA_VERSION
from flamingo_jax.errors import UserError

NAMED = 5  # records at fault that the manifest and messages name, by cause; errors.jsonl has all


def make_manifest(begun: Begun) -> tuple[dict[str, Any], Tally]:
  """What manifest.json is to say, and the counts behind it. Raises UserError when nothing is kept, or a shard gone."""
  plan, shards, media, licenses = begun.plan, [], 0, collections.Counter()
  tally = archive_faults(plan.tables)
  for part in begun.parts:
    done = read_shard_marker(plan, part)
    tally.add(Tally.from_json(done["tally"]))
    media += done["media"]
    licenses.update(done["licenses"])
    if done["shard"]:
      check_shard(plan.output, done["shard"])
      shards.append(done["shard"])
  records = sum(shard["records"] for shard in shards)
  if not records:
    hint = "\nNothing is fetched: --pictures names a folder of what is remote." if tally.dropped_media["remote"] else ""
    raise UserError(
      f"{plan.output}: nothing is kept of {tally.documents} {plan.settings.kind}.\n{dropped_in_words(tally)}.{hint}"
    )
  return {
    "schema_version": SCHEMA_VERSION,
    "build": identity(plan.settings, begun.files),
    "records": records,
    "media": media,
    "sources": {plan.settings.name: records},
    "licenses": dict(sorted(licenses.items())),
    "read": {"documents": tally.documents, "media": tally.media},
    "kept": {"documents": records, "media": media},
    "dropped": {"documents": by_count(tally.dropped_documents), "media": by_count(tally.dropped_media)},
    "errors": errors_by_cause(tally),
    "statistics": dict(sorted((tally.dropped_documents + tally.dropped_media + tally.notes).items())),
    "shards": shards,
  }, tally


def check_shard(output: pathlib.Path, shard: dict[str, Any]) -> None:
  path = output / shard["file"]
  if not path.exists() or path.stat().st_size != shard["bytes"]:
    raise UserError(f"{path} is not as it was built. Remove {output} and build again.")


def tolerable(errors: int, read: int, most: float) -> bool:
  """Whether at most this share of what was read is broken."""
  return errors <= most * read


def refuse_errors(tally: Tally, most: float) -> None:
  """Raises UserError, naming causes and records, when more of the input is broken than is tolerated.

  The rate is of broken documents and media among all that were read.
  """
  read = tally.documents + tally.media
  if not tolerable(len(tally.errors), read, most):
    lines = [
      f"  {cause}: {found['count']}, such as " + "; ".join(error_in_words(error) for error in found["records"])
      for cause, found in errors_by_cause(tally).items()
    ]
    raise UserError(
      f"{len(tally.errors)} of {read} documents and media are broken, {len(tally.errors) / max(read, 1):.1%}; "
      f"--most-errors={most} allows {most:.1%}:\n"
      + "\n".join(lines)
      + "\nMend them and build anew, or run again with a "
      "higher rate: what is read already will not be read again."
    )


def errors_by_cause(tally: Tally) -> dict[str, Any]:
  """{cause: {"count", "records": the first few}}, the most frequent first."""
  found: dict[str, list] = collections.defaultdict(list)
  for cause, record, detail in tally.errors:
    found[cause].append({"record": record, "detail": detail})
  order = sorted(found, key=lambda cause: (-len(found[cause]), cause))
  return {cause: {"count": len(found[cause]), "records": found[cause][:NAMED]} for cause in order}


def error_in_words(error: dict[str, str]) -> str:
  return f"{error['record']} ({error['detail']})" if error["detail"] else error["record"]


def dropped_in_words(tally: Tally) -> str:
  return "Dropped, by cause: " + "; ".join(
    f"{what} {', '.join(f'{cause} {count:,}' for cause, count in by_count(counts).items()) or 'none'}"
    for what, counts in (("documents", tally.dropped_documents), ("media", tally.dropped_media))
  )


def by_count(counts: collections.Counter) -> dict[str, int]:
  """The most frequent first, and by name where they are as frequent."""
  return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def summary(manifest: dict[str, Any]) -> Table:
  """What was read, kept and dropped."""
  kind = manifest["build"]["settings"]["kind"]
  table = Table("", kind, "videos" if kind == "videos" else "pictures", title=manifest["build"]["settings"]["name"])
  for column in table.columns[1:]:
    column.justify = "right"
  for row in ("read", "kept"):
    table.add_row(row, *(f"{manifest[row][what]:,}" for what in ("documents", "media")), end_section=row == "kept")
  dropped = manifest["dropped"]
  for cause in _causes(dropped.values()):
    mark = " (error)" if cause in ERRORS else ""
    numbers = (dropped[what].get(cause, 0) for what in ("documents", "media"))
    table.add_row(f"{cause}{mark}", *(f"{number:,}" if number else "" for number in numbers))
  return table


def _causes(counts: Iterable[dict[str, int]]) -> list[str]:
  total = collections.Counter()
  for some in counts:
    total.update(some)
  return list(by_count(total))
