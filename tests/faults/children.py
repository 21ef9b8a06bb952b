"""Run commands of the package in forked children, which can be killed at any place.

The parent has imported everything and started no backend of JAX: a child is at work at once."""

import atexit
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ssppo_jax.__main__ import main

SECONDS = 300.0  # a command that takes longer hangs, which is a bad outcome
# Errors that a command may end with: see docs/runs.md.
TOLD = (1, 65, 70, 74, 78)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link")


class Ended(NamedTuple):
    """How a command ended; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "nothing was said"

    def trouble(self, *codes: int) -> str | None:
        """Why this is no good end with one of these exit codes; None if it is one."""
        if self.code not in codes:
            name = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
            return f"{name}: {self.last_line}"
        if "Traceback" in self.err + self.out:
            return f"shows a traceback: {self.last_line}"
        if self.code and "error: " not in self.err:
            return f"exit code {self.code} without a message: {self.last_line}"
        return None


class Child:
    """A command at work in a process of its own."""

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        before: Callable[[], object] = lambda: None,
    ):
        self.start, self.said = time.monotonic(), {1: b"", 2: b""}
        self.code: int | None = None
        pipes = {1: os.pipe(), 2: os.pipe()}
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for number, (_, write) in pipes.items():
                os.dup2(write, number)
            _work(argv, folder, before)
        self.selector = selectors.DefaultSelector()
        for number, (read, write) in pipes.items():
            os.close(write)
            os.set_blocking(read, False)
            self.selector.register(read, selectors.EVENT_READ, number)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, to this process alone."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Say if the command has ended, after so many seconds at most."""
        until = time.monotonic() + seconds
        while self.code is None:
            self._read(max(0.0, min(0.005, until - time.monotonic())))
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self._read(0.0)
                for key in list(self.selector.get_map().values()):
                    os.close(key.fd)
                self.selector.close()
            elif time.monotonic() > until:
                return False
        return True

    def end(self, seconds: float = SECONDS) -> Ended:
        """Wait for the end; a command that does not end in time is killed, and says so."""
        if not self.wait(seconds):
            self.kill()
            self.wait(10.0)
            self.said[2] += f"\nnot at an end after {seconds:g} s\n".encode()
            self.code = 124
        out, err = (self.said[n].decode(errors="replace") for n in (1, 2))
        return Ended(self.code, out, err, time.monotonic() - self.start)

    def _read(self, seconds: float) -> None:
        if not self.selector.get_map():
            time.sleep(seconds)
        for key, _ in self.selector.select(seconds):
            while piece := self._piece(key.fd):
                self.said[key.data] += piece

    @staticmethod
    def _piece(descriptor: int) -> bytes:
        try:
            return os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return b""


def run(argv: Sequence[str], folder: Path, **how) -> Ended:
    """Run a command to its end."""
    return Child(argv, folder, **how).end()


def _work(argv, folder, before) -> None:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ["SSPPO_PROGRESS"] = "off"
        before()
        code = main(list(argv))
        atexit._run_exitfuncs()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def at_change(workdir: Path, number: int, act: Callable[[], object]) -> list[str]:
    """Call `act` before the number-th change of a file below a folder that Python makes from now
    on; return the list that the changes are noted in."""
    seen: list[str] = []
    inside = str(workdir)

    def watch(event: str, args: tuple) -> None:
        changes = event in CHANGES or (event == "open" and bool((args[2] or 0) & WRITES))
        if not changes or not any(isinstance(a, str | os.PathLike) for a in args[:1]):
            return
        path = os.fsdecode(args[0])
        if os.path.abspath(path).startswith(inside):
            seen.append(f"{event} {path.removeprefix(inside)}")
            if len(seen) == number:
                act()

    sys.addaudithook(watch)
    return seen


def die() -> None:
    """Kill this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)
