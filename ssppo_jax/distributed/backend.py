"""Tell JAX, before it starts, which devices to look for and where to keep compiled programs."""

from __future__ import annotations

import importlib.util
import os
import warnings

from ssppo_jax.files import default_cache

LARGEST_CACHE = 4 * 2**30  # bytes of compiled programs that are kept; the longest unused go first


def leave_out_tpu() -> None:
    """Keep JAX from looking for a TPU where only its compiler is installed, for planning.

    What the user says in JAX_PLATFORMS stands.
    """
    absent = importlib.util.find_spec("libtpu") is None
    if "JAX_PLATFORMS" in os.environ or absent or _has_chip():
        return
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    gpu = any(importlib.util.find_spec(name) for name in plugins)
    has_gpu = gpu and os.path.exists("/dev/nvidiactl")
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if has_gpu else "cpu"


def _has_chip() -> bool:
    """Return whether the system shows a TPU: /dev/accel0 or, on newer machines, a vfio group."""
    return os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")


def keep_compiled() -> None:
    """Let JAX keep programs that took over a second to compile in $SSPPO_CACHE/compiled.

    Another folder in JAX_COMPILATION_CACHE_DIR stands, and JAX_ENABLE_COMPILATION_CACHE=0 too.
    """
    import jax

    # Runs that share the folder clear it of old programs together; one that is gone is compiled.
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache")
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", LARGEST_CACHE)
