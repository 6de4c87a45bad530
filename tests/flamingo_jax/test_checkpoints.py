import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.training.checkpoints import (
  About,
  CheckpointConfig,
  Checkpoints,
  check_checkpoints,
  differing_sums,
  load_trainable,
)
from flamingo_jax.training.guards import Guard
from flamingo_jax.training.optimizer import OptimizerConfig, make_optimizer
from flamingo_jax.training.rewind import Rewind
from flamingo_jax.training.step import State
from flamingo_jax.training.sums import array_sums

ROOT = pathlib.Path(__file__).parent.parent.parent
HASHES = {"vision": "a" * 64, "language": "b" * 64}
ABOUT = About(HASHES, {"pages": "d" * 64, "captions": "e" * 64}, (), {"seed": 0})
TWO = CheckpointConfig(keep=2)
SHAPES = {"resampler/latents": (300, 40), "language/groups/gated_cross_attention/attention_gate": (2,), "gate": ()}


def make_state(seed: int, step: int = 0) -> State:
  """Random parameters and a random optimizer state of their shapes."""
  random = np.random.default_rng(seed)

  def noise(shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)

  trainable = {path: noise(shape) for path, shape in SHAPES.items()}
  slots = make_optimizer(OptimizerConfig(), lambda update: 1e-4).init(trainable)
  slots = jax.tree.map(lambda leaf: noise(leaf.shape) if leaf.dtype == jnp.float32 else leaf + step, slots)
  guard = Guard(jnp.int32(0), jnp.int32(seed), noise(()), noise(()))
  return State(jnp.asarray(step, jnp.int32), trainable, slots, guard)


