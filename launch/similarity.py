"""How alike a trained contrastive run finds pictures and texts: a filter of `flamingo data build-pairs`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from data_pipelines.media import decode_image
from data_pipelines.sequences import pair_row
from flamingo_jax.errors import UserError
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.models.parameters import nested
from launch.experiment import Experiment
from launch.generate import open_run, trained_parameters

ROWS = 32  # scored at once; the last ones are padded, so that the model is compiled for one shape


@dataclasses.dataclass(frozen=True)
class ModelScore:
  """Scores by the newest checkpoint of a work directory, which each process that is asked reads once."""

  workdir: str

  def __call__(self, pairs: Sequence[tuple[bytes, str]]) -> list[float]:
    """The cosine between the embeddings of each picture and its text."""
    rows = [list(pairs[at : at + ROWS]) for at in range(0, len(pairs), ROWS)]
    return [score for some in rows for score in _scored(self.workdir, some)]


def similarity_model(workdir: str) -> ModelScore:
  """Raises UserError when `workdir` holds no contrastive run."""
  experiment = open_run(workdir)
  if not isinstance(experiment.model, ContrastiveConfig):
    raise UserError(
      f"--similarity-model: {workdir} holds a {experiment.name} run; similarity comes from a contrastive one."
    )
  return ModelScore(workdir)


def _scored(workdir: str, pairs: list[tuple[bytes, str]]) -> list[float]:
  experiment, cosines = _model(workdir)
  padded = pairs + [pairs[-1]] * (ROWS - len(pairs))
  return [float(cosine) for cosine in np.asarray(cosines(_batch(experiment, padded)))[: len(pairs)]]


@functools.cache
def _model(workdir: str) -> tuple[Experiment, Callable]:
  experiment = open_run(workdir)
  parameters = nested(trained_parameters(experiment, workdir))
  model = Contrastive(experiment.model)

  @jax.jit
  def cosines(batch):
    images, texts, _ = model.apply(parameters, batch)
    return (images * texts).sum(axis=-1)

  return experiment, cosines


def _batch(experiment: Experiment, pairs: list[tuple[bytes, str]]) -> dict[str, np.ndarray]:
  """What `Contrastive` reads, as training has it."""
  tokenizer, length = experiment.tokenizer(), experiment.model.length
  tokens, segments = np.zeros((len(pairs), length), np.int32), np.zeros((len(pairs), length), np.int32)
  for at, (_, text) in enumerate(pairs):
    row = pair_row(tokenizer.encode(text), tokenizer, length).tokens
    tokens[at, : len(row)], segments[at, : len(row)] = row, 1
  size = experiment.model.vision.image_size
  media = np.stack([decode_image(picture, size) for picture, _ in pairs])
  return dict(tokens=tokens, segments=segments, media=media[:, None, None])
