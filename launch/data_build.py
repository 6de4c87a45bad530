"""`flamingo data build-pages`, `build-pairs` and `build-videos`: their options, and a build from them."""

import argparse
import contextlib
import logging
import os
import pathlib
import threading
from collections.abc import Iterator

from flamingo_jax.errors import UserError
from launch.numbers import aspect, finite, positive

KINDS = ("pages", "pairs", "videos")
SUMMARIES = {
  "pages": "interleaved pages, from HTML files, WARC, MMC4 or OBELICS, to shards",
  "pairs": "captioned pictures, from WebDataset tars, tables, COCO or a TFDS builder, to shards",
  "videos": "captioned videos, from rows that name them or WebDataset tars, to shards",
}
FEWEST_WORDS = {"pages": 10, "pairs": 0, "videos": 0}  # OBELICS
SHORTEST_TEXT = {"pages": 1, "pairs": 5, "videos": 5}  # characters; LAION-400M
_NEAR = "of 64, by which the hashes of like pictures may differ (%(default)s)"
_DUPLICATES = "like media with the same text are kept once; pictures: with any text (%(default)s)"


def add_options(parser: argparse.ArgumentParser, kind: str) -> None:
  """What can be asked of a build (docs/data.md)."""
  add = parser.add_argument
  add("--input", required=True, help="a folder, or one file")
  add("--output", required=True, help="the folder of the shards; new, or one where this build was begun")
  add("--name", help="of the collection; every record's source begins with it (the input's own name)")
  add("--licence", "--license", default="unknown", help="of records whose source names none (%(default)s)")
  add("--pictures", default="", help="a folder of files, tars and WARC files with pictures that the input only names")
  add("--documents-per-shard", type=positive, default=1000, help="that are read for a shard (%(default)s)")
  add("--smallest-side", type=positive, default=64, help="of a picture, in pixels (%(default)s)")
  add("--largest-aspect", type=aspect, default=3.0, help="longer side over shorter one (%(default)s)")
  add("--shortest-text", type=int, default=SHORTEST_TEXT[kind], help="characters (%(default)s)")
  add("--longest-text", type=int, default=1_000_000, help="characters (%(default)s)")
  add("--fewest-words", type=int, default=FEWEST_WORDS[kind], help="of a document (%(default)s)")
  add("--languages", type=_names, default=(), help="to keep, as en,de (any)")
  add("--evaluation-images", default="", help="a folder of pictures whose likes are dropped")
  add("--near-bits", type=int, default=4, choices=range(0, 17), metavar="BITS", help=_NEAR)
  add("--minimum-similarity", type=finite, help="of picture and text, where the source or a model says it")
  add("--text-column", default="", help="the field of the text, if it has an unusual name")
  add("--licence-column", "--license-column", default="", help="the field of the licence, likewise")
  if kind == "pages":
    add("--most-linked", type=finite, default=0.5, help="blocks with a larger share of text in links go (%(default)s)")
    add("--fewest-pictures", type=positive, default=1, help="of a page (%(default)s)")
    add("--most-pictures", type=int, default=30, help="of a page; 0: any number (%(default)s)")
    add("--most-repeats", type=int, default=10, help="pages that show a picture; 0: any number (%(default)s)")
    add("--duplicates", default="drop", choices=("drop", "keep"), help="of text and pictures (%(default)s)")
  else:
    add("--duplicates", default="drop", choices=("drop", "pictures", "keep"), help=_DUPLICATES)
    add("--picture-column" if kind == "pairs" else "--video-column", default="", help="the field of the medium")
  if kind == "pairs":
    add("--question-column", default="", help="of tables, the field of what the text answers; none: it is a caption")
    add("--tfds", default="", help="the name of a TFDS builder that is prepared in --input")
    add("--split", default="train", help="of the builder (%(default)s)")
    add("--similarity-model", default="", help="work directory of a contrastive run, for --minimum-similarity")
  add("--most-errors", type=float, default=0.01, help="share of the input that may be broken (%(default)s)")
  add("--workers", type=positive, default=1, help="processes on this machine (%(default)s)")
  add("--runner", default="DirectRunner", help="of Apache Beam (%(default)s); its own options come after --")
  add("pipeline_options", nargs="*", metavar="-- OPTION", help="of Beam and its runner")


