"""Linear maps, norms and the feed-forward block, with the logical axis names that sharding reads."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.ops.attention import Mask, attention, dense
from flamingo_jax.ops.products import product

kernel_init = nn.initializers.lecun_normal


def squared_relu(x: Array) -> Array:
  """The activation of the paper's trained feed-forward blocks (So et al., 2021; table 1 of the paper)."""
  return jnp.square(nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "squared_relu": squared_relu,
  "relu": nn.relu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": jax.nn.gelu,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "silu": nn.silu,
}


def linear(features: int | Sequence[int], axes: Sequence[str], *, dtype, name: str, fold: int = 1, bias: bool = False):
  """A linear map whose kernel carries logical axis names.

  Args:
    features: the output axes.
    axes: one logical name for each axis of the kernel, inputs first.
    dtype: of the computation; the kernel itself keeps its own.
    name: of the parameter.
    fold: how many trailing input axes are summed over.
    bias: whether a bias of the output shape is added.
  """
  outputs = (features,) if isinstance(features, int) else tuple(features)
  return nn.DenseGeneral(
    features=outputs,
    axis=tuple(range(-fold, 0)),
    use_bias=bias,
    dtype=dtype,
    dot_general=product,
    kernel_init=nn.with_logical_partitioning(kernel_init(), tuple(axes)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, tuple(axes[fold:])),
    name=name,
  )


def layer_norm(*, dtype, name: str | None, epsilon: float = 1e-5, bias: bool = True) -> nn.LayerNorm:
  """LayerNorm with scale and bias, statistics in float32."""
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=bias,
    use_fast_variance=False,  # the fast one is inexact where a row varies little about a large mean
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    name=name,
  )


def rms_norm(*, dtype, name: str | None, epsilon: float = 1e-5) -> nn.RMSNorm:
  """RMSNorm with scale, statistics in float32."""
  return nn.RMSNorm(
    epsilon=epsilon,
    dtype=dtype,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
    name=name,
  )


NORMS: dict[str, Callable[..., nn.Module]] = {
  "rms": rms_norm,
  "layer": layer_norm,
  "layer_without_bias": functools.partial(layer_norm, bias=False),
}


class FeedForward(nn.Module):
  """Two linear maps around an activation; with `gated`, the activation multiplies a third (SwiGLU and its kin)."""

  hidden_width: int
  activation: str
  dtype: jnp.dtype
  gated: bool = False
  bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    act = ACTIVATIONS[self.activation]
    hidden = linear(self.hidden_width, ("embed", "mlp"), dtype=self.dtype, name="up", bias=self.bias)(x)
    if self.gated:
      gate = linear(self.hidden_width, ("embed", "mlp"), dtype=self.dtype, name="gate", bias=self.bias)
      hidden = act(gate(x)) * hidden
    else:
      hidden = act(hidden)
    return linear(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="down", bias=self.bias)(hidden)


class CrossAttention(nn.Module):
  """Multi-head attention of queries over a context of another width.

  Self-attention without positions is the case where the context is the query itself.

  Attributes:
    heads: H.
    head_width: K.
    dtype: of the computation.
    head_norm: of queries and keys, one name of NORMS over the head width; empty: none.
    norm_epsilon: of that norm.
    blind_sees_all: a query that may see nothing gets the mean of all values instead of zero. That is a mistake of
      OpenFlamingo's all-previous mode, kept only to compare with it.
    bias: of the four linear maps.
    implementation: of attention, by the name that `ops.attention` knows it by.
  """

  heads: int
  head_width: int
  dtype: jnp.dtype
  head_norm: str = ""
  norm_epsilon: float = 1e-5
  blind_sees_all: bool = False
  bias: bool = False
  implementation: str = "auto"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], context: Float[Array, "B S C"], mask: Mask | None = None
  ) -> Float[Array, "B L D"]:
    shape, axes = (self.heads, self.head_width), ("embed", "heads", "head_width")
    query = linear(shape, axes, dtype=self.dtype, name="query", bias=self.bias)(x)
    key = linear(shape, axes, dtype=self.dtype, name="key", bias=self.bias)(context)
    value = linear(shape, axes, dtype=self.dtype, name="value", bias=self.bias)(context)
    if self.head_norm:
      norm = NORMS[self.head_norm]
      query = norm(dtype=self.dtype, epsilon=self.norm_epsilon, name="query_norm")(query)
      key = norm(dtype=self.dtype, epsilon=self.norm_epsilon, name="key_norm")(key)
    if self.blind_sees_all and mask is not None:
      seen = dense(mask)
      sees = seen.any(axis=-1, keepdims=True)
      query, mask = jnp.where(sees[..., None], query, 0), seen | ~sees
    attended = attention(query, key, value, mask, implementation=self.implementation)
    axes = ("heads", "head_width", "embed")
    return linear(x.shape[-1], axes, dtype=self.dtype, name="output", fold=2, bias=self.bias)(attended)
