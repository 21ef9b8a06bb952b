"""Lock a run's folder, and own the signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssppo_jax.errors import UserError
from ssppo_jax.files import writing


class RunLock:
    """Hold `folder/run.lock` (flock) while open; a second run in the folder is refused.

    The kernel frees the lock when its holder dies. The exception: a worker forked by the holder
    outlives it and keeps the lock. Then the recorded pid is dead on this host, and the lock is
    taken over. With many processes, take it on process 0 only. Runs on two hosts see each other
    only where flock crosses hosts: NFSv4 does, a file system mounted with local locks does not.

    Raises:
        UserError: on entering, when another run holds the folder; names its pid and host.
        WriteError: on entering, when the folder cannot be written to.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                self._descriptor = self._acquire()
        with contextlib.suppress(OSError):  # a full disk takes no name; the lock holds
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(record).encode(), 0)
        return self

    def __exit__(self, *_) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)  # never unlinked: unlinking a free lock is a race
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self) -> int | None:
        """Return a locked descriptor; None if a dead holder's file was cleared, so that a retry is
        worthwhile.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            same_file = _is_at(descriptor, self.path)
            os.close(descriptor)
            if same_file and _is_dead(holder):
                self.path.unlink(missing_ok=True)
                return None
            raise UserError(
                f"another run is using {self.path.parent}: pid {holder.get('pid', 'unknown')} on"
                f" host {holder.get('host', 'unknown')}, since"
                f" {holder.get('since', 'just now')}.\nWait for it, stop it, or give this run"
                " another folder."
            ) from None
        if _is_at(descriptor, self.path):
            return descriptor
        os.close(descriptor)  # someone replaced the file between our open and our lock
        return None


def holder_of(folder: str | Path) -> dict:
    """Return who holds a run's lock (pid, host, since); empty where nobody does, or it is dead.

    No lock is taken, so that a run that begins meanwhile is not refused. A process of another host
    counts as alive.
    """
    try:
        holder = json.loads((Path(folder) / "run.lock").read_bytes())
    except (OSError, ValueError):
        return {}
    return {} if _is_dead(holder) else holder


def _holder(descriptor: int) -> dict:
    try:
        return json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # empty: the holder has not written its name yet
        return {}


def _is_at(descriptor: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _is_dead(holder: dict) -> bool:
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, someone else's
        return False
    return False


class StopSignal:
    """Own SIGTERM and SIGINT: note the request, so that every phase polls `requested` and ends
    tidily.

    A second Ctrl-C raises KeyboardInterrupt at once. Handlers are restored on exit. Enter it on the
    main thread and after `jax.distributed.initialize`. It replaces JAX's preemption notice, so
    loops of many processes must decide with `agreed`.
    """

    def __init__(self):
        self.requested = False
        self._vote: jax.Array | None = None
        self._interrupts = 0
        self._previous = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop.

        Collective: every process calls it at the same point of the loop. Otherwise one leaves while
        the others wait for it forever.
        """
        if jax.process_count() == 1:
            return self.requested
        return bool(np.any(multihost_utils.process_allgather(np.array(self.requested))))

    def voted(self) -> bool:
        """Return `agreed`, one call late: a step's vote is counted while the next step runs."""
        if jax.process_count() == 1:
            return self.requested
        vote, self._vote = self._vote, _any_of(self.requested)
        return vote is not None and bool(jax.device_get(vote))

    def _handle(self, number: int, frame) -> None:
        self.requested = True
        hint = ""
        if number == signal.SIGINT:
            self._interrupts += 1
            hint = " (press Ctrl-C again to stop at once, losing what was not saved)"
        if self._interrupts > 1:
            raise KeyboardInterrupt
        # os.write, not print: a handler that runs inside a buffered write must not touch that
        # buffer.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{signal.Signals(number).name}: saving and stopping{hint}\n".encode())


def _any_of(flag: bool) -> jax.Array:
    """Return whether the flag is up in any process, once the devices have counted."""
    flags = NamedSharding(_all_devices(), P("all"))
    mine = [jax.device_put(np.array([flag]), device) for device in jax.local_devices()]
    return _count()(jax.make_array_from_single_device_arrays((jax.device_count(),), flags, mine))


@functools.cache
def _all_devices() -> Mesh:
    return jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))


@functools.cache
def _count():
    return jax.jit(jnp.any, out_shardings=NamedSharding(_all_devices(), P()))
