"""The Apache Beam job that builds shards of any size, and what is around it: the plan before, the manifest after.

    parts -> candidates -> fingerprints by key -> drops by part -> shards

Only parts, fingerprints and drops go from worker to worker; documents and media go from file to file. So all workers
must see the input and the output, under the same paths.
"""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import grpc
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from data_pipelines.build.addresses import archive_faults, index_archive, is_indexed, write_bucket
from data_pipelines.build.candidates import Score, marker_path, read_marker, write_candidates
from data_pipelines.build.duplicates import Drop, Fingerprint, Group, drops, fingerprints
from data_pipelines.build.files import write_json, write_json_lines
from data_pipelines.build.inputs import Part
from data_pipelines.build.manifest import check_shard, make_manifest, refuse_errors, tolerable
from data_pipelines.build.plan import WORK, Begun, Plan, identity, list_input, open_plan, refuse_difference
from data_pipelines.build.settings import BuildSettings
from data_pipelines.build.shard_files import write_shard
from data_pipelines.build.tally import Tally
from data_pipelines.shards import MANIFEST, read_manifest, shard_entries
from flamingo_jax.errors import UserError

DIRECT_RUNNER = "DirectRunner"
ERRORS_FILE = "errors.jsonl"
LONGEST_CALL = 10  # seconds until a job server must have answered


def build(
  settings: BuildSettings,
  output: pathlib.Path,
  *,
  workers: int = 1,
  runner: str = DIRECT_RUNNER,
  pipeline_options: Sequence[str] = (),
  most_errors: float = 0.01,
  score: Score | None = None,
) -> dict[str, Any]:
  """Builds a stream of shards, or goes on with it where it was stopped, and returns its manifest.

  Args:
    settings: what is built, and of what.
    output: the folder of the shards; it has a manifest.json when all of them are there.
    workers: processes on this machine, for the DirectRunner.
    runner: as Beam knows it.
    pipeline_options: of the runner, as on a command line.
    most_errors: the share of documents and media that may be broken.
    score: how alike a model finds pictures and texts, for `settings.minimum_similarity`.

  Raises:
    UserError: there is nothing to build from or nothing was kept, `output` is something else, or too much is broken.
  """
  if (output / MANIFEST).exists():
    return _complete(settings, output)
  try:
    planned = _pipeline(runner, workers, pipeline_options)
    begun = open_plan(settings, output)
    with planned as pipeline:
      describe(pipeline, begun, most_errors, score)
    refuse_errors(_tally(begun), most_errors)
    return _finish(begun)
  except OSError as error:
    raise UserError(f"{output}: {error}.") from error
  except RuntimeError as error:  # Beam's, for all that fails in another process
    if runner == DIRECT_RUNNER:
      raise
    raise UserError(f"--runner={runner}: {error}") from error


def describe(pipeline: beam.Pipeline, begun: Begun, most_errors: float, score: Score | None) -> None:
  """Adds the whole build to a pipeline."""
  plan = begun.plan
  parts = pipeline | "parts" >> beam.Create(begun.parts) | "spread parts" >> beam.Reshuffle()
  ready = beam.pvalue.AsIter(_index(pipeline, plan))
  done = parts | "candidates" >> beam.Map(_candidates, ready, plan=plan, score=score)
  checked = (
    done
    | "errors" >> beam.Map(lambda counted: counted[1])
    | "all errors" >> beam.CombineGlobally(_add)
    | "not too many" >> beam.Map(_tolerable, plan=plan, most_errors=most_errors)
  )
  gone = (
    done
    | "fingerprints" >> beam.FlatMap(_fingerprints, plan=plan)
    | "by key" >> beam.GroupByKey()
    | "drops" >> beam.FlatMap(_drops, settings=plan.settings)
  )
  (
    {"part": done | "numbers" >> beam.Map(lambda counted: (counted[0].number, counted[0])), "drops": gone}
    | "by part" >> beam.CoGroupByKey()
    | "shards" >> beam.Map(_shard, beam.pvalue.AsIter(checked), plan=plan)
  )


def _index(pipeline: beam.Pipeline, plan: Plan) -> beam.PCollection:
  """Tables of where pictures lie in archives, made before anything is looked up in them."""
  archives = [] if is_indexed(plan.tables) else list(enumerate(plan.archives))
  return (
    pipeline
    | "archives" >> beam.Create(archives)
    | "spread archives" >> beam.Reshuffle()
    | "places" >> beam.FlatMap(_places, folder=plan.tables)
    | "by bucket" >> beam.GroupByKey()
    | "tables" >> beam.Map(_table, folder=plan.tables)
  )


