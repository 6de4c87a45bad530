"""Few-shot evaluation: which shots stand before a query, what the model says to them, and what that is worth.

Shots and orders depend on a seed and the query alone; where all queries share their shots, also on what is asked.
Predictions are written as they come, in the order of the queries, so that an evaluation that was stopped goes on where
it was.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation import prompts as prompting
from flamingo_jax.evaluation.answering import Model, Speech
from flamingo_jax.evaluation.metrics.score import Score, confidence_interval
from flamingo_jax.evaluation.predictions import (
  append,
  open_predictions,
  predictions_path,
  read_predictions,
  write_score,
)
from flamingo_jax.evaluation.prompts import Medium, Prompt
from flamingo_jax.evaluation.settings import (
  DEVELOPMENT,
  SHUFFLED_IMAGES,
  BenchmarkConfig,
  Setting,
  settings_of,
  task_name,
)
from flamingo_jax.evaluation.support import drawn, ensemble_orders, nearest_shots, random_shots, seed_of
from flamingo_jax.evaluation.tasks import TASKS, Example, Task, draw_subsets, few_shot_prompt, read_split
from flamingo_jax.evaluation.tasks.scoring import Resources, open_words
from flamingo_jax.evaluation.tasks.shots import candidates

SUBSET_SEED = 0  # of support sets and development queries: the same for all seeds, so that only the shots differ
LEVEL = 0.95  # of intervals

Progress = Callable[[str, int, int], None]  # setting, queries done, queries in all


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
  """

  name: str
  config: BenchmarkConfig
  split: str
  support: tuple[Example, ...]
  queries: tuple[Example, ...]
  absent: int

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

  @functools.cached_property
  def _places(self) -> dict[str | Medium, list[int]]:
    """Where the support has an id, and a medium."""
    found: dict[str | Medium, list[int]] = collections.defaultdict(list)
    for place, example in enumerate(self.support):
      found[example.id].append(place)
      found[example.medium].append(place)
    return dict(found)


