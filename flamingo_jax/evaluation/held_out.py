"""Held-out loss, and whether it comes from looking: the same text with its own media, with others', with none."""

import collections
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.language.decoder import gated_layers
from flamingo_jax.models.parameters import Parameters
from flamingo_jax.parallel.mesh import global_batch
from flamingo_jax.training.objectives import Objective

HostBatch = dict[str, np.ndarray]
Batches = dict[str, list[HostBatch]]  # by stream


def no_media(batch: HostBatch) -> HostBatch:
  """The same text, seeing nothing."""
  return batch | {
    "media_mask": np.zeros_like(batch["media_mask"]),
    "media_index": np.full_like(batch["media_index"], -1),
  }


def other_media(batch: HostBatch) -> HostBatch:
  """The same text, with each medium replaced by one of another example of the batch.

  Media are shifted cyclically, past the example with the most of them, so that none gets a medium of its own. Where one
  example holds more than half of all media that cannot be; its surplus media then are masked.
  """
  rows, slots = np.nonzero(batch["media_mask"].any(axis=-1))
  most = int(np.bincount(rows).max()) if len(rows) else 0
  sources = np.roll(np.arange(len(rows)), most)
  media, mask = np.zeros_like(batch["media"]), np.zeros_like(batch["media_mask"])
  foreign = rows[sources] != rows
  to, source = (rows[foreign], slots[foreign]), (rows[sources][foreign], slots[sources][foreign])
  media[to], mask[to] = batch["media"][source], batch["media_mask"][source]
  return batch | {"media": media, "media_mask": mask}


def plain_text(batch: HostBatch, vocabulary: int) -> HostBatch:
  """The same text as the language model alone would read it: no markers, no `<EOC>`, no media.

  Rows close up over the tokens taken out, so that the next ordinary token follows directly.
  """
  ordinary = (batch["tokens"] < vocabulary) & (batch["segments"] > 0)
  order = np.argsort(~ordinary, axis=1, kind="stable")
  kept = {
    name: np.where(np.take_along_axis(ordinary, order, 1), np.take_along_axis(batch[name], order, 1), 0)
    for name in ("tokens", "loss_weights", "segments")
  }
  return no_media(batch) | kept


class LossMeter:
  """Means of an objective's loss and its parts over batches, with one compiled function for each batch shape."""

  def __init__(self, objective: Objective):
    self.loss = jax.jit(lambda parameters, batch: loss_sums(objective, parameters, batch))

  def __call__(self, parameters: Parameters, batches: list[HostBatch], mesh: Mesh) -> dict[str, float]:
    totals: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    for batch in batches:
      for name, pair in jax.device_get(self.loss(parameters, global_batch(batch, mesh))).items():
        totals[name] += np.asarray(pair, np.float64)
    return {name: float(total / weight) if weight else 0.0 for name, (total, weight) in totals.items()}


def loss_sums(objective: Objective, parameters: Parameters, batch: dict[str, jax.Array]):
  loss = objective.loss(parameters, batch)
  return {"loss": (loss.total, loss.weight)} | loss.parts


def evaluate_language(objective: Objective, held_out: Batches) -> Callable[[Parameters, Mesh, bool], dict]:
  """Held-out loss of each stream, in nats a token, and what it is the logarithm of: the perplexity.

  The baseline has no `text_loss`, which would stand for a frozen language model's.
  """
  meter = LossMeter(objective)

  def evaluate(parameters: Parameters, mesh: Mesh, baseline: bool) -> dict[str, float]:
    metrics = {}
    for name, batches in held_out.items():
      means = meter(parameters, batches, mesh)
      metrics |= {f"heldout/{part}/{name}": means[part] for part in (("loss",) if baseline else means)}
      with np.errstate(over="ignore"):  # of a run that diverges it may be infinite
        metrics[f"heldout/perplexity/{name}"] = float(np.exp(means["loss"]))
    return metrics

  return evaluate


def evaluate_flamingo(
  objective: Objective, model: FlamingoConfig, held_out: Batches, seen: Batches
) -> Callable[[Parameters, Mesh, bool], dict]:
  """Held-out and training loss, visual gain and gates.

  The baseline, taken at step 0 when the gates are shut, is the frozen language model's own loss on the same text
  without markers. `visual_gain/<stream>/other_media` is the held-out loss with the right media minus the loss with the
  media of other examples, `.../no_media` minus the loss with none: below zero, the model uses what it sees. Baseline
  and gain are of ordinary text tokens; `<EOC>` is left out.

  Args:
    objective: the one being trained.
    model: its configuration.
    held_out: batches of text that is not trained on.
    seen: a few training batches, always the same ones.
  """
  meter = LossMeter(objective)

  def baseline_text_loss(parameters: Parameters, batches: list[HostBatch], mesh: Mesh) -> float:
    plain = [plain_text(batch, model.language.vocabulary) for batch in batches]
    return meter(parameters, plain, mesh)["text_loss"]

  def evaluate(parameters: Parameters, mesh: Mesh, baseline: bool) -> dict[str, float]:
    splits = {"train": seen, "heldout": held_out}
    if baseline:
      return {
        f"{split}/text_loss/{name}": baseline_text_loss(parameters, batches, mesh)
        for split, streams in splits.items()
        for name, batches in streams.items()
      }
    metrics = {
      f"{split}/{part}/{name}": value
      for split, streams in splits.items()
      for name, batches in streams.items()
      for part, value in meter(parameters, batches, mesh).items()
    }
    for name, batches in held_out.items():
      for control, change in (("other_media", other_media), ("no_media", no_media)):
        changed = meter(parameters, [change(batch) for batch in batches], mesh)
        metrics[f"visual_gain/{name}/{control}"] = metrics[f"heldout/text_loss/{name}"] - changed["text_loss"]
    return metrics | gates(parameters, model)

  return evaluate


def gates(parameters: Parameters, model: FlamingoConfig) -> dict[str, float]:
  """tanh of both gates of each gated layer, by the language layer it stands before (paper, figure 6).

  Where every channel has a gate of its own, the mean of how far they are open, either way.
  """
  if not model.cross_attention.gated:
    return {}
  layers = gated_layers(model.language.layers, model.cross_attention)
  metrics = {}
  for kind in ("attention", "feed_forward"):
    name = f"gated_cross_attention/{kind}_gate"
    paths = [path for path in (f"language/groups/{name}", f"language/tail/{name}") if path in parameters]
    stacks = [parameters[path] for path in paths]
    values = np.tanh(np.concatenate([np.atleast_1d(jax.device_get(stack)) for stack in stacks]))
    if model.cross_attention.vector_gates:
      values = np.abs(values).reshape(len(layers), -1).mean(axis=1)
    metrics |= {f"gates/{kind}/{layer}": float(value) for layer, value in zip(layers, values, strict=True)}
  return metrics
