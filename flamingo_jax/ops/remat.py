"""Which activations of a layer are kept for its gradient and which are computed again, by name."""

import flax.linen as nn
import jax

PRODUCT, SHARES = "product", "shares"  # names of what linear maps gave, and of attention's softmax

keep = jax.checkpoint_policies.save_only_these_names

POLICIES = {
  "none": None,  # keep all that the gradient needs
  "products": keep(PRODUCT, SHARES),  # compute norms, activations and positions again: half the memory of "none"
  "dots": keep(PRODUCT),  # and attention too
  "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
}


def rematerialized(module: type[nn.Module], policy: str) -> type[nn.Module]:
  """`module` under a policy; within a scan, so that the compiler may not undo it."""
  if policy == "none":
    return module
  return nn.remat(module, policy=POLICIES[policy], prevent_cse=False)