@dataclasses.dataclass(frozen=True)
class Asked:
  """A query as it is put to the model.

  Attributes:
    query: the example.
    support: ids of its shots, as drawn.
    orders: of these shots, one for each prompt.
    prompts: one, or one for each order of an ensemble.
  """

  query: Example
  support: tuple[str, ...]
  orders: tuple[tuple[int, ...], ...]
  prompts: tuple[Prompt, ...]


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
  train = read_split(of_task, config.folder, task.support).examples if task.support else ()
  if config.split == DEVELOPMENT:
    subsets = draw_subsets(of_task, train, seed=SUBSET_SEED, support=config.support or None)
    split, absent = DEVELOPMENT, 0
    support, queries = subsets.development_support, subsets.development_queries
  else:
    split = config.split or task.query
    found = read_split(of_task, config.folder, split)
    queries, absent = found.examples, len(found.absent)
    size = config.support or None
    support = draw_subsets(of_task, train, seed=SUBSET_SEED, support=size, development=False).support if train else ()
  if not queries:
    raise UserError(f"{config.folder}: {split} of {of_task} has no examples ({absent} films are not there).")
  if config.queries:
    places = drawn([query.id for query in queries], min(config.queries, len(queries)), seed=SUBSET_SEED)
    queries = tuple(queries[place] for place in sorted(places))
  return Benchmark(name, config, split, support, queries, absent)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A setting with its data: what is asked, query by query.

  Attributes:
    setting: one of the benchmark's.
    benchmark: it belongs to.
    nearest: finds the places of each query's nearest support examples [q, k], the most alike last, at least as many
      as there are shots; None: shots are drawn.
  """

  setting: Setting
  benchmark: Benchmark
  nearest: Callable[[], Int[np.ndarray, "q k"]] | None

  def asked(self, place: int) -> Asked:
    """The prompts of a query, with the control applied."""
    setting, benchmark = self.setting, self.benchmark
    query = benchmark.queries[place]
    shown = [benchmark.support[shot] for shot in self.shots(place)]
    drawn_for = "" if setting.draws_once else query.id
    orders = ensemble_orders(len(shown), drawn_for, seed=setting.seed, count=setting.orders)
    if setting.orders == 1:
      orders = [list(range(len(shown)))]  # as drawn, or the most alike last
    built = [
      few_shot_prompt(setting.task, query, [shown[shot] for shot in order], shots=setting.shots) for order in orders
    ]
    seed = seed_of(setting.seed, query.id) % 2**32
    try:
      prompts = tuple(controlled(prompt, setting.control, seed) for prompt in built)
    except UserError as error:
      raise UserError(f"{setting.name}: query {query.id}: {error}") from error
    return Asked(query, tuple(example.id for example in shown), tuple(map(tuple, orders)), prompts)

  def shots(self, place: int) -> Sequence[int]:
    """Which support examples stand before a query; at 0 shots those whose text does."""
    setting, benchmark, query = self.setting, self.benchmark, self.benchmark.queries[place]
    if self.nearest is not None and setting.shots:
      return self.nearest()[place][-setting.shots :].tolist()
    return random_shots(
      len(benchmark.support),
      "" if setting.draws_once else query.id,
      shown_count(benchmark, setting),
      excluded=benchmark.asked_places if setting.draws_once else benchmark.own_places(query),
      seed=setting.seed,
    )


def shown_count(benchmark: Benchmark, setting: Setting) -> int:
  """How many support examples stand before a query."""
  return setting.shots or benchmark.task.text_only


def check_support(benchmark: Benchmark, setting: Setting) -> None:
  """Raises UserError where there are fewer examples to choose from than a prompt needs."""
  wanted, there = shown_count(benchmark, setting), len(benchmark.support)
  own = (len(benchmark.own_places(query)) for query in benchmark.queries)
  excluded = len(benchmark.asked_places) if setting.draws_once else max(own, default=0)
  if wanted <= there - excluded:
    return
  if setting.draws_once and wanted <= there:
    raise UserError(
      f"{setting.name}: {wanted} examples stand before all queries, but {excluded} of the {there} support examples are "
      f"asked about too, or show what is. Set benchmarks.{setting.benchmark}.queries to ask about fewer, or a larger "
      "support."
    )
  besides = f", {excluded} of which are the query or show what it shows" if excluded else ""
  raise UserError(
    f"{setting.name}: {wanted} examples stand before a query, but its support set has {there}{besides}. Ask for fewer "
    "shots, or set a larger support."
  )


def controlled(prompt: Prompt, control: str, seed: int) -> Prompt:
  """The prompt with something taken away, to see what it was good for; `control` is of CONTROLS, or empty."""
  if control == "image_blind":
    return prompting.without_media(prompt)
  if control == SHUFFLED_IMAGES:
    return prompting.with_shuffled_media(prompt, seed)
  if control == "shuffled_shots":
    return prompting.with_shuffled_shots(prompt, seed)
  return prompt


def plans(model: Model, benchmark: Benchmark, control: str) -> Iterator[Plan]:
  """All settings of a benchmark, one after another; media are compared for RICES once, and only if need be.

  Raises:
    UserError: there are fewer support examples than shots.
  """
  settings = settings_of(benchmark.name, benchmark.config, control)
  for setting in settings:
    check_support(benchmark, setting)

  @functools.cache
  def nearest() -> Int[np.ndarray, "q k"]:
    return nearest_shots(
      model.sight.pooled([example.medium for example in benchmark.support]),
      model.sight.pooled([example.medium for example in benchmark.queries]),
      max(setting.shots for setting in settings),
      support_ids=[example.id for example in benchmark.support],
      query_ids=[example.id for example in benchmark.queries],
      excluded=[benchmark.own_places(query) for query in benchmark.queries],
    )

  for setting in settings:
    yield Plan(setting, benchmark, nearest if setting.selection == "nearest" else None)


def check_lengths(model: Model, plan: Plan) -> None:
  """Raises UserError where a prompt with its answer is longer than the model's context; says how many shots fit."""
  config, worst = plan.benchmark.config, None
  for place in range(len(plan.benchmark.queries)):
    asked = plan.asked(place)
    options = max((len(model.encode(option)) for option in candidates(asked.query)), default=0)
    after = options if plan.benchmark.task.ranked else config.new_tokens
    for prompt in asked.prompts:
      fit = model.check_length(prompt, after)
      if fit is not None and (worst is None or fit < worst[0]):
        worst = (fit, asked.query.id)
  if worst is not None:
    raise UserError(too_long(plan, *worst, context=model.limits.context))


