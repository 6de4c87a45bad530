"""Linear maps, norms and the feed-forward block, with the logical axis names that sharding reads."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flamingo_jax.ops.attention import attention

kernel_init = nn.initializers.lecun_normal


def squared_relu(x: Array) -> Array:
  """The activation of the paper's trained feed-forward blocks (So et al., 2021; table 1 of the paper)."""
  return jnp.square(nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "squared_relu": squared_relu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
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
    kernel_init=nn.with_logical_partitioning(kernel_init(), tuple(axes)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, tuple(axes[fold:])),
    name=name,
  )


def layer_norm(*, dtype, name: str) -> nn.LayerNorm:
  """LayerNorm with scale and bias, statistics in float32."""
  return nn.LayerNorm(
    epsilon=1e-5,
    dtype=dtype,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    name=name,
  )


def rms_norm(epsilon: float, *, dtype, name: str) -> nn.RMSNorm:
  """RMSNorm with scale, statistics in float32."""
  return nn.RMSNorm(
    epsilon=epsilon,
    dtype=dtype,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
    name=name,
  )


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
      hidden = act(linear(self.hidden_width, ("embed", "mlp"), dtype=self.dtype, name="gate")(x)) * hidden
    else:
      hidden = act(hidden)
    return linear(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="down", bias=self.bias)(hidden)


class CrossAttention(nn.Module):
  """Multi-head attention of queries over a context of another width; linear maps without bias.

  Self-attention without positions is the case where the context is the query itself.
  """

  heads: int
  head_width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], context: Float[Array, "B S C"], mask: Array | None = None
  ) -> Float[Array, "B L D"]:
    shape, axes = (self.heads, self.head_width), ("embed", "heads", "head_width")
    query = linear(shape, axes, dtype=self.dtype, name="query")(x)
    key = linear(shape, axes, dtype=self.dtype, name="key")(context)
    value = linear(shape, axes, dtype=self.dtype, name="value")(context)
    attended = attention(query, key, value, mask)
    return linear(x.shape[-1], ("heads", "head_width", "embed"), dtype=self.dtype, name="output", fold=2)(attended)