def equal(found: State, expected: State) -> bool:
  same = jax.tree.structure(found) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  return same and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A work directory with the checkpoints of steps 10, 20 and 30, of which two are kept."""
  workdir = tmp_path_factory.mktemp("run")
  checkpoints = Checkpoints(workdir, TWO)
  for step in (10, 20, 30):
    checkpoints.save(step, make_state(step, step), ABOUT)
  checkpoints.close()
  return types.SimpleNamespace(workdir=workdir, folder=workdir / "checkpoints")


@pytest.fixture
def copied(saved, tmp_path):
  """A copy of it, to be damaged; and a function that restores from there, with what it says."""
  shutil.copytree(saved.workdir, tmp_path / "run")

  def restore(about: About = ABOUT, allowed: tuple[str, ...] = ()):
    opened, said = Checkpoints(tmp_path / "run", TWO), []
    try:
      step, state = opened.restore_newest(make_state(0), about, allowed, said.append)
    finally:
      opened.close()
    return step, state, said

  return types.SimpleNamespace(workdir=tmp_path / "run", folder=tmp_path / "run" / "checkpoints", restore=restore)


@pytest.fixture
def checkpoints(saved):
  opened = Checkpoints(saved.workdir, TWO)
  yield opened
  opened.close()


def test_what_is_restored_is_what_was_saved(checkpoints, copied):
  assert equal(checkpoints.read(20, make_state(0))[0], make_state(20, 20))
  assert checkpoints.about(20) == ABOUT
  step, state, said = copied.restore()
  assert (step, said) == (30, [])
  assert equal(state, make_state(30, 30))


def test_a_run_without_checkpoints_begins_as_it_is_given(tmp_path):
  opened, like = Checkpoints(tmp_path), make_state(1)
  assert opened.restore_newest(like, ABOUT, (), print) == (0, like)
  opened.close()


def test_as_many_checkpoints_stay_as_are_to_be_kept(saved, checkpoints):
  assert sorted(path.name for path in saved.folder.iterdir()) == ["20", "30"]
  assert checkpoints.steps() == [20, 30]


def kept(workdir, config: CheckpointConfig, losses: dict[int, float]) -> list[int]:
  """The checkpoints that are left when all were saved, with a held-out loss each."""
  opened = Checkpoints(workdir, config)
  for step, loss in losses.items():
    opened.save(step, make_state(step, step), ABOUT, {"loss": 9.0, "heldout/loss": loss})
  opened.close()
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


LOSSES = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: 6.0}


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    (CheckpointConfig(keep=3), [4, 5, 6]),
    (CheckpointConfig(keep=1, keep_every=2), [2, 4, 6]),
    (CheckpointConfig(keep=1, best="heldout/loss"), [2, 6]),
    (CheckpointConfig(keep=1, best="heldout/loss", keep_best=2), [2, 4, 6]),
    (CheckpointConfig(keep=2, best="heldout/loss", best_mode="max"), [5, 6]),
    (CheckpointConfig(keep=1, keep_every=3, best="heldout/loss"), [2, 3, 6]),
  ],
)
def test_the_newest_the_periodic_and_the_best_are_kept(tmp_path, config, expected):
  assert kept(tmp_path, config, LOSSES) == expected


@pytest.mark.parametrize(
  ("losses", "mode", "best"),
  [
    (LOSSES | {9: 2.5}, "min", 2),
    (LOSSES | {9: 2.5}, "max", 6),
    ({1: 0.5, 2: 0.9, 3: np.nan, 4: 0.8, 9: 0.7}, "min", 1),
    ({1: 0.9, 2: 0.5, 3: np.nan, 4: np.inf, 9: 0.3}, "max", 1),
  ],
)
def test_the_best_stays_over_starts_and_beside_losses_that_are_not_finite(tmp_path, losses, mode, best):
  config = CheckpointConfig(keep=1, best="heldout/loss", best_mode=mode)
  for step, loss in losses.items():
    found = kept(tmp_path, config, {step: loss})  # each a start of its own
  assert found == [best, 9]


def test_a_stop_between_evaluations_is_saved_without_a_metric(tmp_path):
  config = CheckpointConfig(every=3, keep=1, best="heldout/loss")
  opened = Checkpoints(tmp_path, config)
  opened.save(3, make_state(3, 3), ABOUT, {"heldout/loss": 1.0})
  opened.save(5, make_state(5, 5), ABOUT, {"loss": 0.1})
  opened.close()
  assert kept(tmp_path, config, {6: 2.0}) == [3, 6]


def test_the_metric_to_judge_by_has_to_be_there(tmp_path):
  opened = Checkpoints(tmp_path, CheckpointConfig(best="heldout/los", every=3))
  with pytest.raises(UserError, match=r"checkpoint.best is 'heldout/los', which step 3 does not have. It has: loss."):
    opened.save(3, make_state(3), ABOUT, {"loss": 1.0})
  opened.close()


def test_settings_that_keep_nothing_are_faults():
  assert check_checkpoints(CheckpointConfig(), 1000) == []
  assert len(check_checkpoints(CheckpointConfig(every=0, keep=0, keep_best=0, best_mode="least"), 1)) == 4
  assert "only multiples of checkpoint.every=4" in check_checkpoints(CheckpointConfig(every=4, keep_every=6), 1)[0]
  best = CheckpointConfig(every=4, best="heldout/loss/pages")
  assert check_checkpoints(best, 2) == []
  assert "let checkpoint.every, 4, be a multiple" in check_checkpoints(best, 8)[0]


def files_of(folder) -> list[pathlib.Path]:
  return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_no_flipped_bit_is_restored_as_if_it_were_right(copied):
  """Of every file of a checkpoint, one bit somewhere, and many of the largest, which holds numbers alone: what comes
  back is right, or the checkpoint before it."""
  random, fallen_back = np.random.default_rng(0), 0
  files = files_of(copied.folder / "30")
  largest = max(files, key=lambda path: path.stat().st_size)
  assert largest.stat().st_size > 40_000
  for path in files + [largest] * 20:
    before = path.read_bytes()
    place = random.integers(len(before))
    path.write_bytes(before[:place] + bytes([before[place] ^ 16]) + before[place + 1 :])
    step, state, said = copied.restore()
    assert equal(state, make_state(step, step))
    if step == 20:
      fallen_back += 1
      assert "30 cannot be read" in said[0] and "checkpoints-unreadable" in said[0]
      (aside,) = (copied.workdir / "checkpoints-unreadable").iterdir()
      aside.rename(copied.folder / "30")
    path.write_bytes(before)
  assert fallen_back > 25


def test_an_array_without_a_sum_is_none_that_was_saved():
  items = dict(trainable={"gate": jnp.float32(0.5), "other": jnp.float32(2)})
  sums = array_sums(items)
  assert differing_sums(items, sums) == differing_sums(items, {}) == ""  # none of any: it was saved before there were
  del sums["trainable['other']"]
  assert differing_sums(items, sums).endswith("such as trainable['other']")


@pytest.mark.parametrize("lost", ["trainable/manifest.ocdbt", "optimizer/d", "about/metadata", "guard"])
def test_a_checkpoint_without_a_part_falls_back_loudly_and_is_kept(copied, lost):
  path = copied.folder / "30" / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  left = len(files_of(copied.folder / "30"))
  step, state, said = copied.restore()
  assert step == 20 and equal(state, make_state(20, 20))
  assert len(said) == 1
  assert len(files_of(copied.workdir / "checkpoints-unreadable" / "30")) == left
  assert [path.name for path in copied.folder.iterdir()] == ["20"]


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(copied):
  for step in (20, 30):
    (copied.folder / str(step) / "about" / "metadata").write_text("{")
  with pytest.raises(UserError, match=r"No checkpoint of .* can be read"):
    copied.restore()
  assert sorted(path.name for path in copied.folder.iterdir()) == ["20", "30"]


def test_other_records_are_refused_unless_somebody_insists(copied):
  other = dataclasses.replace(ABOUT, data=ABOUT.data | {"pages": "f" * 64})
  with pytest.raises(UserError) as error:
    copied.restore(other)
  _, fault, advice = str(error.value).splitlines()
  assert fault == "  data.pages: trained with dddddddddddd, found ffffffffffff"
  assert "--allow-changed=data.pages" in advice
  for allowed in (("data",), ("data.pages",)):
    assert copied.restore(other, allowed)[0] == 30
  with pytest.raises(UserError, match=r"data\.pages"):
    copied.restore(other, ("data.captions", "frozen"))


def test_a_rewind_sets_aside_what_was_saved_after_it(copied):
  about = dataclasses.replace(ABOUT, rewinds=(Rewind(20, 25, 27),))
  opened, said = Checkpoints(copied.workdir, TWO), []
  opened.set_rewound_aside(about.rewinds, said.append)
  assert opened.steps() == [20] and "step 30 is moved to" in said[0]
  step, state = opened.restore_newest(make_state(0), about, (), said.append)
  opened.save(30, make_state(31, 30), about)
  opened.wait()
  opened.set_rewound_aside(about.rewinds, said.append)
  assert opened.steps() == [20, 30]
  opened.close()
  assert step == 20 and equal(state, make_state(20, 20))
  assert [path.name for path in (copied.workdir / "checkpoints-rewound").iterdir()] == ["30"]
  with pytest.raises(UserError, match=r"saved after rewinds that rewinds.json does not name"):
    copied.restore(ABOUT)


def test_a_checkpoint_that_was_not_finished_is_none(saved, tmp_path):
  shutil.copytree(saved.folder, tmp_path / "checkpoints")
  shutil.copytree(saved.folder / "30", tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp")
  _, step, _ = load_trainable(tmp_path)
  opened = Checkpoints(tmp_path, TWO)
  assert (opened.steps(), step) == ([20, 30], 30)
  opened.close()


@pytest.mark.parametrize(
  ("given", "named"),
  [
    ({"vision": "c" * 64, "language": "b" * 64}, "  frozen.vision: trained with aaaaaaaaaaaa, found cccccccccccc"),
    ({"vision": "a" * 64}, "  frozen.language: trained with bbbbbbbbbbbb, found none"),
  ],
)
def test_other_frozen_weights_are_refused_by_name(copied, given, named):
  with pytest.raises(UserError) as error:
    copied.restore(dataclasses.replace(ABOUT, frozen=given))
  first, *faults, _ = str(error.value).splitlines()
  assert first.startswith(f"{copied.folder / '30'}: ")
  assert faults == [named]
  assert sorted(path.name for path in copied.folder.iterdir()) == ["20", "30"]


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
  assert opened.steps() == []
  opened.close()
  with pytest.raises(UserError, match=r"no complete checkpoint yet"):
    load_trainable(tmp_path)


TWO_PROCESSES = """
import pathlib, sys
import jax
address, index, workdir, steps = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
sys.path.insert(0, "tests/flamingo_jax")
from test_checkpoints import ABOUT, TWO, make_state
import numpy as np
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh, place, replicated
from flamingo_jax.training.checkpoints import Checkpoints
from jax.sharding import NamedSharding, PartitionSpec

