"""Folders of evaluations, as the runner writes them: real pictures, prompts, metrics and files; no model."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

from flamingo_jax.evaluation import runner
from flamingo_jax.evaluation.benchmark import Benchmark
from flamingo_jax.evaluation.predictions import answered, append, open_predictions, predictions_path, write_score
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.settings import BenchmarkConfig, settings_of
from flamingo_jax.evaluation.tasks import Example
from flamingo_jax.evaluation.tasks.example import Clip

COLOURS = dict(red=(220, 20, 20), green=(20, 160, 20), blue=(20, 20, 220), yellow=(230, 220, 30))
HOSTILE = "</p><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
CHECKPOINT = dict(step=1200, hashes=dict(trained="ab" * 32))


def picture(path: pathlib.Path, colour: str) -> Medium:
  """A real JPEG of one colour."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (320, 240), COLOURS[colour]).save(path, "JPEG")
  return Medium(str(path))


def film(path: pathlib.Path) -> None:
  """A real MP4 of 3 s: one second of red, of green, and of blue."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("mpeg4", rate=10, options={"qmin": "1", "qmax": "1"})
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(30):
      frame = Image.new("RGB", (64, 48), list(COLOURS.values())[number // 10])
      container.mux(stream.encode(av.VideoFrame.from_image(frame)))
    container.mux(stream.encode(None))


def captioned(folder: pathlib.Path, part: str, count: int, caption: str = "a {colour} wall, number {number}"):
  """Pictures whose captions name their colour."""
  names = [list(COLOURS)[number % len(COLOURS)] for number in range(count)]
  return tuple(
    Example(
      id=f"{part}/{number}",
      medium=picture(folder / part / f"{number}.jpg", colour),
      references=(caption.format(colour=colour, number=number), f"this wall is {colour}"),
    )
    for number, colour in enumerate(names)
  )


def benchmark(name: str, queries, support=(), *, split: str = "test", absent: int = 0, **settings) -> Benchmark:
  """A benchmark as if it had been read."""
  return Benchmark(name, BenchmarkConfig(folder="data", **settings), split, support, queries, absent, True)


Say = Callable[[runner.Plan, int], dict]  # what a model would have answered to a query: fields of its line


def begin(folder: pathlib.Path, control: str = "") -> None:
  """What `flamingo evaluate` writes first."""
  folder.mkdir(parents=True, exist_ok=True)
  config = dict(control=control, note=HOSTILE, checkpoint=dict(path="runs/mine", **CHECKPOINT))
  (folder / "config.json").write_text(json.dumps(config))


def evaluate(folder: pathlib.Path, of: Benchmark, say: Say, *, control: str = "", finish: bool = True) -> None:
  """Writes a benchmark's predictions and, if it is to be finished, its scores, by the runner's own code."""
  for setting in settings_of(of.name, of.config, control):
    plan = runner.Plan(setting, of, None)
    path = predictions_path(folder, setting.name)
    open_predictions(path, runner.receipt(plan, CHECKPOINT))
    lines = [
      runner.described(plan.asked(place)) | say(plan, place)
      if of.is_readable(place)
      else dict(id=query.id, unreadable=of.unreadable[query.medium])
      for place, query in enumerate(of.queries)
    ]
    append(path, lines)
    if finish:
      lines = [json.loads(json.dumps(line)) for line in lines]
      write_score(folder, runner.described_score(plan, runner.score(plan, lines, wordnet=""), len(answered(lines))))


def writes(texts: Callable[[runner.Plan, int], str], after: str = "") -> Say:
  """An open-ended answer, and what the model wrote after it."""

  def say(plan: runner.Plan, place: int) -> dict:
    text = texts(plan, place)
    return dict(raw=f" {text}{after}", prediction=text)

  return say


def ranks(likelihoods: Callable[[Example], list[float]]) -> Say:
  """Log-likelihoods of a query's candidates."""

  def say(plan: runner.Plan, place: int) -> dict:
    query = plan.benchmark.queries[place]
    scores = likelihoods(query)
    best = query.options[int(np.argmax(scores))]
    return dict(options=query.options, label=query.label, scores=scores, prediction=best)

  return say


def memes(folder: pathlib.Path, part: str, count: int) -> tuple[Example, ...]:
  """Every other one is hateful."""
  names = list(COLOURS)
  return tuple(
    Example(
      id=f"{part}-{number}",
      medium=picture(folder / part / f"{number}.jpg", names[number % 4]),
      references=(("no", "yes")[number % 2],),
      written=f"words {number}",
      options=("no", "yes"),
      label=number % 2,
    )
    for number in range(count)
  )


def actions(folder: pathlib.Path, count: int) -> tuple[Example, ...]:
  """Clips of two actions, all in one film, the last of which runs to its end."""
  film(folder / "film.mp4")
  pairs = (("cut", "phone"), ("wash", "shirt"))
  return tuple(
    Example(
      id=f"clip-{number}",
      medium=Medium(str(folder / "film.mp4"), float(number % 3), float(number % 3) + 1),
      options=("a person cuts a phone", "a person washes a shirt"),
      label=number % 2,
      clip=Clip(*pairs[number % 2], f"video-{number}", 1),
    )
    for number in range(count)
  )


def without_answers(examples: tuple[Example, ...]) -> tuple[Example, ...]:
  return tuple(dataclasses.replace(example, references=()) for example in examples)
