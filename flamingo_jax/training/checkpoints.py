"""Orbax checkpoints of the trainable part: parameters, optimizer state, step, and what they were trained with."""

import pathlib

import jax
import orbax.checkpoint as ocp

from flamingo_jax.errors import UserError
from flamingo_jax.training.step import State


def open_manager(directory: pathlib.Path, **options) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers=dict(
      trainable=ocp.StandardCheckpointHandler(),
      optimizer=ocp.StandardCheckpointHandler(),
      about=ocp.JsonCheckpointHandler(),
    ),
  )


class Checkpoints:
  """The checkpoints of one work directory; saving is asynchronous and atomic."""

  def __init__(self, workdir: pathlib.Path, *, keep: int = 1):
    self.directory = (workdir / "checkpoints").absolute()
    self.manager = open_manager(self.directory, max_to_keep=keep, enable_async_checkpointing=True)

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self.manager.latest_step()

  def save(self, step: int, state: State, frozen_hashes: dict[str, str]) -> None:
    self.manager.save(
      step,
      args=ocp.args.Composite(
        trainable=ocp.args.StandardSave(state.trainable),
        optimizer=ocp.args.StandardSave(state.optimizer_state),
        about=ocp.args.JsonSave(dict(step=step, frozen=frozen_hashes)),
      ),
    )

  def restore(self, step: int, like: State, frozen_hashes: dict[str, str]) -> State:
    """The state of a step, laid out as `like` is.

    Raises:
      UserError: it was trained with other frozen weights.
    """
    args = ocp.args.Composite(
      trainable=ocp.args.StandardRestore(shapes_of(like.trainable)),
      optimizer=ocp.args.StandardRestore(shapes_of(like.optimizer_state)),
      about=ocp.args.JsonRestore(),
    )
    restored = self.manager.restore(step, args=args)
    check_frozen(self.directory / str(step), restored.about["frozen"], frozen_hashes)
    count = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), like.step.sharding)
    return State(count, restored.trainable, restored.optimizer)

  def close(self) -> None:
    """Waits for the last save."""
    self.manager.wait_until_finished()
    self.manager.close()


def shapes_of(tree):
  return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree)


def check_frozen(checkpoint: pathlib.Path, saved: dict[str, str], given: dict[str, str]) -> None:
  """Raises UserError when a checkpoint's frozen parts are not the ones at hand."""
  faults = [
    f"  {part}: trained with {saved.get(part, 'none')[:12]}, found {given.get(part, 'none')[:12]}"
    for part in sorted(saved.keys() | given.keys())
    if saved.get(part) != given.get(part)
  ]
  if faults:
    raise UserError(f"{checkpoint}: the frozen weights are not those it was trained with.\n" + "\n".join(faults))


def load_trainable(workdir: str | pathlib.Path) -> tuple[dict, int, dict[str, str]]:
  """The newest trained parameters of a work directory as host arrays by path, their step, and the frozen hashes.

  Raises:
    UserError: there is no complete checkpoint.
  """
  directory = (pathlib.Path(workdir) / "checkpoints").absolute()
  if not directory.is_dir():
    raise UserError(f"{workdir}: no checkpoints there. Give the work directory of a finished `flamingo train`.")
  with open_manager(directory, read_only=True) as manager:
    step = manager.latest_step()
    if step is None:
      raise UserError(f"{directory}: no complete checkpoint yet. Let the run reach its first one.")
    # Whatever mesh it was saved on, one device is enough to read it.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = manager.item_metadata(step)["trainable"]
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for path, leaf in saved.items()}
    args = ocp.args.Composite(trainable=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
  return jax.device_get(restored.trainable), step, restored.about["frozen"]
