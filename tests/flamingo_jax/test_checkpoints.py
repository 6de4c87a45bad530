import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.training.checkpoints import Checkpoints, load_trainable
from flamingo_jax.training.optimizer import OptimizerConfig, make_optimizer
from flamingo_jax.training.step import State

HASHES = {"vision": "a" * 64, "language": "b" * 64}
SHAPES = {"resampler/latents": (3, 4), "language/groups/gated_cross_attention/attention_gate": (2,), "gate": ()}


def make_state(seed: int, step: int = 0) -> State:
  """Random parameters and a random optimizer state of their shapes."""
  random = np.random.default_rng(seed)

  def noise(shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)

  trainable = {path: noise(shape) for path, shape in SHAPES.items()}
  slots = make_optimizer(OptimizerConfig(), lambda update: 1e-4).init(trainable)
  slots = jax.tree.map(lambda leaf: noise(leaf.shape) if leaf.dtype == jnp.float32 else leaf + step, slots)
  return State(jnp.asarray(step, jnp.int32), trainable, slots)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A work directory with the checkpoints of steps 10, 20 and 30, of which two are kept."""
  workdir = tmp_path_factory.mktemp("run")
  checkpoints = Checkpoints(workdir, keep=2)
  for step in (10, 20, 30):
    checkpoints.save(step, make_state(step, step), HASHES)
  checkpoints.close()
  return types.SimpleNamespace(workdir=workdir, folder=workdir / "checkpoints")


@pytest.fixture
def checkpoints(saved):
  opened = Checkpoints(saved.workdir, keep=2)
  yield opened
  opened.close()


@pytest.mark.parametrize("step", [20, 30])
def test_what_is_restored_is_what_was_saved(checkpoints, step):
  restored = checkpoints.restore(step, make_state(0), HASHES)
  expected = make_state(step, step)
  assert int(restored.step) == step
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for found, kept in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert (found.dtype, found.shape) == (kept.dtype, kept.shape)
    np.testing.assert_array_equal(found, kept)


def test_as_many_checkpoints_stay_as_are_to_be_kept(saved, checkpoints):
  assert sorted(path.name for path in saved.folder.iterdir()) == ["20", "30"]
  assert checkpoints.latest() == 30


def test_a_checkpoint_that_was_not_finished_is_none(saved, tmp_path):
  shutil.copytree(saved.folder, tmp_path / "checkpoints")
  shutil.copytree(saved.folder / "30", tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp")
  _, step, _ = load_trainable(tmp_path)
  opened = Checkpoints(tmp_path, keep=2)
  assert (opened.latest(), step) == (30, 30)
  opened.close()


@pytest.mark.parametrize(
  ("given", "named", "other"),
  [
    ({"vision": "c" * 64, "language": "b" * 64}, "  vision: trained with aaaaaaaaaaaa, found cccccccccccc", "language"),
    ({"vision": "a" * 64}, "  language: trained with bbbbbbbbbbbb, found none", "vision"),
  ],
)
def test_other_frozen_weights_are_refused_by_name(saved, checkpoints, given, named, other):
  with pytest.raises(UserError) as error:
    checkpoints.restore(30, make_state(0), given)
  first, *faults = str(error.value).splitlines()
  assert first.startswith(f"{saved.folder / '30'}: ")
  assert faults == [named]
  assert other not in str(error.value)


def test_trained_parameters_load_as_host_arrays_by_path(saved):
  parameters, step, hashes = load_trainable(str(saved.workdir))
  assert (step, hashes) == (30, HASHES)
  expected = make_state(30).trainable
  assert parameters.keys() == expected.keys()
  for path, array in parameters.items():
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, expected[path])


def test_a_folder_without_checkpoints_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"no checkpoints there. Give the work directory"):
    load_trainable(tmp_path)


def test_a_run_without_its_first_checkpoint_is_refused(tmp_path):
  opened = Checkpoints(tmp_path)
  assert opened.latest() is None
  opened.close()
  with pytest.raises(UserError, match=r"no complete checkpoint yet"):
    load_trainable(tmp_path)
