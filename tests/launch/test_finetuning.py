"""Fine-tuning (paper, appendix B.2.2): a run that begins with another's parts and trains the vision encoder too."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from finished import write_work
from PIL import Image

from data_pipelines.schema import Example
from data_pipelines.shards import write_shards
from flamingo_jax.errors import UserError
from flamingo_jax.interop.model_folder import load_model
from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.metrics import read_metrics
from flamingo_jax.training.step import is_trainable
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.exporting import export_model
from launch.generate import open_run, read_trained
from launch.train import run

RATE, STEPS, SIZE, LARGER = 1e-3, 2, 32, 48
TABLE = "vision/position_embeddings"


pytestmark = pytest.mark.usefixtures("few_optimizations")


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_gguf) -> pathlib.Path:
  """A finished run in `run`, and in `tuned` one that went on from there, at a larger size and under a prompt."""
  folder = write_work(tmp_path_factory.mktemp("work"), write_gguf)
  random = np.random.default_rng(0)
  pictures = []
  for pixels in random.integers(0, 256, (4, 40, 50, 3), np.uint8):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    pictures.append(file.getvalue())
  for split in ("train", "heldout"):
    pairs = [Example(("", "ABBA" * (number + 1)), (each,), "s/x", "CC0-1.0") for number, each in enumerate(pictures)]
    write_shards(folder / "captions" / split, pairs, {})
  run(tuning(folder), folder / "tuned")
  return folder


def tuning(work: pathlib.Path, *, size: int = LARGER, start: str = "run", vision: str = "vision") -> Experiment:
  """An experiment as configs/finetune_quickstart.py makes it of the quickstart's."""
  config = json.loads((work / "run" / "config.json").read_text())
  config["start"] = str(work / start)
  config["frozen"]["vision"] = str(work / vision)
  config["trainable"] = [*config["trainable"], "^vision/"]
  config["model"]["vision"]["image_size"] = size
  config["optimizer"] |= dict(learning_rate=RATE, warmup_steps=0, schedule="exponential")
  config |= dict(total_steps=STEPS, evaluate_every=STEPS)
  config["streams"]["captions"] |= dict(prompt="DEED", batch_size=4, length=24)
  return read_experiment(config, "test")


def test_every_trained_parameter_goes_on_from_where_it_was_and_the_rate_falls_by_ten(work):
  """Adam moves a number by about its rate in each of the first steps; fresh parameters would be far away."""
  begun, _, _ = load_trainable(work / "run")
  tower, _ = load_model(work / "vision")
  expected = begun | {f"vision/{path}": array for path, array in tower.items()}
  tuned, step, _ = load_trainable(work / "tuned")
  assert step == STEPS and tuned.keys() == expected.keys()
  for path in tuned.keys() - {TABLE}:
    moved = np.abs(tuned[path] - expected[path])
    assert 0 < moved.max() < 2.5 * RATE, path
  rates = [line["learning_rate"] for line in read_metrics(work / "tuned")]
  np.testing.assert_allclose(rates, [RATE, RATE * 0.1 ** (1 / STEPS)], rtol=1e-5)


def test_positions_are_stretched_to_the_larger_pictures_and_trained(work):
  """From 4 x 4 to 6 x 6: the mean stays about where it was, and corners resemble corners."""
  before = load_model(work / "vision")[0]["position_embeddings"].reshape(4, 4, -1)
  begun = tuning(work).frozen().start[TABLE]
  after = load_trainable(work / "tuned")[0][TABLE]
  assert begun.shape == after.shape == (36, before.shape[-1])
  for corner in (0, -1):
    assert np.corrcoef(begun.reshape(6, 6, -1)[corner, corner], before[corner, corner])[0, 1] > 0.8
  assert 0 < np.abs(after - begun).max() < 2.5 * RATE


def test_the_language_model_stays_bit_for_bit(work):
  stays = {path for path in load_trainable(work / "tuned")[0] if path.startswith("language/")}
  assert all("/gated_cross_attention/" in path or "extra_" in path for path in stays)
  before = read_trained(open_run(work / "run"), work / "run").parameters
  after = read_trained(open_run(work / "tuned"), work / "tuned").parameters
  frozen = {path for path in before if path.startswith("language/")} - stays
  assert frozen and all(np.array_equal(before[path], after[path]) for path in frozen)


