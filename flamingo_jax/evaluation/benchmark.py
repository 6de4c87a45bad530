"""A benchmark that was read: what is asked, what shots are chosen from, and which of it cannot be seen."""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.settings import DEVELOPMENT, BenchmarkConfig, task_name
from flamingo_jax.evaluation.sight import UnreadableMedia
from flamingo_jax.evaluation.support import drawn
from flamingo_jax.evaluation.tasks import TASKS, Example, Split, Task, draw_subsets, read_split
from flamingo_jax.evaluation.tasks.scoring import Resources, open_words

Found = TypeVar("Found")

SUBSET_SEED = 0  # of support sets and development queries: the same for all seeds, so that only the shots differ


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark that was read.

  Attributes:
    name: in the config.
    config: its settings.
    split: that is evaluated.
    support: what shots are chosen from.
    queries: what is asked.
    absent: how many of the split were left out because their film is not there.
    films_vanish: whether examples whose film cannot be decoded are left out too, instead of being an error.
    unreadable: what is wrong with such films, of those found so far: that shows when one is looked at.
  """

  name: str
  config: BenchmarkConfig
  split: str
  support: tuple[Example, ...]
  queries: tuple[Example, ...]
  absent: int
  films_vanish: bool
  unreadable: dict[Medium, str] = dataclasses.field(default_factory=dict)

  @property
  def task(self) -> Task:
    return TASKS[task_name(self.name, self.config)]

  def own_places(self, query: Example) -> set[int]:
    """Where the support has a query itself, by its id, or its medium: no shots of it."""
    return {place for key in (query.id, query.medium) for place in self._places.get(key, ())}

  @functools.cached_property
  def asked_places(self) -> set[int]:
    """The same of all queries: what can be no shot of all of them."""
    return {place for query in self.queries for place in self.own_places(query)}

  def unreadable_places(self) -> set[int]:
    """Where the support has films that cannot be decoded: no shots of any."""
    return {place for medium in self.unreadable for place in self._places.get(medium, ())}

  def is_readable(self, query: int) -> bool:
    return self.queries[query].medium not in self.unreadable

  def look(self, look: Callable[[], Found]) -> Found:
    """What `look` gives; called again where it meets films that cannot be decoded, which it then leaves out.

    Raises:
      UnreadableMedia: they are not of a data set of films that vanish, or are met again.
    """
    while True:
      try:
        return look()
      except UnreadableMedia as error:
        if not self.films_vanish or error.faults.keys() <= self.unreadable.keys():
          raise
        self.unreadable.update(error.faults)
        if jax.process_index() == 0:
          print(f"benchmarks.{self.name} goes on without films that cannot be decoded:\n{error}", file=sys.stderr)

  @functools.cached_property
  def _places(self) -> dict[str | Medium, list[int]]:
    """Where the support has an id, and a medium."""
    found: dict[str | Medium, list[int]] = collections.defaultdict(list)
    for place, example in enumerate(self.support):
      found[example.id].append(place)
      found[example.medium].append(place)
    return dict(found)


def read_benchmark(name: str, config: BenchmarkConfig, *, wordnet: str) -> Benchmark:
  """Reads what a benchmark's settings need of its data set.

  Args:
    name: of the benchmark.
    config: its settings.
    wordnet: folder of WordNet's database, for WUPS.

  Raises:
    UserError: it is not as docs/evaluation.md has it, has too few examples for what is asked, or its metric could not
      be computed.
  """
  of_task = task_name(name, config)
  task = TASKS[of_task]
  if task.needs_words:
    open_words(Resources(pathlib.Path(config.folder), wordnet))
  found = read_split(of_task, config.folder, task.support) if task.support else Split(())
  train = found.examples
  if config.split == DEVELOPMENT:
    subsets = draw_subsets(of_task, train, seed=SUBSET_SEED, support=config.support or None)
    split, absent, films_vanish = DEVELOPMENT, 0, found.films_vanish
    support, queries = subsets.development_support, subsets.development_queries
  else:
    split = config.split or task.query
    found = read_split(of_task, config.folder, split)
    queries, absent, films_vanish = found.examples, len(found.absent), found.films_vanish
    size = config.support or None
    support = draw_subsets(of_task, train, seed=SUBSET_SEED, support=size, development=False).support if train else ()
  if not queries:
    raise UserError(f"{config.folder}: {split} of {of_task} has no examples ({absent} films are not there).")
  if config.queries:
    places = drawn([query.id for query in queries], min(config.queries, len(queries)), seed=SUBSET_SEED)
    queries = tuple(queries[place] for place in sorted(places))
  return Benchmark(name, config, split, support, queries, absent, films_vanish)


def examples_hash(examples: Sequence[Example]) -> str:
  """SHA-256 of examples as they were read; of media the files' names, not their folder."""

  def kept(example: Example) -> dict:
    fields = dataclasses.asdict(example)
    fields["medium"]["path"] = pathlib.Path(example.medium.path).name
    return fields

  return hashlib.sha256(json.dumps([kept(example) for example in examples]).encode()).hexdigest()
