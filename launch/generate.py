"""`flamingo generate`: a prompt, pictures, and what a trained model writes after them."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from data_pipelines.prompts import prompt_batch
from data_pipelines.tokenizer import Tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.generate import generate
from flamingo_jax.inference.sampling import GREEDY, Sampling
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.training.checkpoints import check_frozen, load_trainable
from launch.experiment import Experiment, read_experiment


def open_run(workdir: str | pathlib.Path) -> Experiment:
  """The experiment that a work directory belongs to.

  Raises:
    UserError: it is not a work directory.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise UserError(f"{path}: missing. Give the work directory of a `flamingo train` run.")
  try:
    return read_experiment(json.loads(path.read_text()), str(path))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}). Give the work directory of a `flamingo train` run.") from error


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's newest checkpoint, made whole.

  Attributes:
    parameters: all of them as the model takes them, host arrays by path; the frozen ones in `frozen_dtype`.
    step: updates done.
    hashes: of the frozen parts.
    trained: paths of those parameters that are not frozen.
  """

  parameters: dict[str, np.ndarray]
  step: int
  hashes: dict[str, str]
  trained: tuple[str, ...]


def read_trained(experiment: Experiment, workdir: str | pathlib.Path) -> Trained:
  """The newest checkpoint of a run with its frozen parts.

  Raises:
    UserError: there is no checkpoint, or the frozen parts have changed since.
  """
  trainable, step, hashes = load_trainable(workdir)
  frozen = dataclasses.replace(experiment, start="").frozen()  # what it began with is trained, and in the checkpoint
  check_frozen(pathlib.Path(workdir), hashes, frozen.hashes)
  dtype = experiment.training.frozen_dtype
  kept = {path: array.astype(dtype, copy=False) for path, array in frozen.parameters.items()}
  return Trained({**trainable, **kept}, step, hashes, tuple(trainable))


def trained_parameters(experiment: Experiment, workdir: str | pathlib.Path) -> Parameters:
  """All parameters of a run's newest checkpoint, on the default device; raises as `read_trained` does."""
  return jax.device_put(read_trained(experiment, workdir).parameters)


def writing(temperature: float, top_k: int, top_p: float, beams: int, length_penalty: float) -> Sampling | Beams:
  """How to write: greedily, by draws, or by beam search.

  Raises:
    UserError: settings out of range, or draws and beams together.
  """
  sampling, search = Sampling(temperature, top_k, top_p), Beams(beams, length_penalty)
  if beams == 1:
    return sampling
  if sampling != GREEDY:
    raise UserError(
      f"--beams is {beams}, and a beam search draws nothing. Leave out --temperature, --top-k and --top-p."
    )
  return search


def continue_prompt(
  workdir: str, prompt: str, images: list[str], new_tokens: int, how: Sampling | Beams = GREEDY, seed: int = 0
) -> str:
  """The text that the model of a work directory writes after a prompt."""
  experiment = open_run(workdir)
  if not isinstance(experiment.model, FlamingoConfig):
    raise UserError(f"{workdir}: holds a {experiment.name} run; text comes from a flamingo one.")
  if isinstance(experiment.model.vision, FeaturesConfig):
    raise UserError(f"{workdir}: was trained on features and has no vision encoder; it cannot see pictures.")
  if new_tokens < 1:
    raise UserError(f"--new-tokens is {new_tokens}; it is at least 1.")
  tokenizer = experiment.tokenizer()
  batch = prompt_batch(
    prompt,
    images,
    tokenizer,
    image_size=experiment.model.vision.image_size,
    frames=experiment.model.frames,
    frames_per_second=video_rate(experiment),
  )
  parameters = trained_parameters(experiment, workdir)
  (tokens,) = write(experiment.model, parameters, batch, tokenizer, new_tokens, how, seed)
  return tokenizer.decode(tokens).strip()


def video_rate(experiment: Experiment) -> float:
  """Frames a second as the run's videos had them; 1 where it read none (paper, appendix A.3.2)."""
  rates = [config.frames_per_second for config in experiment.stream_configs.values() if config.medium == "video"]
  return rates[0] if rates else 1.0


def write(
  model: FlamingoConfig,
  parameters: Parameters,
  batch: dict,
  tokenizer: Tokenizer,
  new_tokens: int,
  how: Sampling | Beams = GREEDY,
  seed: int = 0,
) -> list[list[int]]:
  """Tokens of each row, up to `<EOC>` or the end of the document."""
  stop, forbidden = (tokenizer.end_of_chunk, tokenizer.eos), (tokenizer.image,)
  limits = dict(new_tokens=new_tokens, stop=stop, forbidden=forbidden)
  return generate(model, parameters, batch, how=how, key=jax.random.key(seed), **limits)