def test_a_finished_run_is_whole_without_the_one_that_it_began_with(work):
  with_start = read_trained(open_run(work / "tuned"), work / "tuned").parameters
  (work / "run").rename(work / "away")
  try:
    alone = read_trained(open_run(work / "tuned"), work / "tuned").parameters
  finally:
    (work / "away").rename(work / "run")
  assert alone.keys() == with_start.keys()
  assert all(np.array_equal(alone[path], array) for path, array in with_start.items())


@pytest.mark.parametrize("form", ["run", "folder"])
def test_a_tuned_vision_encoder_goes_on_too_at_any_size(work, form, tmp_path):
  """It is the start's, not the frozen one's, whether it comes from a run or from a model folder."""
  start = work / "tuned"
  if form == "folder":
    start = export_model(str(work / "tuned"), "safetensors", str(tmp_path / "folder"))
  tuned, _, _ = load_trainable(work / "tuned")
  for size in (LARGER, 64):
    experiment = tuning(work, start=str(start), size=size)
    begun = experiment.frozen().start
    assert begun.keys() == {path for path in tuned if is_trainable(path, experiment.training.trainable)}
    assert all(np.array_equal(begun[path], tuned[path]) for path in begun.keys() - {TABLE})
    assert begun[TABLE].shape == ((size // 8) ** 2, tuned[TABLE].shape[1])
    assert np.array_equal(begun[TABLE], tuned[TABLE]) == (size == LARGER)


def test_a_start_whose_trained_vision_encoder_is_another_is_refused(work):
  experiment = tuning(work, start="tuned")
  config = experiment.raw
  config["model"]["vision"] |= dict(pre_norm=True)
  config["frozen"]["vision"] = "random"
  with pytest.raises(UserError, match=r"tuned: does not fit the config:\n  model\.vision\.pre_norm is True"):
    read_experiment(config, "test").frozen()


def test_a_start_of_another_kind_is_refused(work, tmp_path):
  vision = shutil.copytree(work / "run", tmp_path / "vision")
  config = json.loads((vision / "config.json").read_text())
  (vision / "config.json").write_text(json.dumps(config | dict(objective="contrastive")))
  with pytest.raises(
    UserError, match=f"start: {vision} holds a contrastive run; a flamingo run goes on from a flamingo"
  ):
    tuning(work, start=str(vision)).frozen()
  for start, found in (("run", "holds a flamingo run"), ("language", "is a model folder")):
    config = load_config("configs/contrastive_vit_l14.py", {"start": str(work / start)})
    with pytest.raises(UserError, match=f"start: {work / start} {found}; a contrastive run goes on from a contrastive"):
      read_experiment(config, "test").frozen()


def test_a_start_of_which_nothing_is_trained_is_refused(work):
  config = tuning(work).raw | dict(trainable=["^vision/"])
  with pytest.raises(
    UserError, match=r"start: .*run has nothing of what is trained here; trainable is \('\^vision/',\)"
  ):
    read_experiment(config, "test").frozen()


def test_a_start_that_knows_other_tokens_is_refused(work, tmp_path):
  config = tuning(work).raw
  known, ids = config["tokenizer"]["path"], config["tokenizer"]
  tokenizer = json.loads((work / "language" / "tokenizer.json").read_text())
  tokenizer["model"]["merges"].pop()
  (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
  with pytest.raises(
    UserError, match=rf"run: was trained on the tokens of {known}; tokenizer\.path, {tmp_path}, makes"
  ):
    read_experiment(config | dict(tokenizer=ids | dict(path=str(tmp_path))), "test").frozen()
  with pytest.raises(UserError, match=rf"run: was trained with tokenizer\.eos={ids['eos']}; here it is 3"):
    read_experiment(config | dict(tokenizer=ids | dict(eos=3)), "test").frozen()
