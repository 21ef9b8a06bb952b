"""Run a response's code against unit tests where it can do no harm.

    the run  ->  a starter  ->  a supervisor, its fork, one for each response (`supervisor`)
      ->  the process for the code, a fork again (`child`)

Threat model. A model wrote the code: it may be wrong, careless, or look for the reward by odd
means, and it may do anything Python can. What protects, also where the run is root's:

    everywhere     a session of its own, no privileges, no new ones, limits of memory, processor and
                   wall time, of files and their sizes, of threads and output; an empty environment;
                   the supervisor cannot be traced, and whatever the code leaves is killed
    strict         Landlock: reads only Python and the system's folders, writes only its own folder.
                   seccomp: no processes, sockets, signals to others, change of others' scheduling,
                   flags of files, new privileges, and no system call that is newer than the filter
    namespaces     where the system grants them: user, PID, network, mount, IPC, UTS. Its folder is
                   then a file system in memory of fixed size. `Report.namespaces` names them, and
                   the oracle logs them once

If the run dies, the supervisor ends the code and removes its folder. If the supervisor dies, the
kernel ends the code. What cannot be removed is counted and ends nothing. A starter has loaded
Python once and reads nothing that a response says, so each supervisor begins as a fresh process.

The verdict. The process for the code answers each test with a word that was drawn at random and
sent with the test, so code that writes results of its own, or ends its process, has passed nothing.
What a test compares with a constant (`assert f(2) == 4`) is not compared there. The supervisor
keeps the constant, is told the value of `f(2)`, and compares plain values itself. Such a test
cannot be passed by writing to a pipe, by an object that equals everything, or by a changed
interpreter.

Not contained: other tests share the process with the code, because they use its functions and
classes. Code that reads the interpreter's frames can answer for those. It can read /etc, /usr and
installed packages. A hole in the kernel is a hole here. Against human attackers, put the run in a
virtual machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.sandbox.supervisor import CLEARING, STARTING, clear

FILE = Path(__file__).with_name("child.py")
PATIENCE = STARTING + CLEARING + 5.0  # seconds that the supervisor may take beside the code's own
MOST_REPORTED = 1 << 24

OUTCOMES = ("passed", "failed", "time", "memory", "output", "disk", "crash")


class Limits(NamedTuple):
    seconds: float  # wall time of the code and all its tests
    memory_mb: int  # address space
    disk_mb: int  # in the folder, and of one file
    strict: bool  # false: no filters of files and system calls, only limits, empty environment
    namespaces: bool = True  # where the system grants them
    held_back: bool = True  # constants that tests compare with stay outside


class Outcome(NamedTuple):
    """The end of one response's code."""

    outcome: str  # one of OUTCOMES
    passed: int  # tests that ran to their end
    reason: str  # of the first that did not


class Report(NamedTuple):
    """An outcome, and what the sandbox has to say of itself."""

    outcome: Outcome
    each: tuple[bool, ...]  # whether each test passed
    left: int  # entries of its folder that could not be removed
    namespaces: tuple[str, ...]
    broken: str = ""  # why the sandbox could not be set up; the outcome then says nothing


class Starters:
    """Hand out processes that fork a supervisor for each response, as many as are asked at once.

    A response then costs two forks, and not a start of Python.
    """

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen] = []

    def __enter__(self) -> Starters:
        return self

    def __exit__(self, *_) -> None:
        while self._idle:
            _end(self._idle.pop())

    def _alive(self) -> subprocess.Popen | None:
        """Return one that waits; one that the system has ended meanwhile is cleared away."""
        with contextlib.suppress(IndexError):  # none, or another thread took the last
            while True:
                starter = self._idle.pop()
                if starter.poll() is None:
                    return starter
                _end(starter)
        return None

    @contextlib.contextmanager
    def one(self) -> Iterator[subprocess.Popen]:
        """Lend a starter. It is kept if the block leaves it alive, and ended if the block raises.

        Raises:
          OSError: no process could be started.
        """
        starter = self._alive() or _start()
        try:
            yield starter
        except BaseException:
            _end(starter)
            raise
        if starter.returncode is None:
            self._idle.append(starter)


