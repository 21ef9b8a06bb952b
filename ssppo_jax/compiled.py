"""Compiled programs are kept between runs: what is continued or repeated with another seed need not compile again."""

from __future__ import annotations

import jax

from ssppo_jax.files import default_cache

LARGEST = 4 * 2**30  # bytes of the folder; the longest unused goes first


def keep() -> None:
    """Let JAX keep what took over a second to compile in $SSPPO_CACHE/compiled, keyed by program, options and device.

    Another folder in JAX_COMPILATION_CACHE_DIR stands, and so does JAX_ENABLE_COMPILATION_CACHE=0.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
