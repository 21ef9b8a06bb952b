"""Share CPU cores between several runs at a time on one machine.

XLA's CPU client makes one thread for each core of its process (sched_getaffinity). It splits the
longest sums over the threads, so their number shows in the last bits of a result. With jaxlib
0.10.2, NPROC in the environment overrides that number. A run with a share of the cores is therefore
held to it by its affinity, and NPROC tells it to split its sums as if it had all cores. Its numbers
are then those of a run that has them all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator


def platform() -> str:
    """Return what JAX computes on here: "cpu", "gpu", "tpu", or "" when it cannot start.

    A process of its own finds out, because an accelerator belongs to the process that starts it.
    """
    code = "import jax; print(jax.default_backend())"
    quiet = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    return (done.stdout.split() or [""])[-1] if done.returncode == 0 else ""


def available() -> list[int]:
    """Return the cores this process may use; none where the system does not tell (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def shares(cores: list[int], parts: int) -> list[list[int]]:
    """Return the cores in `parts` runs of neighbours, none empty.

    With fewer cores than parts, some parts get the same core.
    """
    starts = [i * len(cores) // parts for i in range(parts + 1)]
    return [cores[a : max(b, a + 1)] for a, b in itertools.pairwise(starts)]


@contextlib.contextmanager
def held_to(share: list[int]) -> Iterator[dict[str, str]]:
    """Hold processes that are started inside to these cores; an empty share is all of them.

    Start them with the environment that it gives. They inherit the affinity of this process. To
    set it in the child, by a preexec_fn, would need the kind of fork that JAX warns of.
    """
    if not share:
        yield dict(os.environ)
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield {"NPROC": str(len(mine))} | os.environ
    finally:
        os.sched_setaffinity(0, mine)
