"""What is minimized. An objective is a pair of pure functions; the loop does not know which one it runs."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig, matching_loss, pairs_of
from flamingo_jax.models.contrastive import initialize as initialize_contrastive
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.flamingo import initialize as initialize_flamingo
from flamingo_jax.models.language_model import LanguageModel, LanguageModelConfig
from flamingo_jax.models.language_model import initialize as initialize_language
from flamingo_jax.models.parameters import Parameters, nested


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss before its mean is taken, so that means have global denominators.

  Attributes:
    total: summed over what it is a mean of, float32.
    weight: the sum of the weights; 0 when a whole stream has nothing to learn from.
    parts: further (total, weight) pairs that are only reported.
  """

  total: jax.Array
  weight: jax.Array
  parts: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Objective:
  """`initialize(key)` gives all parameters, boxed with logical axes; `loss(parameters, batch)` a Loss."""

  name: str
  initialize: Callable[[jax.Array], dict]
  loss: Callable[[Parameters, dict[str, jax.Array]], Loss]


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
  """total / weight, and exactly 0 (with gradient 0) where there is no weight."""
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)


def means(parts: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
  return {name: mean(total, weight) for name, (total, weight) in parts.items()}


def flamingo_objective(config: FlamingoConfig) -> Objective:
  """Next-token negative log-likelihood given the media (paper, equation 1)."""
  model = Flamingo(config)

  def loss(parameters: Parameters, batch: dict[str, jax.Array]) -> Loss:
    likelihoods = model.apply(nested(parameters), batch, method=Flamingo.score)
    return next_token_loss(likelihoods, batch, config.language.vocabulary)

  return Objective("flamingo", lambda key: initialize_flamingo(config, key), loss)


def language_objective(config: LanguageModelConfig) -> Objective:
  """Next-token negative log-likelihood of text alone: how the language model comes to be that Flamingo freezes."""
  model = LanguageModel(config)

  def loss(parameters: Parameters, batch: dict[str, jax.Array]) -> Loss:
    likelihoods = model.apply(nested(parameters), batch, method=LanguageModel.score)
    return next_token_loss(likelihoods, batch, config.language.vocabulary)

  return Objective("language", lambda key: initialize_language(config, key), loss)


def next_token_loss(likelihoods: Float[Array, "B L-1"], batch: dict[str, jax.Array], vocabulary: int) -> Loss:
  """The loss of all tokens that are learnt and, as `text_loss`, of those that the language model's own table has."""
  weights = batch["loss_weights"][:, 1:]
  text = weights * (batch["tokens"][:, 1:] < vocabulary)
  parts = {"text_loss": (-(likelihoods * text).sum(), text.sum())}
  return Loss(-(likelihoods * weights).sum(), weights.sum(), parts)


def contrastive_objective(config: ContrastiveConfig) -> Objective:
  """Image-text contrast over the batch, all devices together (paper, appendix B.1.3)."""
  model = Contrastive(config)

  def loss(parameters: Parameters, batch: dict[str, jax.Array]) -> Loss:
    images, texts, scale = model.apply(nested(parameters), batch)
    total, weight, right = matching_loss(config, images, texts, scale, pairs_of(batch))
    return Loss(total, weight, {"retrieval": (right, weight), "temperature": (scale.temperature, jnp.ones(()))})

  return Objective("contrastive", lambda key: initialize_contrastive(config, key), loss)
