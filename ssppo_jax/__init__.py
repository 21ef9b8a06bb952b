"""ssppo_jax: self-play preference (S-SPPO) and soft sequence policy optimisation (SSPO) of language
models in JAX."""

__version__ = "0.3.0"
