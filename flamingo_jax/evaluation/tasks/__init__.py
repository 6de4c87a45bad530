"""The sixteen benchmarks of the paper, ImageNet and Kinetics700, and two on pictures of one's own: a table by name."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import Prompt, Shot, assemble, assemble_zero_shot
from flamingo_jax.evaluation.support import drawn, drawn_by_class
from flamingo_jax.evaluation.tasks import (
  classification,
  hateful_memes,
  karpathy,
  photographs,
  pictures,
  rareact,
  scoring,
  shots,
  video_captions,
  video_qa,
  visdial,
  vqa,
)
from flamingo_jax.evaluation.tasks.example import Example, Split
from flamingo_jax.evaluation.tasks.reading import forget_folders

SHOTS = (0, 4, 8, 16, 32)  # what the paper reports
BEAM = 3  # beams of open-ended tasks
SUPPORT = 2048  # support examples
SUPPORT_OF_CLASS = 32  # of each class, for classification


Reader = Callable[[pathlib.Path, str], Split]


@dataclasses.dataclass(frozen=True)
class Task:
  """One benchmark as the paper evaluates it (section 4 and its appendix).

  Attributes:
    read: the examples of a split, given the data set's folder.
    splits: that can be read.
    query: the split that is evaluated.
    shot: an example in the form of the prompt.
    score: the metric.
    metric: what it is called.
    support: the split that shots are drawn from; empty: there is none.
    ranked: close-ended: candidates are ranked by log-likelihood; else an answer is generated.
    keywords: where a generated answer is cut if the model goes on with another example.
    text_only: examples that stand in for shots at 0 shots, without their media.
    most_shots: more do not fit (VisDial) or are not for this benchmark (RareAct).
    development_queries: how many of the training split the paper's design decisions were made on; 0: none.
    by_class: support and development sets have so many examples of each class, rather than in all.
    needs_words: the metric reads `scoring.open_words`.
  """

  read: Reader
  splits: tuple[str, ...]
  query: str
  shot: Callable[[Example], Shot]
  score: scoring.Scorer
  metric: str
  support: str = "train"
  ranked: bool = False
  keywords: tuple[str, ...] = ()
  text_only: int = 0
  most_shots: int = 32
  development_queries: int = 0
  by_class: bool = False
  needs_words: bool = False


_USUAL = ("train", "val", "test")


def _captioning(read: Reader, splits: tuple[str, ...], query: str, *, development_queries: int = 0) -> Task:
  return Task(
    read=read,
    splits=splits,
    query=query,
    shot=shots.caption_shot,
    score=scoring.cider,
    metric="CIDEr",
    keywords=("Output:",),
    text_only=2,
    development_queries=development_queries,
  )


def _answering(
  read: Reader,
  splits: tuple[str, ...],
  query: str,
  metric: str,
  score: scoring.Scorer,
  *,
  development_queries: int = 0,
  needs_words: bool = False,
) -> Task:
  return Task(
    read=read,
    splits=splits,
    query=query,
    shot=shots.question_shot,
    score=score,
    metric=metric,
    keywords=("Question:", "Answer:"),
    text_only=2,
    development_queries=development_queries,
    needs_words=needs_words,
  )


def _classifying(read: Reader, metric: str, score: scoring.Scorer) -> Task:
  return Task(
    read=read,
    splits=("train", "val"),
    query="val",
    shot=shots.class_shot,
    score=score,
    metric=metric,
    ranked=True,
    development_queries=10,
    by_class=True,
  )


TASKS = {
  "coco": _captioning(karpathy.read_coco, ("train", "restval", "val", "test"), "test", development_queries=5000),
  "flickr30k": _captioning(karpathy.read_flickr30k, _USUAL, "test"),
  "vatex": _captioning(video_captions.read_vatex, _USUAL, "test", development_queries=1024),
  "youcook2": _captioning(video_captions.read_youcook2, ("train", "val"), "val"),
  "vqav2": _answering(
    vqa.read_vqav2,
    ("train", "val", "test-dev"),
    "test-dev",
    "VQA accuracy",
    scoring.vqa_accuracy,
    development_queries=1024,
  ),
  "okvqa": _answering(
    vqa.read_okvqa, ("train", "val"), "val", "VQA accuracy", scoring.vqa_accuracy, development_queries=1024
  ),
  "textvqa": _answering(photographs.read_textvqa, ("train", "val"), "val", "VQA accuracy", scoring.textvqa_accuracy),
  "vizwiz": _answering(photographs.read_vizwiz, _USUAL, "test", "VQA accuracy", scoring.vizwiz_accuracy),
  "msvdqa": _answering(video_qa.read_msvdqa, _USUAL, "test", "top-1", scoring.exact_accuracy, development_queries=1024),
  "msrvttqa": _answering(video_qa.read_msrvttqa, _USUAL, "test", "top-1", scoring.exact_accuracy),
  "ivqa": _answering(video_qa.read_ivqa, _USUAL, "test", "iVQA accuracy", scoring.ivqa_accuracy),
  "nextqa": _answering(video_qa.read_nextqa, _USUAL, "test", "WUPS", scoring.wups, needs_words=True),
  "star": Task(
    read=video_qa.read_star,
    splits=_USUAL,
    query="test",
    shot=shots.choice_shot,
    score=scoring.top_1,
    metric="top-1",
    ranked=True,
  ),
  "visdial": Task(
    read=visdial.read_visdial,
    splits=("train", "val"),
    query="val",
    shot=shots.dialogue_shot,
    score=scoring.ndcg,
    metric="NDCG",
    ranked=True,
    most_shots=16,
  ),
  "hateful_memes": Task(
    read=hateful_memes.read_hateful_memes,
    splits=("train", "dev_seen", "test_seen", "dev_unseen", "test_unseen"),
    query="test_seen",
    shot=shots.meme_shot,
    score=scoring.roc_auc,
    metric="ROC AUC",
    ranked=True,
  ),
  "rareact": Task(
    read=rareact.read_rareact,
    splits=("all",),
    support="",
    query="all",
    shot=shots.action_shot,
    score=scoring.mwap,
    metric="mWAP",
    ranked=True,
    most_shots=0,
  ),
  "imagenet": _classifying(classification.read_imagenet, "top-1", scoring.top_1),
  "kinetics": _classifying(classification.read_kinetics, "mean of top-1 and top-5", scoring.top_1_and_5),
  "pictures": _captioning(pictures.read_pictures, pictures.SPLITS, "heldout"),
  "matching": Task(
    read=pictures.read_matching,
    splits=pictures.SPLITS,
    query="heldout",
    shot=shots.class_shot,
    score=scoring.top_1,
    metric="top-1",
    ranked=True,
  ),
}


def read_split(name: str, folder: str | pathlib.Path, split: str) -> Split:
  """The examples of a benchmark's split.

  Raises:
    UserError: there is no such benchmark, split or folder, or what the folder holds is not as documented.
  """
  if name not in TASKS:
    raise UserError(f"There is no benchmark {name!r}; there are {', '.join(sorted(TASKS))}.")
  if split not in TASKS[name].splits:
    raise UserError(f"{name} has no split {split!r}; it has {', '.join(TASKS[name].splits)}.")
  if not pathlib.Path(folder).is_dir():
    raise UserError(f"{folder}: there is no such folder; docs/evaluation.md says what {name}'s holds.")
  forget_folders()
  return TASKS[name].read(pathlib.Path(folder), split)


def few_shot_prompt(name: str, query: Example, examples: Sequence[Example], *, shots: int) -> Prompt:
  """The prompt of a query: its shots, or at 0 shots the text of as many examples as the task's `text_only` says.

  Args:
    name: of the benchmark.
    query: the example in question; its answer does not come into the prompt.
    examples: of the support set, in the order of the prompt.
    shots: how many of them are shown with their media.

  Raises:
    UserError: the benchmark takes fewer shots, or the examples are more or fewer than are needed.
  """
  task = TASKS[name]
  if shots > task.most_shots:
    raise UserError(f"{name} takes at most {task.most_shots} shots, not {shots}.")
  wanted = shots or task.text_only
  if len(examples) != wanted:
    raise UserError(f"{name} needs {wanted} support examples for {shots} shots, but {len(examples)} are given.")
  build = assemble if shots else assemble_zero_shot
  return build([task.shot(example) for example in examples], task.shot(query))


@dataclasses.dataclass(frozen=True)
class Subsets:
  """Disjoint parts of a training split (paper, section 4 and appendix): support examples for the final figures, and
  support examples and queries on which design decisions are made."""

  support: tuple[Example, ...]
  development_support: tuple[Example, ...] = ()
  development_queries: tuple[Example, ...] = ()


def draw_subsets(
  name: str, examples: Sequence[Example], *, seed: int, support: int | None = None, development: bool = True
) -> Subsets:
  """Random subsets of a benchmark's training examples, of the paper's sizes; they do not depend on the examples' order.

  Args:
    name: of the benchmark.
    examples: of its support split.
    seed: of the draw.
    support: support examples, of each class if the benchmark is one of classification; None: as many as the paper has.
    development: whether those of design decisions are drawn as well; the support set is the same either way.

  Raises:
    UserError: there are not enough.
  """
  task = TASKS[name]
  size = support or (SUPPORT_OF_CLASS if task.by_class else SUPPORT)
  sizes = [size, size, task.development_queries] if development and task.development_queries else [size]
  ids = [example.id for example in examples]
  if task.by_class:
    places = drawn_by_class(ids, [example.label for example in examples], sum(sizes), seed=seed)
  else:
    places = drawn(ids, sum(sizes), seed=seed)
  groups = [places[start : start + sum(sizes)] for start in range(0, len(places), sum(sizes))]
  ends = [0, *itertools.accumulate(sizes)]
  return Subsets(
    *(
      tuple(examples[place] for group in groups for place in group[start:end])
      for start, end in itertools.pairwise(ends)
    )
  )