mesh = make_mesh(MeshConfig(fsdp=2, replica=1))

def spread(array):
  cut = array.ndim and array.shape[0] % 2 == 0
  return place(np.asarray(array), NamedSharding(mesh, PartitionSpec("fsdp")) if cut else replicated(mesh))

checkpoints = Checkpoints(pathlib.Path(workdir), TWO)
for step in map(int, steps.split()):
  checkpoints.save(step, jax.tree.map(spread, make_state(step, step)), ABOUT)
  checkpoints.wait()
if not steps:
  step, state = checkpoints.restore_newest(jax.tree.map(spread, make_state(0)), ABOUT, (), print)
  own = state.trainable["resampler/latents"].addressable_shards[0]
  expected = make_state(20).trainable["resampler/latents"][own.index]
  print("went on from", step, bool((np.asarray(own.data) == expected).all()), checkpoints.steps())
checkpoints.close()
"""


def in_two_processes(workdir: pathlib.Path, steps: str) -> list[str]:
  """What two real processes say that save these steps, or, with none, restore the newest."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  commands = [[sys.executable, "-c", TWO_PROCESSES, address, str(index), str(workdir), steps] for index in range(2)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  pipes = dict(cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  processes = [subprocess.Popen(command, **pipes) for command in commands]
  said = [process.communicate(timeout=300) for process in processes]
  assert all(process.returncode == 0 for process in processes), said[1][1][-3000:]
  return [output for output, _ in said]


def test_what_one_process_alone_cannot_read_none_goes_on_from(tmp_path):
  in_two_processes(tmp_path, "20 30")
  parts = [path for path in files_of(tmp_path / "checkpoints" / "30") if "process_1" in str(path)]
  largest = max(parts, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  for said in in_two_processes(tmp_path, ""):
    assert "30 cannot be read" in said
    assert "went on from 20 True [20]" in said
  assert (tmp_path / "checkpoints-unreadable" / "30").is_dir()