def too_long(plan: Plan, fit: int, query: str, *, context: int) -> str:
  """What to do about a query whose prompt is too long, of which so many chunks fit; -1: not even the query does."""
  benchmark = f"benchmarks.{plan.setting.benchmark}"
  what = f"the query {query} alone" if fit < 0 else f"the prompt of query {query}"
  told = (
    f"{plan.setting.name}: with its answer, {what} is longer than the {context} tokens of the language model's context"
  )
  if fit >= 0 and plan.setting.shots:
    return f"{told}. {fit} shots fit: set {benchmark}.shots."
  remedies = [f"set context above {context} if the language model was made for more"]
  if not plan.benchmark.task.ranked:
    remedies = [f"set {benchmark}.new_tokens below {plan.benchmark.config.new_tokens}", *remedies]
  if fit < 0:
    return f"{told}: {', or '.join([*remedies, 'shorten its question'])}."
  return f"{told}, for the texts before it that show the form of an answer: {', or '.join(remedies)}."


def predictions(model: Model, plan: Plan, start: int) -> Iterator[list[dict]]:
  """What the model says to the queries from number `start` on, some at a time; one object a query."""
  rows, count = model.limits.rows, len(plan.benchmark.queries)
  model.prefixes.clear()
  for first in range(start, count, rows):
    asked = [plan.asked(place) for place in range(first, min(first + rows, count))]
    yield ranked(model, plan, asked) if plan.benchmark.task.ranked else written(model, plan, asked)


def written(model: Model, plan: Plan, asked: Sequence[Asked]) -> list[dict]:
  config = plan.benchmark.config
  speech = Speech(config.beams, config.length_penalty, config.new_tokens)
  texts = model.write([each.prompts[0] for each in asked], speech, shared=plan.setting.shares_shots)
  keywords = plan.benchmark.task.keywords
  return [
    described(each) | dict(raw=raw, prediction=prompting.trimmed(raw, keywords))
    for each, raw in zip(asked, texts, strict=True)
  ]


def ranked(model: Model, plan: Plan, asked: Sequence[Asked]) -> list[dict]:
  """Log-likelihoods of the candidates; those of several orders are averaged (paper, section 4.2.2)."""
  options = [candidates(each.query) for each in asked]
  orders = zip(*(each.prompts for each in asked), strict=True)
  found = [model.rank(prompts, options, shared=plan.setting.shares_shots) for prompts in orders]
  means = [np.mean(scores, axis=0, dtype=np.float64) for scores in zip(*found, strict=True)]
  return [
    described(each)
    | dict(options=each.query.options, label=each.query.label, scores=scores.tolist())
    | dict(prediction=each.query.options[int(scores.argmax())])
    for each, scores in zip(asked, means, strict=True)
  ]


def described(asked: Asked) -> dict:
  """What was asked, as a line of predictions has it; of an ensemble the first prompt."""
  prompt = asked.prompts[0]
  about: dict[str, object] = dict(id=asked.query.id, prompt=prompting.written(prompt))
  about["media"] = [[medium.path, medium.start, medium.end] for medium in prompting.media_of(prompt)]
  about |= dict(support=asked.support, references=asked.query.references)
  return about | dict(orders=asked.orders) if len(asked.orders) > 1 else about


