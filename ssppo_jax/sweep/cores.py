"""CPU cores for several runs at a time on one machine.

XLA's CPU client makes one thread a core that its process may use (sched_getaffinity; with jaxlib
0.10.2, NPROC in the environment overrides the number), and splits the longest sums over them, so
the number of threads shows in the last bits. A run with a share of the cores is therefore held to
it by its affinity, which a process cannot exceed, and told through NPROC to split its sums as if it
had them all: its numbers are those of a run that does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator


def platform() -> str:
    """What JAX computes on here ("cpu", "gpu", "tpu"; "" when it cannot start). A process of its
    own finds out: an accelerator belongs to one process, which must not be this one."""
    code = "import jax; print(jax.default_backend())"
    quiet = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    return (done.stdout.split() or [""])[-1] if done.returncode == 0 else ""


def available() -> list[int]:
    """The cores this process may use; none where the system does not tell (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def shares(cores: list[int], parts: int) -> list[list[int]]:
    """The cores in `parts` runs of neighbours, none empty: with fewer cores than parts, some get
    the same one."""
    n = len(cores)
    return [
        cores[i * n // parts : (i + 1) * n // parts] or [cores[i * n // parts]]
        for i in range(parts)
    ]


@contextlib.contextmanager
def held_to(share: list[int]) -> Iterator[dict[str, str]]:
    """Processes started inside, with the environment it gives, use these cores only; an empty share
    is all of them.

    The affinity is set here and inherited: set in the child, by a preexec_fn, it would need the
    kind of fork that JAX warns of."""
    if not share:
        yield dict(os.environ)
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield {"NPROC": str(len(mine))} | os.environ
    finally:
        os.sched_setaffinity(0, mine)