def _places(archive: tuple[int, str], folder: pathlib.Path) -> Iterator[tuple[int, np.ndarray]]:
  return index_archive(*archive, folder)


def _table(grouped: tuple[int, Iterable[np.ndarray]], folder: pathlib.Path) -> int:
  bucket, entries = grouped
  write_bucket(folder, bucket, entries)
  return bucket


def _candidates(part: Part, ready: Iterable[int], plan: Plan, score: Score | None) -> tuple[Part, tuple[int, int]]:
  """(the part, (how many are broken, of how many))."""
  write_candidates(part, plan, score)
  tally = Tally.from_json(read_marker(plan, part)["tally"])
  return part, (len(tally.errors), tally.documents + tally.media)


def _add(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
  errors, read = 0, 0
  for more_errors, more_read in counts:
    errors, read = errors + more_errors, read + more_read
  return errors, read


def _tolerable(counts: tuple[int, int], plan: Plan, most_errors: float) -> bool:
  archives = archive_faults(plan.tables)  # all are indexed by the time that anything is counted
  return tolerable(*_add([counts, (len(archives.errors), archives.documents)]), most_errors)


def _fingerprints(counted: tuple[Part, tuple[int, int]], plan: Plan) -> Iterator[tuple[Group, Fingerprint]]:
  part, _ = counted
  return fingerprints(part.number, read_marker(plan, part)["records"], plan.settings)


def _drops(grouped: tuple[Group, Iterable[Fingerprint]], settings: BuildSettings) -> Iterator[tuple[int, Drop]]:
  return drops(*grouped, settings)


def _shard(grouped: tuple[int, dict[str, Iterable]], checked: Iterable[bool], plan: Plan) -> None:
  _, found = grouped
  [part] = found["part"]
  gone: Iterable[Drop] = found["drops"]
  if all(checked):  # nothing is written before it is known that the input is not broken
    write_shard(part, gone, plan)


def _pipeline(runner: str, workers: int, more: Sequence[str]) -> beam.Pipeline:
  if runner != DIRECT_RUNNER:
    try:
      options = PipelineOptions([f"--runner={runner}", *more])
      _check_job_server(options.view_as(PortableOptions).job_endpoint)
      return beam.Pipeline(options=options)
    except (ValueError, ImportError) as error:
      raise UserError(f"--runner={runner}: {error}") from error
  # By its own name, and not as the DirectRunner, which may hand the job to Prism and fetch that from the network.
  options = PipelineOptions([f"--direct_num_workers={workers}", *more])
  if workers == 1:
    return beam.Pipeline(runner=FnApiRunner(), options=options)
  command = f"exec {shlex.quote(sys.executable)} -m data_pipelines.build.worker"
  return beam.Pipeline(runner=FnApiRunner(SubprocessSDKEnvironment.from_command_string(command)), options=options)


def _check_job_server(endpoint: str | None) -> None:
  """Raises UserError when no job server answers at an address: Beam would wait for it without a word."""
  if not endpoint or endpoint == "embed":  # Beam's word for a server of its own
    return
  with grpc.insecure_channel(endpoint) as channel:
    try:
      grpc.channel_ready_future(channel).result(LONGEST_CALL)
    except grpc.FutureTimeoutError as error:
      raise UserError(f"--job_endpoint={endpoint}: no job server answers there. Start it first.") from error


def _finish(begun: Begun) -> dict[str, Any]:
  """Writes what is known of all shards together, and removes what was needed until now."""
  manifest, tally = make_manifest(begun)
  output, partial = begun.plan.output, begun.plan.partial
  if tally.errors:
    fields = ("cause", "record", "detail")
    lines = (dict(zip(fields, error, strict=True)) for error in tally.errors)
    write_json_lines(output / ERRORS_FILE, lines, partial)
  write_json(output / MANIFEST, manifest, partial)  # last: now it is complete
  shutil.rmtree(begun.plan.work)
  return read_manifest(output)


def _complete(settings: BuildSettings, output: pathlib.Path) -> dict[str, Any]:
  manifest = read_manifest(output)
  files, _ = list_input(settings)
  refuse_difference(output, identity(settings, files), manifest.get("build", {}))
  for shard in shard_entries(output, manifest):
    check_shard(output, shard)
  shutil.rmtree(output / WORK, ignore_errors=True)  # a build may be stopped in its very last step
  return manifest


def _tally(begun: Begun) -> Tally:
  """The counts of the archives and parts that have been read."""
  tally = archive_faults(begun.plan.tables)
  for part in begun.parts:
    if marker_path(begun.plan, part).exists():
      tally.add(Tally.from_json(read_marker(begun.plan, part)["tally"]))
  return tally
