"""ssppo_jax: self-play preference (S-SPPO) and soft sequence policy optimisation (SSPO) of language
models in JAX."""

__version__ = "0.10.0"


def __getattr__(name: str) -> object:
    """Import what notebooks use when it is first asked for: it takes seconds."""
    import importlib  # by name: this file stands left of all rooms

    if name in ("configure", "load_policy", "sample", "score"):
        return getattr(importlib.import_module("ssppo_jax.inference.policy"), name)
    if name == "train":
        return importlib.import_module("ssppo_jax.training.train").run
    raise AttributeError(f"module 'ssppo_jax' has no attribute {name!r}")
