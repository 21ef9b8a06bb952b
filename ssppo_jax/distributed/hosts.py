"""Start the processes of one run, let them wait for each other, agree, and share work.

Every process reads all prompts and holds the whole rollout on its host. So every process decides
alike who gets a slot and what a step trains on, and nothing of it is sent. Expensive work is
sharded: rows go to the devices of the process that owns them, and one process judges and embeds
each text. Process 0 writes the run's files.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax._src import distributed as service  # the coordination service has no public door
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from ssppo_jax.distributed.rendezvous import meet
from ssppo_jax.errors import ConfigError, LostProcess, UserError

T = TypeVar("T")

# What says that a cluster started several of us: SLURM's srun, Open MPI's mpirun, GKE's TPU slices,
# and JAX's own.
SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
START = 300.0  # seconds to find each other
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Hold where this process finds the others; None leaves it to the cluster's environment."""

    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    number: int | None = None  # this process, from 0


def place_of(
    coordinator: str, processes: str, index: str, environ: Mapping[str, str] = os.environ
) -> Place | None:
    """Read --coordinator, --num_processes and --process_id ('' if not given); None: this process is
    alone.

    With --coordinator=auto, or several processes by the environment, JAX detects the cluster.

    Raises:
      ConfigError: some of the flags without the others, or numbers that cannot be.
    """
    given = {"--coordinator": coordinator, "--num_processes": processes, "--process_id": index}
    if coordinator == "auto" or not any(given.values()):
        several = any(environ.get(name, "1") not in ("", "1") for name in SIZES)
        several = several or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
        return Place() if coordinator == "auto" or several else None
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} must stand beside"
            f" {', '.join(n for n in given if n not in missing)}: address and port of process 0,"
            " how many processes there are, and which this is, from 0; or --coordinator=auto"
        )
    if not (processes.isdecimal() and index.isdecimal() and int(index) < int(processes)):
        raise ConfigError(
            f"--process_id={index} of --num_processes={processes}: numbers, the first below the"
            " second"
        )
    return Place(coordinator, int(processes), int(index))


def start(place: Place, *, timeout: float = START) -> None:
    """Join the run's other processes, before anything else touches JAX.

    Raises:
      ConfigError: a process does not come in time (missing ones are named where the flags say who
        there should be), or no cluster is found.
    """
    if place.coordinator is not None:
        assert place.processes is not None and place.number is not None  # `place_of` sees to it
        meet(place.coordinator, place.processes, place.number, timeout)
    try:
        jax.distributed.initialize(*place, initialization_timeout=int(timeout))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"JAX finds no cluster to join ({str(error).splitlines()[0]}); give"
            " --coordinator=HOST:PORT, --num_processes and --process_id"
        ) from None
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)


def alone() -> bool:
    """Return whether this is the run's only process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Return whether this process writes the run's files, without starting a backend if it is
    alone.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


# ---- waiting and telling -------------------------------------------------------------------------


class _Waits:
    """Count the meetings of these processes, which numbers them, and hold how long they wait."""

    met = 0
    patience = 3600.0


def set_patience(seconds: float) -> None:
    """Set how many seconds a process waits for the others where they share work."""
    _Waits.patience = seconds


def wait(what: str) -> None:
    """Return when all processes are here.

    Raises:
      UserError: some did not come in time; they are named.
    """
    if alone():
        return
    _Waits.met += 1
    client: Any = service.global_state.client
    me, until = jax.process_index(), time.monotonic() + _Waits.patience
    here = f"ssppo/{_Waits.met}"
    client.key_value_set(f"{here}/{me}", what)
    missing = [p for p in range(jax.process_count()) if not _has_come(client, f"{here}/{p}", until)]
    if missing:
        raise UserError(
            f"{what}: process {', '.join(map(str, missing))} of {jax.process_count()} did not come"
            f" within {_Waits.patience:g} s; look at its log. Saved is what the last checkpoint"
            " holds"
        )
    if is_first():
        client.key_value_delete(f"ssppo/{_Waits.met - 1}/")  # everyone has left that meeting


def _has_come(client: Any, key: str, until: float) -> bool:
    try:
        client.blocking_key_value_get(key, max(1, int(1000 * (until - time.monotonic()))))
    except JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return False
    return True


def lost(error: Exception) -> LostProcess | None:
    """Return what to tell of an error that says another process is gone; None if it says something
    else."""
    said = str(error).partition("\n")[0]
    if alone() or not re.search(r"[Gg]loo|by peer|oordination|eartbeat|UNAVAILABLE|ABORTED", said):
        return None
    return LostProcess(
        f"another process of this run has ended or does not answer ({said[:200]}); look at its log."
        " Saved is what the last checkpoint holds. Start every process again with the same command"
    )


def exchange(value: T, what: str) -> list[T]:
    """Return what every process gave, in their order. Collective; an error names `what`."""
    if alone():
        return [value]
    wait(what)
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    # few sizes, as each is compiled for
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
    padded[: len(mine)] = mine
    everyone = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:n].tobytes()) for row, n in zip(everyone, lengths, strict=True)]


def compare(what: Mapping[str, str]) -> None:
    """Check that every process has the same values as process 0.

    Raises:
      ConfigError: a process has another value; names it.
    """
    everyone = exchange(dict(what), "comparing configurations")
    problems = [
        f"{name}: process 0 has {everyone[0].get(name)!r}, process {index} has {other.get(name)!r}"
        for index, other in enumerate(everyone)
        for name in sorted(everyone[0].keys() | other.keys())
        if everyone[0].get(name) != other.get(name)
    ]
    if problems:
        raise ConfigError("the processes of this run differ:\n  " + "\n  ".join(problems))


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


def _try(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(work())
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # what cannot be sent would leave the others waiting
        except Exception:
            return _Outcome(
                error=UserError(f"process {jax.process_index()}: {type(error).__name__}: {error}")
            )
        return _Outcome(error=error)


def on_first(work: Callable[[], T], what: str = "work of process 0") -> T:
    """Return the value of `work`, done by process 0 alone, in all processes, or raise its error."""
    if alone():
        return work()
    outcome = exchange(_try(work) if is_first() else _Outcome(), what)[0]
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def share(
    owners: Sequence[int], work: Callable[[np.ndarray], T], what: str
) -> tuple[np.ndarray, list[T]]:
    """Run `work` on this process's rows and return everybody's values with the order of their rows.

    A row belongs to the process whose index is the row's owner modulo the number of processes. The
    order brings the rows, one value behind the other, back in place. Each process calls it with the
    same owners. A failure in one is raised in all.
    """
    if alone():
        rows = np.arange(len(owners))
        return rows, [work(rows)]
    whose = np.asarray(owners, np.int64) % jax.process_count()
    mine = np.flatnonzero(whose == jax.process_index())
    outcomes = exchange(_try(lambda: work(mine)) if len(mine) else _Outcome(), what)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return np.argsort(np.argsort(whose, kind="stable")), [
        o.value for p, o in enumerate(outcomes) if (whose == p).any()
    ]


def mine(owner: int) -> bool:
    """Return whether `share` gives a row of this owner to this process."""
    return alone() or int(owner) % jax.process_count() == jax.process_index()


def on_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """Return the whole array in this process. Collective where other processes hold parts of it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
