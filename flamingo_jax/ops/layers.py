"""Linear maps, norms and the feed-forward block, with the logical axis names that sharding reads."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flamingo_jax.ops.attention import KeyValue, Mask, attention, attention_to_parts, dense
from flamingo_jax.ops.products import product, turned_product

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


class Linear(nn.DenseGeneral):
  """A linear map, whose kernel [inputs ..., outputs ...] may also be given as `turned` [outputs ..., inputs ...].

  Decoding gives it so: a few rows are multiplied with turned kernels in half the time (ops.products).
  """

  def __call__(self, x: Array) -> Array:
    if not self.has_variable("params", "turned"):
      return super().__call__(x)
    turned = self.get_variable("params", "turned")
    bias = self.get_variable("params", "bias") if self.use_bias else None
    x, turned, bias = nn.dtypes.promote_dtype(x, turned, bias, dtype=self.dtype)
    mapped = turned_product(x, turned, len(self.axis))
    return mapped if bias is None else mapped + bias

  def outputs_first(self) -> Array:
    """The kernel, turned: [outputs ..., inputs ...], in the dtype of the computation."""
    if self.has_variable("params", "turned"):
      return self.get_variable("params", "turned").astype(self.dtype)
    kernel, inputs = self.get_variable("params", "kernel").astype(self.dtype), len(self.axis)
    return kernel.transpose(*range(inputs, kernel.ndim), *range(inputs))


def linear(
  features: int | Sequence[int],
  axes: Sequence[str],
  *,
  dtype,
  name: str | None = None,
  fold: int = 1,
  bias: bool = False,
) -> Linear:
  """A linear map whose kernel carries logical axis names.

  Args:
    features: the output axes.
    axes: one logical name for each axis of the kernel, inputs first.
    dtype: of the computation; the kernel itself keeps its own.
    name: of the parameter; None in a module's `setup`, where the attribute names it.
    fold: how many trailing input axes are summed over.
    bias: whether a bias of the output shape is added.
  """
  outputs = (features,) if isinstance(features, int) else tuple(features)
  return Linear(
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
    width: D, of queries and of what comes out.
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

  width: int
  heads: int
  head_width: int
  dtype: jnp.dtype
  head_norm: str = ""
  norm_epsilon: float = 1e-5
  blind_sees_all: bool = False
  bias: bool = False
  implementation: str = "auto"

  def setup(self):
    shape, axes = (self.heads, self.head_width), ("embed", "heads", "head_width")
    self.query, self.key, self.value = (linear(shape, axes, dtype=self.dtype, bias=self.bias) for _ in range(3))
    if self.head_norm:
      norm = NORMS[self.head_norm]
      self.query_norm, self.key_norm = (norm(dtype=self.dtype, epsilon=self.norm_epsilon, name=None) for _ in range(2))
    axes = ("heads", "head_width", "embed")
    self.output = linear(self.width, axes, dtype=self.dtype, fold=2, bias=self.bias)

  def __call__(
    self, x: Float[Array, "B L D"], context: Float[Array, "B S C"], mask: Mask | None = None
  ) -> Float[Array, "B L D"]:
    query = self.normed("query_norm", self.query(x))
    key, value = self.keys(context)
    if self.blind_sees_all and mask is not None:
      seen = dense(mask)
      sees = seen.any(axis=-1, keepdims=True)
      query, mask = jnp.where(sees[..., None], query, 0), seen | ~sees
    return self.output(attention(query, key, value, mask, implementation=self.implementation))

  def remember(self, context: Float[Array, "B S C"]) -> KeyValue:
    """The keys and values of a context, for many queries to come (`recall`)."""
    return KeyValue.of(*self.keys(context))

  def recall(
    self, x: Float[Array, "B L D"], parts: Sequence[KeyValue], masks: Sequence[Bool[Array, "B L S"]]
  ) -> Float[Array, "B L D"]:
    """As `__call__`, where the context is remembered parts side by side, with a mask for each."""
    query = self.normed("query_norm", self.query(x))
    if self.blind_sees_all:
      sees = jnp.any(jnp.stack([mask.any(axis=-1) for mask in masks]), axis=0)[..., None]
      query, masks = jnp.where(sees[..., None], query, 0), [mask | ~sees for mask in masks]
    return self.output(attention_to_parts(query, parts, masks))

  def keys(self, context: Array) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    """Keys and values."""
    return self.normed("key_norm", self.key(context)), self.value(context)

  def normed(self, name: str, heads: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    return getattr(self, name)(heads) if self.head_norm else heads