def supervised(
    code: str,
    tests: list[str],
    limits: Limits,
    entries: list[str] | None = None,
    starters: Starters | None = None,
) -> Report:
    """Run the code, then each test in the same namespace, under a supervisor.

    A test passes when it raises nothing.
    `entries` are the names that the function asked for may have, the likeliest first: shapes of
    tests take it as an argument. Without `starters` a process is started for this response alone.

    Raises:
      ConfigError: `strict`, and this system cannot do it.
    """
    folder = os.path.join(tempfile.gettempdir(), f"ssppo-code-{secrets.token_hex(8)}")
    settings = limits._asdict() | {"folder": folder}
    steps: list[dict] = [{"code": code}]
    known = {"entries": entries or [], "held_back": limits.held_back}
    steps += [{"test": test, **known} for test in tests]
    try:
        with contextlib.nullcontext(starters) if starters else Starters() as starting:
            found, end = _asked(starting, settings, steps, limits.seconds + PATIENCE)
    except OSError as error:  # no processes, descriptors or memory left
        return _broken(f"no process could be started for the code: {error}", len(tests))
    left = clear(folder)  # there only if the supervisor could not remove it
    if not isinstance(found, dict):
        crashed = Outcome("crash", 0, f"its supervisor ended with {end}")
        return Report(crashed, (False,) * len(tests), left, ())
    if "refused" in found:
        raise ConfigError(
            f"oracle code: this system cannot contain a model's code ({found['refused']}). It"
            " takes Linux 5.13 or newer with Landlock and seccomp. For code you trust:"
            " --config.oracle.sandbox=limits"
        )
    if "broken" in found:
        return _broken(found["broken"], len(tests))
    each = tuple(reason == "" for reason in found["replies"][1:])
    each += (False,) * (len(tests) - len(each))
    return Report(_outcome(found, len(tests)), each, left, tuple(found["namespaces"]))


def _broken(why: str, tests: int) -> Report:
    return Report(Outcome("crash", 0, why), (False,) * tests, 0, (), why)


def _asked(
    starters: Starters, settings: dict, steps: list[dict], seconds: float
) -> tuple[dict | None, int | None]:
    """Return the supervisor's report, or None and how it ended."""
    with starters.one() as starter:
        report = _report(starter, [settings, steps], time.monotonic() + seconds)
        if report is None or not report.get("released"):  # its steps may still be in the pipe
            _end(starter)
        return report, starter.returncode


def _end(starter: subprocess.Popen) -> None:
    """End a starter and its supervisor; the kernel then kills the code as well."""
    for stream in (starter.stdout, starter.stdin):
        if stream is not None:
            stream.close()  # it then ends by itself, as its supervisor ended
    with contextlib.suppress(subprocess.TimeoutExpired):
        starter.wait(1.0)
    if starter.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(starter.pid, signal.SIGKILL)
        starter.wait()


def _start() -> subprocess.Popen:
    clean = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
    clean |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parent
    files = [str(folder / "supervisor.py"), str(FILE), str(folder / "shapes.py")]
    return subprocess.Popen(
        [sys.executable, "-I", "-B", *files],
        cwd="/",
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )


def _report(starter: subprocess.Popen, messages: list, end: float) -> dict | None:
    """Send what is asked and return the report; None if the supervisor ends, hangs or raves."""
    assert starter.stdin and starter.stdout  # both are pipes
    texts = [json.dumps(message).encode() for message in messages]
    sending = b"".join(struct.pack("=I", len(text)) + text for text in texts)
    into, out = starter.stdin.fileno(), starter.stdout.fileno()
    os.set_blocking(into, False)
    ready, found, size = select.poll(), b"", 4
    # poll and not select: a large run has more than 1024 files open
    ready.register(into, select.POLLOUT)
    ready.register(out, select.POLLIN)
    while (left := end - time.monotonic()) > 0 and size < MOST_REPORTED:
        for stream, _ in ready.poll(1000 * left):
            if stream == into:
                try:
                    sending = sending[os.write(into, sending) :]
                except OSError:  # it has ended: its report may still be read
                    sending = b""
                if not sending:
                    ready.unregister(into)
                continue
            piece = os.read(out, 1 << 16)
            if not piece:
                return None
            found += piece
            if len(found) >= 4:
                size = 4 + struct.unpack("=I", found[:4])[0]
            if len(found) >= size:
                return _read(found)
    return None


def _read(found: bytes) -> dict | None:
    with contextlib.suppress(ValueError, RecursionError):
        report = json.loads(found[4:])
        return report if isinstance(report, dict) else None
    return None


def _outcome(found: dict, tests: int) -> Outcome:
    replies, limit, end = found["replies"], found["limit"], found["ended"]
    done = replies[1:]
    passed = sum(reason == "" for reason in done)
    wrong = next((reason for reason in replies if reason), "")
    if limit:
        return Outcome(limit, passed, f"stopped: over its limit of {limit}")
    if wrong:
        return Outcome("memory" if wrong.startswith("MemoryError") else "failed", passed, wrong)
    if len(done) < tests:
        return Outcome("crash", passed, f"ended with {end} after {len(done)} of {tests} tests")
    return Outcome("passed", passed, "")
