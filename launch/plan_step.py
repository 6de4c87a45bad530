"""`flamingo plan --topology`: the training step of a config, compiled for TPUs that need not be there."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.towers import FeaturesConfig
from flamingo_jax.parallel.mesh import AXES, MeshConfig, check_hosts, make_mesh
from flamingo_jax.planning.estimate import Estimate, argument_bytes, estimate
from flamingo_jax.planning.flops import total
from flamingo_jax.planning.parameters import parameter_counts
from flamingo_jax.planning.search import Candidate, candidates
from flamingo_jax.planning.step import Streams, TooLarge, abstract_arguments, compile_step, lower_step
from flamingo_jax.planning.topologies import Topology, open_topology
from flamingo_jax.training.placing import check_fit, lengths_to_cut
from flamingo_jax.training.step import split_shapes
from launch.config import load_config
from launch.experiment import Experiment, read_experiment
from launch.planning import short

GIB = 2**30


def plan_step(path: str, overrides: dict[str, str], topology: str, steps: int | None, *, as_json: bool) -> None:
  """Compiles the step for a slice and prints what it costs.

  Args:
    path: of the config.
    overrides: of its fields.
    topology: a slice, such as v4:8x12x16.
    steps: of the run whose days are counted; None: the config's.
    as_json: prints one JSON object.

  Raises:
    UserError: config, slice and mesh do not fit together, the step does not fit a chip, or what was compiled cannot be
      read with certainty.
  """
  experiment = read_accumulating(path, overrides)
  slice_ = open_topology(topology)
  check_fit(experiment.objective(), experiment.training, experiment.rows, len(slice_.devices))
  check_hosts(make_mesh(experiment.training.mesh, slice_.devices))
  try:
    found = compiled_estimate(experiment, slice_)
  except TooLarge as error:
    raise UserError(f"{path} on {topology}: {error}.\n{smaller(experiment, slice_, error.needed)}") from error
  steps = steps or experiment.training.total_steps
  counts = parameter_counts(experiment.objective(), experiment.training.trainable)
  if as_json:
    print(json.dumps(dict(config=path, topology=topology, parameters=parameters(counts), **described(found, steps))))
    return
  console = Console(highlight=False)
  for each in (parameter_table(path, counts), memory_table(found), work_table(found), time_table(found)):
    console.print(each)
  together = found.model_flops
  console.print(
    f"{together:.3g} operations a step, {together / found.tokens:.3g} a token. Model FLOPs utilization is "
    f"{100 * found.utilization:.0f}% at most; {steps:,} steps take {found.days(steps):.2g} days at least."
  )


def plan_search(
  path: str, overrides: dict[str, str], topology: str, steps: int | None, tries: int, *, as_json: bool
) -> None:
  """Compiles the settings nearest to a config's and ranks those that fit by tokens a second at the roofline.

  Args:
    path: of the config.
    overrides: of its fields.
    topology: a slice.
    steps: of the run whose days are counted; None: the config's.
    tries: how many settings are compiled.
    as_json: prints one JSON object.

  Raises:
    UserError: config or slice are not as they should be, or nothing near fits.
  """
  experiment = read_accumulating(path, overrides)
  slice_ = open_topology(topology)
  found, refused = [], []
  for candidate in track(chosen(experiment, slice_, tries), "compiling", console=Console(stderr=True)):
    trial = read_experiment(load_config(path, overrides | settings(candidate, experiment)), path)
    try:
      found.append((candidate, compiled_estimate(trial, slice_)))
    except TooLarge as error:
      refused.append((candidate, error))
  found.sort(key=lambda pair: pair[1].tokens / pair[1].step_seconds, reverse=True)
  if as_json:
    steps = steps or experiment.training.total_steps
    ranked = [dict(settings=settings(each, experiment), **described(cost, steps)) for each, cost in found]
    too_large = [dict(settings=settings(each, experiment), needed_bytes=error.needed) for each, error in refused]
    print(json.dumps(dict(config=path, topology=topology, ranked=ranked, too_large=too_large)))
  else:
    Console(highlight=False).print(search_table(path, topology, found, refused))
  if not found:
    raise UserError(f"{path} on {topology}: none of {len(refused)} settings fits a chip; try a larger slice.")


def read_accumulating(path: str, overrides: dict[str, str]) -> Experiment:
  """The experiment of a config. Raises UserError when its updates are not all alike, besides the faults of configs."""
  experiment = read_experiment(load_config(path, overrides), path)
  if experiment.training.mixture != "accumulate":
    raise UserError(
      f"{path}: mixture is {experiment.training.mixture!r}, so that steps differ; a plan is of one that reads all "
      "streams. Plan with --config.mixture=accumulate, or a config of one stream."
    )
  return experiment


def compiled_estimate(experiment: Experiment, slice_: Topology) -> Estimate:
  """Raises TooLarge when the step does not fit a chip."""
  mesh = make_mesh(experiment.training.mesh, slice_.devices)
  objective, training, read = experiment.objective(), experiment.training, streams(experiment)
  trained, _, _ = split_shapes(objective, mesh, training.trainable, training.sharding)
  compiled = compile_step(lower_step(objective, training, read, mesh))
  return estimate(compiled, experiment.model, tuple(trained), read, mesh, slice_.generation)


def streams(experiment: Experiment) -> Streams:
  """The batches of a step (docs/batch.md)."""
  vision = experiment.vision
  has_features = isinstance(vision, FeaturesConfig)
  size = getattr(vision, "image_size", 0)
  frame = (vision.positions, vision.width) if has_features else (size, size, 3)
  shapes = {}
  for name, stream in experiment.stream_configs.items():
    text, media = (stream.batch_size, stream.length), (stream.batch_size, stream.slots, stream.frames)
    shapes[name] = dict(
      tokens=jax.ShapeDtypeStruct(text, jnp.int32),
      segments=jax.ShapeDtypeStruct(text, jnp.int32),
      loss_weights=jax.ShapeDtypeStruct(text, jnp.float32),
      media=jax.ShapeDtypeStruct((*media, *frame), jnp.bfloat16 if has_features else jnp.uint8),
      media_mask=jax.ShapeDtypeStruct(media, jnp.bool_),
      media_index=jax.ShapeDtypeStruct(text, jnp.int32),
    )
  return Streams(shapes, {name: stream.weight for name, stream in experiment.stream_configs.items()})


# Settings beside the config's


def near(experiment: Experiment, slice_: Topology) -> list[Candidate]:
  """All settings that the slice, batches and parameters allow, nearest first."""
  found = candidates(
    dataclasses.asdict(experiment.training.mesh),
    len(slice_.devices),
    getattr(experiment.model, "remat", ""),
    experiment.rows,
    lengths_to_cut(experiment.objective(), experiment.training.sharding),
  )

  @functools.cache
  def lies(*sizes: int) -> bool:
    try:
      make_mesh(MeshConfig(*sizes), slice_.devices)
    except UserError:
      return False
    return True

  return [each for each in found if lies(*(each.mesh[axis] for axis in AXES))]


def chosen(experiment: Experiment, slice_: Topology, tries: int) -> list[Candidate]:
  """The nearest whose parameters, optimizer state and batches alone leave room on a chip.

  Raises:
    UserError: there are none.
  """
  fitting = []
  for candidate in near(experiment, slice_):
    if held_bytes(experiment, candidate, slice_) < slice_.generation.usable_bytes:
      fitting.append(candidate)
    if len(fitting) == tries:
      return fitting
  if not fitting:
    raise UserError(f"{slice_.name}: no mesh of its {len(slice_.devices)} chips holds the parameters and their state.")
  return fitting


def held_bytes(experiment: Experiment, candidate: Candidate, slice_: Topology) -> int:
  """Bytes that a step is handed on each chip."""
  mesh = make_mesh(dataclasses.replace(experiment.training.mesh, **candidate.mesh), slice_.devices)
  configs = {
    name: dataclasses.replace(config, batch_size=candidate.rows[name])
    for name, config in experiment.stream_configs.items()
  }
  trial = dataclasses.replace(experiment, stream_configs=configs)
  return argument_bytes(abstract_arguments(experiment.objective(), experiment.training, streams(trial), mesh))


def smaller(experiment: Experiment, slice_: Topology, needed: int | None) -> str:
  """A line on what would fit, for a step that takes `needed` bytes of a chip and does not.

  What a mesh would take is estimated: activations as they are now, and what the step is handed as it would lie.
  """
  same, *others = (each for each in near(experiment, slice_) if each.rows == experiment.rows)
  others = [each for each in others if each.remat == same.remat]
  now, usable = held_bytes(experiment, same, slice_), slice_.generation.usable_bytes
  activations = max(needed - now, 0) if needed else 0
  sizes = [(each, held_bytes(experiment, each, slice_) + activations) for each in others]
  fitting = [f"{written(each, experiment)} (about {size / GIB:.1f} GiB)" for each, size in sizes if size < usable]
  handed = f"{now / GIB:.1f} GiB are parameters, optimizer state and batches"
  advice = "" if same.remat in ("", "full") else " model.remat=full keeps the fewest activations."
  if fitting:
    return f"{handed}. Nearest meshes that would fit: {'; '.join(fitting[:3])}.{advice}"
  return f"{handed}; no mesh of {len(slice_.devices)} chips makes room. Smaller batches or more chips would.{advice}"


def settings(candidate: Candidate, experiment: Experiment) -> dict[str, str]:
  """A candidate as overrides of the config, those that change nothing left out."""
  mesh = dataclasses.asdict(experiment.training.mesh)
  changes = {f"mesh.{axis}": str(size) for axis, size in candidate.mesh.items() if size != mesh[axis]}
  if candidate.remat != getattr(experiment.model, "remat", ""):
    changes["model.remat"] = candidate.remat
  rows = experiment.rows
  return changes | {
    f"streams.{name}.batch_size": str(count) for name, count in candidate.rows.items() if count != rows[name]
  }


def written(candidate: Candidate, experiment: Experiment) -> str:
  changes = settings(candidate, experiment)
  return " ".join(f"{name}={value}" for name, value in changes.items()) or "as it is"


# What is printed


def parameters(counts: dict[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
  return {part: dict(trained=trained, frozen=frozen) for part, (trained, frozen) in counts.items()}


def described(found: Estimate, steps: int) -> dict:
  """The exact numbers."""
  return dict(
    chips=found.chips,
    mesh=found.mesh,
    hbm_bytes=found.generation.hbm_bytes,
    usable_bytes=found.generation.usable_bytes,
    argument_bytes_per_chip=found.memory.arguments,
    temporary_bytes_per_chip=found.memory.temporaries,
    peak_bytes_per_chip=found.memory.peak,
    model_flops={part: dataclasses.asdict(flops) for part, flops in found.flops.items()},
    model_flops_per_step=found.model_flops,
    model_flops_per_token=found.model_flops / found.tokens,
    compiled_flops_per_chip=found.compiled_flops,
    memory_traffic_bytes_per_chip=found.memory_traffic,
    collective_bytes_per_chip=found.collective_bytes,
    tokens_per_step=found.tokens,
    roofline_seconds=found.seconds,
    step_seconds=found.step_seconds,
    mfu_bound=found.utilization,
    steps=steps,
    days=found.days(steps),
  )


def parameter_table(path: str, counts: dict[str, tuple[int, int]]) -> Table:
  table = columns(f"Parameters of {path}", "part", "trained", "frozen")
  for part, (trained, frozen) in counts.items():
    table.add_row(part, short(trained), short(frozen))
  return table


def memory_table(found: Estimate) -> Table:
  mesh = " ".join(f"{axis}={size}" for axis, size in found.mesh.items())
  table = columns("Memory of a chip", f"{found.chips} chips, {mesh}", "GiB")
  table.add_row("parameters, optimizer state, batches", f"{found.memory.arguments / GIB:.2f}")
  table.add_row("temporaries", f"{found.memory.temporaries / GIB:.2f}", end_section=True)
  table.add_row("peak", f"{found.memory.peak / GIB:.2f}")
  table.add_row("a program may use", f"{found.generation.usable_bytes / GIB:.2f}")
  table.add_row("the chip has", f"{found.generation.hbm_bytes / GIB:.2f}")
  return table


def work_table(found: Estimate) -> Table:
  table = columns(
    "Operations that the model needs", f"{found.tokens:,} tokens", "forward", "activation gradients", "weight gradients"
  )
  for part, flops in found.flops.items():
    table.add_row(part, *(f"{value:.3g}" for value in dataclasses.astuple(flops)))
  table.rows[-1].end_section = True
  together = total(found.flops.values())
  table.add_row("total", *(f"{value:.3g}" for value in dataclasses.astuple(together)))
  return table


def time_table(found: Estimate) -> Table:
  table = columns("Roofline of a step", "", "on each chip", "seconds at least")
  amounts = dict(
    compute=f"{found.compiled_flops / 1e12:.2f} TFLOP",
    memory=f"{found.memory_traffic / GIB:.1f} GiB moved",
    interconnect=exchanged(found.collective_bytes),
  )
  for name, seconds in found.seconds.items():
    table.add_row(name, amounts[name], f"{seconds:.4f}")
  table.rows[-1].end_section = True
  table.add_row("step", "", f"{found.step_seconds:.4f}")
  return table


def exchanged(by_kind: dict[str, int]) -> str:
  return "\n".join(f"{size / GIB:.2f} GiB {kind}" for kind, size in by_kind.items()) or "nothing"


def search_table(
  path: str, topology: str, found: list[tuple[Candidate, Estimate]], refused: list[tuple[Candidate, TooLarge]]
) -> Table:
  table = columns(
    f"{path} on {topology}", "mesh", "remat", "rows", "peak GiB", "step s at least", "MFU at most", "tokens/s at most"
  )
  for candidate, cost in found:
    speed = f"{cost.tokens / cost.step_seconds:,.0f}"
    cells = (f"{cost.memory.peak / GIB:.1f}", f"{cost.step_seconds:.3f}", f"{100 * cost.utilization:.0f}%", speed)
    table.add_row(*candidate_cells(candidate), *cells)
  for candidate, error in refused:
    needed = "does not fit" if error.needed is None else f"needs {error.needed / GIB:.1f}"
    table.add_row(*candidate_cells(candidate), needed, "", "", "")
  return table


def candidate_cells(candidate: Candidate) -> tuple[str, str, str]:
  mesh = " ".join(f"{axis}={size}" for axis, size in candidate.mesh.items())
  return mesh, candidate.remat, " ".join(f"{name}={count}" for name, count in candidate.rows.items())


def columns(title: str, first: str, *others: str) -> Table:
  table = Table(title=title, title_justify="left")
  table.add_column(first)
  for name in others:
    table.add_column(name, justify="right")
  return table
