"""Training a language model on its own: what is minimized, and what is measured."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from flamingo_jax.evaluation.held_out import evaluate_language
from flamingo_jax.models.flamingo import initialize as initialize_flamingo
from flamingo_jax.models.language.decoder import DecoderConfig, group_layers, ungroup_layers
from flamingo_jax.models.language_model import LanguageModelConfig, initialize
from flamingo_jax.models.parameters import flat
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.training.objectives import language_objective

SIZES = dict(vocabulary=19, width=8, heads=2, key_value_heads=1, feed_forward_width=12, rope_base=50.0, extra_tokens=0)
CONFIG = LanguageModelConfig(DecoderConfig(layers=2, **SIZES), dtype="float32")
DOCUMENTS = ([1, 5, 7, 7, 2], [1, 4, 2], [1, 9, 18, 11, 3, 2], [1, 6])


def packed(rows: list[list[list[int]]], length: int) -> dict[str, np.ndarray]:
  """Documents side by side; <BOS> alone is not learnt."""
  shape = (len(rows), length)
  batch = dict(tokens=np.zeros(shape, np.int32), segments=np.zeros(shape, np.int32), loss_weights=np.zeros(shape, "f"))
  for row, documents in enumerate(rows):
    start = 0
    for number, document in enumerate(documents, 1):
      end = start + len(document)
      batch["tokens"][row, start:end], batch["segments"][row, start:end] = document, number
      batch["loss_weights"][row, start + 1 : end] = 1
      start = end
  return batch


@pytest.fixture(scope="module")
def weights(random_parameters):
  return random_parameters(lambda key: initialize(CONFIG, key))


@pytest.fixture(scope="module")
def sums(jit):
  """(total, weight) of the loss, of a config, parameters and batch."""

  def compute(config, parameters, batch):
    loss = jit(lambda parameters, batch: dataclasses.astuple(language_objective(config).loss(parameters, batch)))
    total, weight, parts = jax.device_get(loss(parameters, batch))
    assert parts["text_loss"] == (total, weight)
    return float(total), float(weight)

  return compute


def test_the_loss_is_the_negative_log_likelihood_of_the_next_token(sums, random_parameters):
  """Of a decoder without layers: the token's row under a norm, against all rows."""
  config = LanguageModelConfig(DecoderConfig(layers=0, **SIZES), dtype="float32")
  parameters = random_parameters(lambda key: initialize(config, key))
  assert parameters.keys() == {"language/embeddings", "language/norm/scale"}
  table = np.float64(parameters["language/embeddings"])
  rms = np.sqrt(np.square(table).mean(axis=1, keepdims=True) + config.language.norm_epsilon)
  logits = table / rms * parameters["language/norm/scale"] @ table.T
  surprise = np.log(np.exp(logits).sum(axis=1, keepdims=True)) - logits
  pairs = [(before, after) for document in DOCUMENTS for before, after in itertools.pairwise(document)]
  total, weight = sums(config, parameters, packed([DOCUMENTS[:2], DOCUMENTS[2:]], 9))
  assert weight == len(pairs)
  assert total == pytest.approx(sum(surprise[pair] for pair in pairs), rel=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned", "alibi", "relative"])
def test_documents_in_a_row_are_read_as_if_each_were_alone(sums, random_parameters, positions):
  language = dataclasses.replace(CONFIG.language, positions=positions, position_rows=9)
  config = dataclasses.replace(CONFIG, language=language)
  parameters = random_parameters(lambda key: initialize(config, key))
  together = sums(config, parameters, packed([DOCUMENTS[:2], DOCUMENTS[2:]], 9))
  alone = sums(config, parameters, packed([[document] for document in DOCUMENTS], 9))
  assert together == pytest.approx(alone, rel=1e-5)


def test_the_other_document_of_a_row_has_no_part_in_the_gradient_of_this_one(jit, weights):
  gradient = jit(jax.grad(lambda weights, batch: language_objective(CONFIG).loss(weights, batch).total))
  batch = packed([DOCUMENTS[:2]], 9)
  other = batch["segments"] == 2
  batch["loss_weights"][other] = 0
  changed = gradient(weights, batch | {"tokens": np.where(other, 17, batch["tokens"])})
  for path, array in gradient(weights, batch).items():
    np.testing.assert_allclose(array, changed[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_a_flamingo_has_a_place_for_each_parameter(tiny):
  language = dataclasses.replace(tiny.language, extra_tokens=0)
  alone = flat(jax.eval_shape(lambda key: initialize(LanguageModelConfig(language), key), jax.random.key(0)))
  arrays = {path.removeprefix("language/"): np.zeros(shape.shape) for path, shape in alone.items()}
  grouped = group_layers(ungroup_layers(arrays), language.layers, tiny.cross_attention)
  whole = flat(jax.eval_shape(lambda key: initialize_flamingo(tiny, key), jax.random.key(0)))
  frozen = {path for path in whole if path.startswith("language/") and "gated_" not in path and "extra_" not in path}
  assert {f"language/{path}": array.shape for path, array in grouped.items()} == {p: whole[p].shape for p in frozen}


def test_perplexity_is_e_to_the_mean_loss_of_all_held_out_tokens(sums, weights):
  batches = [packed([DOCUMENTS[:2]], 9), packed([DOCUMENTS[2:]], 9)]
  totals = np.sum([sums(CONFIG, weights, batch) for batch in batches], axis=0)
  evaluate = evaluate_language(language_objective(CONFIG), {"books": batches})
  metrics = evaluate(weights, make_mesh(MeshConfig()), False)
  assert metrics.keys() == {f"heldout/{part}/books" for part in ("loss", "text_loss", "perplexity")}
  assert metrics["heldout/loss/books"] == pytest.approx(totals[0] / totals[1], rel=1e-5)
  assert metrics["heldout/perplexity/books"] == pytest.approx(math.exp(totals[0] / totals[1]), rel=1e-5)


def test_before_the_first_step_nothing_stands_for_a_frozen_language_model(weights):
  evaluate = evaluate_language(language_objective(CONFIG), {"books": [packed([DOCUMENTS[:2]], 9)]})
  assert evaluate(weights, make_mesh(MeshConfig()), True).keys() == {"heldout/loss/books", "heldout/perplexity/books"}
