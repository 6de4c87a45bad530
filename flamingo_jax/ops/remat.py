"""Which activations of a layer are kept for its gradient and which are computed again, by name."""

import flax.linen as nn
import jax

POLICIES = {
  "none": None,  # keep what the gradient needs
  "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep what linear maps gave
}


def rematerialized(module: type[nn.Module], policy: str) -> type[nn.Module]:
  """`module` under a policy; within a scan, so that the compiler may not undo it."""
  if policy == "none":
    return module
  return nn.remat(module, policy=POLICIES[policy], prevent_cse=False)