def build_data(kind: str, options: argparse.Namespace) -> None:
  """Builds, prints what was read, kept and dropped, and leaves manifest.json.

  Raises UserError for what is wrong with the options or the input.
  """
  from rich.console import Console

  from data_pipelines.build.job import DIRECT_RUNNER, build
  from data_pipelines.build.manifest import summary

  logging.getLogger().setLevel(logging.ERROR)  # Beam warns of clouds that are not there
  # On this machine what went wrong is raised and need not be logged as well; of others, Beam tells by its log.
  logging.getLogger("apache_beam").setLevel(logging.CRITICAL if options.runner == DIRECT_RUNNER else logging.WARNING)
  logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.WARNING)  # of options unknown to it
  settings = read_settings(kind, options)
  score = None
  if settings.similarity_model:
    from launch.similarity import similarity_model

    score = similarity_model(settings.similarity_model)
  output, console = pathlib.Path(os.path.abspath(options.output)), Console()
  with _shown_progress(output, console):
    manifest = build(
      settings,
      output,
      workers=options.workers,
      runner=options.runner,
      pipeline_options=options.pipeline_options,
      most_errors=options.most_errors,
      score=score,
    )
  console.print(summary(manifest))
  print(f"{output / 'manifest.json'}: {manifest['records']:,} records in {len(manifest['shards'])} shards")


def read_settings(kind: str, options: argparse.Namespace):
  """The BuildSettings that a command line asks for. Raises UserError when some make no sense together."""
  from data_pipelines.build.filters import PictureRules
  from data_pipelines.build.settings import BuildSettings, Columns
  from data_pipelines.build.texts import TextRules

  given = vars(options)
  if given.get("similarity_model") and options.minimum_similarity is None:
    raise UserError("--similarity-model: give --minimum-similarity too, such as 0.25.")
  if given.get("tfds") and not (options.picture_column and options.text_column):
    raise UserError("--tfds: give --picture-column and --text-column, the names of the builder's fields.")
  if given.get("tfds") and options.question_column:
    raise UserError("--question-column: it is of tables, and --tfds names a builder.")
  if options.pipeline_options and not options.pipeline_options[0].startswith("-"):
    raise UserError(
      f"{options.pipeline_options[0]}: not an option of Beam (those begin with -). The input is named by --input."
    )
  if not 0 <= options.most_errors <= 1:
    raise UserError(f"--most-errors is {options.most_errors}; it is a share, from 0 to 1.")
  path = pathlib.Path(os.path.abspath(options.input))
  own = ("tfds", "split", "similarity_model", "most_linked", "fewest_pictures", "most_pictures", "most_repeats")
  return BuildSettings(
    kind=kind,
    input=str(path),  # workers may start elsewhere
    name=options.name or (path.stem if path.is_file() else path.name),
    license=options.licence,
    pictures=options.pictures and os.path.abspath(options.pictures),
    columns=Columns(
      picture=given.get("picture_column", ""),
      text=options.text_column,
      license=options.licence_column,
      video=given.get("video_column", ""),
      question=given.get("question_column", ""),
    ),
    text=TextRules(options.shortest_text, options.longest_text, options.fewest_words, options.languages),
    picture=PictureRules(options.smallest_side, options.largest_aspect),
    minimum_similarity=options.minimum_similarity,
    evaluation_images=options.evaluation_images and os.path.abspath(options.evaluation_images),
    near_bits=options.near_bits,
    duplicates=options.duplicates,
    documents_per_shard=options.documents_per_shard,
    **{name: given[name] for name in own if name in given},
  )


@contextlib.contextmanager
def _shown_progress(output: pathlib.Path, console) -> Iterator[None]:
  """Shows on a terminal how many parts have been read and how many shards made, as long as the build takes."""
  from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

  from data_pipelines.build.progress import count_parts, progress_of

  columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
  done = threading.Event()

  def show(bars: Progress) -> None:
    tasks = [bars.add_task(description, total=None) for description in ("parts read", "shards made")]
    parts = None
    while not done.wait(0.5):
      parts = parts or count_parts(output)
      if parts:
        now = progress_of(output, parts)
        for task, completed in zip(tasks, (now.read, now.made), strict=True):
          bars.update(task, total=parts, completed=completed)

  with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
    watcher = threading.Thread(target=show, args=(bars,))
    watcher.start()
    try:
      yield
    finally:
      done.set()
      watcher.join()


def _names(text: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in text.split(",") if name.strip())
