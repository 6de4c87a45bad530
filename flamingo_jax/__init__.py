"""flamingo_jax: Flamingo-style visual language models in JAX (Alayrac et al., 2022)."""

__version__ = "0.1.0"
