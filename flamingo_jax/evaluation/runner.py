"""Few-shot evaluation: which shots stand before a query, what the model says to them, and what that is worth.

Shots and orders depend on a seed and the query alone; where all queries share their shots, also on what is asked.
Predictions are written as they come, in the order of the queries, so that an evaluation that was stopped goes on where
it was.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation import prompts as prompting
from flamingo_jax.evaluation.answering import Model, Speech
from flamingo_jax.evaluation.benchmark import Benchmark, examples_hash
from flamingo_jax.evaluation.metrics.score import Score, confidence_interval
from flamingo_jax.evaluation.predictions import (
  answered,
  append,
  open_predictions,
  predictions_path,
  read_predictions,
  write_score,
)
from flamingo_jax.evaluation.prompts import Prompt
from flamingo_jax.evaluation.settings import SHUFFLED_IMAGES, Setting, settings_of
from flamingo_jax.evaluation.sight import AT_ONCE
from flamingo_jax.evaluation.support import ensemble_orders, nearest_shots, random_shots, seed_of
from flamingo_jax.evaluation.tasks import Example, Task, few_shot_prompt
from flamingo_jax.evaluation.tasks.scoring import Resources
from flamingo_jax.evaluation.tasks.shots import candidates

LEVEL = 0.95  # of intervals

Progress = Callable[[str, int, int], None]  # setting, queries done, queries in all


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


@dataclasses.dataclass(frozen=True)
class Plan:
  """A setting with its data: what is asked, query by query.

  Attributes:
    setting: one of the benchmark's.
    benchmark: it belongs to.
    nearest: finds the places of each query's nearest support examples, at least as many as there are shots, the most
      alike last, by the place of the query; None: shots are drawn.
  """

  setting: Setting
  benchmark: Benchmark
  nearest: Callable[[], dict[int, Int[np.ndarray, " k"]]] | None

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

  def readable(self, places: Iterable[int]) -> list[int]:
    """Those of the queries whose film is not known to be broken."""
    if self.nearest is not None:
      self.nearest()  # looks at all films
    return [place for place in places if self.benchmark.is_readable(place)]

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
      unreadable=benchmark.unreadable_places() if setting.shots else (),  # at 0 shots none is looked at
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
  def nearest() -> dict[int, Int[np.ndarray, " k"]]:
    return nearest_places(model, benchmark, max(setting.shots for setting in settings))

  for setting in settings:
    yield Plan(setting, benchmark, nearest if setting.selection == "nearest" else None)


def nearest_places(model: Model, benchmark: Benchmark, shots: int) -> dict[int, Int[np.ndarray, " k"]]:
  """Where the support examples nearest to each query stand, by the query's own place, of all that can be read."""
  support, queries = seen(model, benchmark, benchmark.support), seen(model, benchmark, benchmark.queries)
  shown = np.array(list(support))
  own = (list(benchmark.own_places(benchmark.queries[place])) for place in queries)
  found = nearest_shots(
    np.stack(list(support.values())),
    np.stack(list(queries.values())),
    shots,
    support_ids=[benchmark.support[place].id for place in support],
    query_ids=[benchmark.queries[place].id for place in queries],
    excluded=[np.flatnonzero(np.isin(shown, places)).tolist() for places in own],
  )
  return dict(zip(queries, shown[found], strict=True))


def seen(model: Model, benchmark: Benchmark, examples: Sequence[Example]) -> dict[int, Float[np.ndarray, " V"]]:
  """What the encoder sees of each example that can be read, by the example's place."""

  def look(places: Sequence[int]) -> dict[int, Float[np.ndarray, " V"]]:
    readable = [place for place in places if examples[place].medium not in benchmark.unreadable]
    return dict(zip(readable, model.sight.pooled([examples[place].medium for place in readable]), strict=True))

  found: dict[int, Float[np.ndarray, " V"]] = {}
  for start in range(0, len(examples), AT_ONCE):
    found |= benchmark.look(functools.partial(look, range(len(examples))[start : start + AT_ONCE]))
  if not found:
    raise UserError(f"benchmarks.{benchmark.name}: none of {len(examples)} films can be decoded.")
  return found


def check_lengths(model: Model, plan: Plan, places: Iterable[int]) -> None:
  """Raises UserError where a prompt with its answer is longer than the model's context; says how many shots fit."""
  config, worst = plan.benchmark.config, None
  for place in plan.readable(places):
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
  model.prefixes.clear()
  rows, places = model.limits.rows, range(len(plan.benchmark.queries))
  for first in range(start, len(places), rows):
    yield plan.benchmark.look(functools.partial(answers, model, plan, places[first : first + rows]))


def answers(model: Model, plan: Plan, places: Sequence[int]) -> list[dict]:
  """One object for each of these queries; where its film cannot be decoded, that it is unreadable, and why."""
  benchmark = plan.benchmark
  if benchmark.unreadable:  # examples that stand in for unreadable ones may be longer
    check_lengths(model, plan, places)
  asked = [plan.asked(place) for place in plan.readable(places)]
  answer = ranked if benchmark.task.ranked else written
  lines = iter(answer(model, plan, asked) if asked else ())
  queries = [benchmark.queries[place] for place in places]
  why = benchmark.unreadable
  return [dict(id=query.id, unreadable=why[query.medium]) if query.medium in why else next(lines) for query in queries]


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
  """The metric of the predictions that a setting has; None where the answers are kept back."""
  benchmark, task = plan.benchmark, plan.benchmark.task
  if all(is_kept_back(task, query) for query in benchmark.queries):
    return None
  said = {line["id"]: np.array(line["scores"]) if task.ranked else line["prediction"] for line in answered(lines)}
  if not said:
    raise UserError(f"{plan.setting.name}: none of {len(lines)} films can be decoded.")
  queries = [query for query in benchmark.queries if query.id in said]
  return task.score(queries, list(said.values()), Resources(pathlib.Path(benchmark.config.folder), wordnet))


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
      check_lengths(model, plan, range(count))
      for lines in predictions(model, plan, done):
        if leads:
          append(path, lines)
        done += len(lines)
        tell(plan.setting.name, done, count)
    if leads:
      lines = read_predictions(path)[1]
      write_score(out, described_score(plan, score(plan, lines, wordnet), len(answered(lines))))


def described_score(plan: Plan, found: Score | None, examples: int) -> dict:
  """A setting's line of `scores.json`, with how many examples were answered."""
  benchmark = plan.benchmark
  about = dict(setting=plan.setting.name) | dataclasses.asdict(plan.setting)
  about |= dict(metric=benchmark.task.metric, split=benchmark.split)
  about |= dict(examples=examples, absent=benchmark.absent, unreadable=len(benchmark.queries) - examples)
  if found is None:
    return about | dict(score=None)
  low, high = confidence_interval(found, seed=0, level=LEVEL)
  return about | dict(score=found.total, low=low, high=high, level=LEVEL, per_example=found.per_example.tolist())


def quick_scores(model: Model, benchmark: Benchmark, wordnet: str) -> dict[str, float]:
  """Scores of a benchmark by shots, means over seeds; nothing is written: for evaluations in the midst of training."""
  totals = collections.defaultdict(list)
  for plan in plans(model, benchmark, control=""):
    check_lengths(model, plan, range(len(benchmark.queries)))
    lines = [line for some in predictions(model, plan, 0) for line in some]
    if (found := score(plan, lines, wordnet)) is not None:
      totals[f"few_shot/{plan.setting.benchmark}/{plan.setting.shots}"].append(found.total)
  return {name: float(np.mean(seeds)) for name, seeds in totals.items()}