def score(plan: Plan, lines: Sequence[dict], wordnet: str) -> Score | None:
  """The metric of a setting's predictions; None where the answers are kept back."""
  benchmark, task = plan.benchmark, plan.benchmark.task
  if all(is_kept_back(task, query) for query in benchmark.queries):
    return None
  said = [np.array(line["scores"]) if task.ranked else line["prediction"] for line in lines]
  return task.score(benchmark.queries, said, Resources(pathlib.Path(benchmark.config.folder), wordnet))


def is_kept_back(task: Task, query: Example) -> bool:
  return query.label is None and not query.relevance if task.ranked else not query.references


def receipt(plan: Plan, about: dict) -> dict:
  """What a file of predictions is of: whatever could change them."""
  config, benchmark = plan.benchmark.config, plan.benchmark
  decoding = dict(beams=config.beams, length_penalty=config.length_penalty, new_tokens=config.new_tokens)
  return dataclasses.asdict(plan.setting) | dict(
    split=benchmark.split,
    split_hash=examples_hash(benchmark.queries),
    support_hash=examples_hash(benchmark.support),
    decoding={} if benchmark.task.ranked else decoding,
    **about,
  )


def examples_hash(examples: Sequence[Example]) -> str:
  """SHA-256 of examples as they were read; of media the files' names, not their folder."""

  def kept(example: Example) -> dict:
    fields = dataclasses.asdict(example)
    fields["medium"]["path"] = pathlib.Path(example.medium.path).name
    return fields

  return hashlib.sha256(json.dumps([kept(example) for example in examples]).encode()).hexdigest()


def evaluate(
  model: Model, benchmark: Benchmark, out: pathlib.Path, about: dict, *, control: str, wordnet: str, tell: Progress
) -> None:
  """Evaluates all settings of a benchmark that are not done yet; process 0 writes.

  Args:
    model: that answers.
    benchmark: that was read.
    out: the folder of predictions and scores.
    about: which model this is and how it sees, for receipts.
    control: of CONTROLS, or empty.
    wordnet: folder of WordNet's database, for WUPS.
    tell: hears how far it has come.

  Raises:
    UserError: a setting cannot be evaluated, or `out` holds predictions of something else.
  """
  leads = jax.process_index() == 0
  for plan in plans(model, benchmark, control):
    path, count = predictions_path(out, plan.setting.name), len(benchmark.queries)
    done = open_predictions(path, receipt(plan, about)) if leads else 0
    done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
    tell(plan.setting.name, done, count)
    if done < count:
      check_lengths(model, plan)
      for lines in predictions(model, plan, done):
        if leads:
          append(path, lines)
        done += len(lines)
        tell(plan.setting.name, done, count)
    if leads:
      write_score(out, described_score(plan, score(plan, read_predictions(path)[1], wordnet)))


def described_score(plan: Plan, found: Score | None) -> dict:
  """A setting's line of `scores.json`."""
  benchmark = plan.benchmark
  about = dict(setting=plan.setting.name) | dataclasses.asdict(plan.setting)
  about |= dict(metric=benchmark.task.metric, split=benchmark.split)
  about |= dict(examples=len(benchmark.queries), absent=benchmark.absent)
  if found is None:
    return about | dict(score=None)
  low, high = confidence_interval(found, seed=0, level=LEVEL)
  return about | dict(score=found.total, low=low, high=high, level=LEVEL, per_example=found.per_example.tolist())


def quick_scores(model: Model, benchmark: Benchmark, wordnet: str) -> dict[str, float]:
  """Scores of a benchmark by shots, means over seeds; nothing is written: for evaluations in the midst of training."""
  totals = collections.defaultdict(list)
  for plan in plans(model, benchmark, control=""):
    check_lengths(model, plan)
    lines = [line for some in predictions(model, plan, 0) for line in some]
    if (found := score(plan, lines, wordnet)) is not None:
      totals[f"few_shot/{plan.setting.benchmark}/{plan.setting.shots}"].append(found.total)
  return {name: float(np.mean(seeds)) for name, seeds in totals.items()}
