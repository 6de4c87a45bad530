"""What a benchmark's reader makes of a data set."""

import dataclasses

from flamingo_jax.evaluation.prompts import Medium


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
  """What RareAct says of a clip: the action it was annotated for, and how."""

  verb: str
  noun: str
  video: str
  annotation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One picture or film with a question, as far as its data set has these.

  Attributes:
    id: unique in its split.
    medium: what is shown.
    references: what was answered: captions, annotators' answers; empty in splits whose answers are kept back.
    question: as the data set writes it.
    caption: of VisDial: what is known of the picture before the dialogue.
    history: of VisDial: questions and answers before this question.
    written: of HatefulMemes: the text in the picture.
    options: the candidates of close-ended tasks.
    label: place of the right one among them; None: kept back.
    relevance: of VisDial: of each candidate.
    kind: of NextQA: the type of question.
    clip: of RareAct.
  """

  id: str
  medium: Medium
  references: tuple[str, ...] = ()
  question: str = ""
  caption: str = ""
  history: tuple[tuple[str, str], ...] = ()
  written: str = ""
  options: tuple[str, ...] = ()
  label: int | None = None
  relevance: tuple[float, ...] = ()
  kind: str = ""
  clip: Clip | None = None


@dataclasses.dataclass(frozen=True)
class Split:
  """A part of a data set.

  Attributes:
    examples: in the order of the annotations.
    absent: ids of examples left out because their film is not there. Films vanish from YouTube: for data sets of such
      the paper too evaluated what there still was. Elsewhere a missing file is an error.
    films_vanish: whether this is such a data set, of which films that cannot be decoded are left out too.
  """

  examples: tuple[Example, ...]
  absent: tuple[str, ...] = ()
  films_vanish: bool = False
