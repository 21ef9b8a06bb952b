"""Keeping JAX away from a TPU that is not there: the TPU compiler may be installed for planning alone."""

from __future__ import annotations

import importlib.util
import os


def leave_out() -> None:
    """Keep JAX from looking for a TPU in this process where only the compiler is installed: there is no such chip.

    Called before JAX starts. What the user says in JAX_PLATFORMS stands.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None or _has_chip():
        return
    gpu = any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if gpu and os.path.exists("/dev/nvidiactl") else "cpu"


def _has_chip() -> bool:
    """Whether the kernel shows a TPU: as /dev/accel0 or, on newer machines, in a vfio group."""
    return os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
