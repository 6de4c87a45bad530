"""`flamingo data explain`: what a stream makes of one record, printed token by token."""

import json
import pathlib

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipelines.inspection.explain import NEXT, Explanation, explain_all, explain_place, places
from data_pipelines.stream import Stream
from flamingo_jax.errors import UserError
from launch.data_streams import check_step, open_experiment, open_stream, streams_of

SPECIAL = ("<image>", "<EOC>", "<BOS>", "<EOS>")


def explain_record(
  record: str, path: str, overrides: dict[str, str], name: str | None, step: int | None, start: float, as_json: bool
) -> None:
  """Prints how a stream reads a record.

  Args:
    record: SHARD:NUMBER, the two that skipped.jsonl names.
    path: of the config.
    overrides: of its fields.
    name: of the stream; None: the only one that reads the shard.
    step: whose draws are meant, from 1; None: all that the stream may make.
    start: without a step, where a page's window starts, in [0, 1).
    as_json: one object in place of tables; with a step that reads the record several times, one a line.

  Raises:
    UserError: there is no such shard, record or stream, the step does not read it, or the stream leaves it out.
  """
  shard, number = split_record(record)
  if not 0 <= start < 1:
    raise UserError(f"--start is {start}; it is at least 0 and below 1.")
  stream, title = find_stream(shard, path, overrides, name)
  index = locate(stream, shard, number)
  explanations = explain_step(stream, index, step, record) if step is not None else [explain_all(stream, index, start)]
  for explanation in explanations:
    if as_json:
      print(json.dumps(dict(stream=title, step=step) | explanation.as_json(), ensure_ascii=False))
    else:
      show(explanation, stream, title, step)


def split_record(record: str) -> tuple[pathlib.Path, int]:
  shard, _, number = record.rpartition(":")
  if not shard or not number.isdecimal():
    raise UserError(f"{record}: a record is named SHARD:NUMBER, as data/train/pages-00000-of-00002.array_record:17.")
  return pathlib.Path(shard), int(number)


def find_stream(shard: pathlib.Path, path: str, overrides: dict[str, str], name: str | None) -> tuple[Stream, str]:
  """The stream that reads a shard, and its name."""
  experiment = open_experiment(path, overrides, [name] if name else [])
  found = streams_of(experiment, shard.parent)
  if not found:
    sources = "; ".join(f"{each}: {', '.join(config.sources)}" for each, config in experiment.stream_configs.items())
    raise UserError(f"{shard}: no stream of {path} reads this folder. They read `train` and `heldout` in {sources}.")
  if len(found) > 1:
    raise UserError(
      f"{shard}: several streams read it; choose by --stream={' or --stream='.join(n for n, _ in found)}."
    )
  [(name, split)] = found
  return open_stream(experiment, name, split), f"{name}/{split}"


def locate(stream: Stream, shard: pathlib.Path, number: int) -> int:
  """The record's index in its stream."""
  for part, shards in enumerate(stream.sources.parts):
    if shards.directory.resolve() == shard.parent.resolve():
      return stream.sources.first(part) + shards.index(shard, number)
  raise AssertionError(f"{shard}: the stream was found by this folder")


def explain_step(stream: Stream, index: int, step: int, record: str) -> list[Explanation]:
  if not stream.training:
    raise UserError(f"--step: {record} is held out; no step reads it.")
  check_step(step)
  found = places(stream, index, step)
  if not found:
    raise UserError(f"{record}: step {step} does not read it. Without --step it is explained under all draws.")
  return [explain_place(stream, index, place) for place in found]


def show(explanation: Explanation, stream: Stream, title: str, step: int | None) -> None:
  console = Console(highlight=False)
  for line in heading(explanation, stream, title, step):
    console.print(escape(line), soft_wrap=True)  # a path stays whole, to be copied
  if explanation.media:
    console.print(media_table(explanation))
  console.print(token_table(explanation))


def heading(explanation: Explanation, stream: Stream, title: str, step: int | None) -> list[str]:
  """What is said before the tables."""
  config, count = stream.config, len(explanation.tokens)
  lines = [
    f"{explanation.shard}:{explanation.record}",
    f"{explanation.source} ({explanation.license})",
    f"stream {title}: {config.layout}, length {config.length}, {config.media} media slots, labels {config.labels}",
  ]
  if explanation.place:
    place = explanation.place
    packed = f", pair {place.slot + 1} of it, from token {place.start}" if config.pack else ""
    lines.append(f"step {step}: row {place.row} of the batch, position {place.position}{packed}")
  if config.prompt:
    lines.append(f"prompt {config.prompt!r}, without loss, and a space")
  elif config.layout == "pairs":
    drawn = next(iter(explanation.draws.values()))
    space = f"{'a' if drawn.space else 'no'} space was drawn before the caption"
    either = "half of the times, training puts a space before the caption; here is none"
    lines += [space if explanation.place else either] * stream.training
  else:
    lines.append(
      f"window: <BOS> and tokens {explanation.first} to {explanation.first + count - 2}, of {explanation.whole}"
    )
    lines.append(phi(explanation, config.p_next if stream.training else 0.0))
  learnt = (explanation.weights > 0).sum()
  return [*lines, f"{learnt} of {count} tokens carry loss, {explanation.weights.sum():g} in all"]


def phi(explanation: Explanation, p_next: float) -> str:
  """Which medium tokens see, in words."""
  if explanation.place:
    side = "next" if NEXT in explanation.draws else "previous"
    return f"drawn, with p_next {p_next:g}: tokens see the {side} medium"
  chances = ", ".join(f"the {name} medium with probability {chance:g}" for name, chance in explanation.chances.items())
  return f"p_next {p_next:g}: tokens see {chances}"


def media_table(explanation: Explanation) -> Table:
  table = Table("medium", "slot", "what", *columns(explanation, "text tokens"), box=box.SIMPLE)
  for medium in explanation.media:
    place = medium.absent if medium.slot is None else str(medium.slot)
    counts = [str(count) if medium.slot is not None else "" for count in medium.readers.values()]
    table.add_row(str(medium.number), place, escape(medium.format), *counts, style="red" if medium.broken else None)
  return table


def token_table(explanation: Explanation) -> Table:
  table = Table("#", "id", box=box.SIMPLE)
  table.add_column("token", overflow="fold")
  for name in columns(explanation, "sees"):
    table.add_column(name, justify="right")
  table.add_column("loss", justify="right")
  first = explanation.place.start if explanation.place else 0
  for at, (token, piece, weight) in enumerate(
    zip(explanation.tokens, explanation.pieces, explanation.weights, strict=True)
  ):
    text = piece if piece in SPECIAL else json.dumps(piece, ensure_ascii=False)
    seen = ["-" if slots[at] < 0 else str(slots[at]) for slots in explanation.sees.values()]
    loss = f"{weight:g}" if weight else "-"
    table.add_row(str(first + at), str(token), escape(text), *seen, loss, style=None if weight else "dim")
  return table


def columns(explanation: Explanation, what: str) -> list[str]:
  """A column's name for each draw."""
  names = list(explanation.draws)
  return [what] if len(names) == 1 else [f"{what}:\n{name}" for name in names]
