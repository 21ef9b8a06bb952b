"""Run a response's code against unit tests where it can do no harm.

    the run  ->  a supervisor (`supervisor`), one for each response  ->  the process for the code
      (`child`)

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
kernel ends the code. What cannot be removed is counted and ends nothing.

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
import struct
import subprocess
import sys
import tempfile
import time
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


def supervised(
    code: str, tests: list[str], limits: Limits, entries: list[str] | None = None
) -> Report:
    """Run the code, then each test in the same namespace, under a supervisor.

    A test passes when it raises nothing.
    `entries` are the names that the function asked for may have, the likeliest first: shapes of
    tests take it as an argument.

    Raises:
      ConfigError: `strict`, and this system cannot do it.
    """
    folder = os.path.join(tempfile.gettempdir(), f"ssppo-code-{secrets.token_hex(8)}")
    settings = limits._asdict() | {"folder": folder, "run": os.getpid(), "child": str(FILE)}
    settings["shapes"] = str(Path(__file__).with_name("shapes.py"))
    steps: list[dict] = [{"code": code}]
    known = {"entries": entries or [], "held_back": limits.held_back}
    steps += [{"test": test, **known} for test in tests]
    try:
        found, end = _asked(settings, steps, limits.seconds + PATIENCE)
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


def _asked(settings: dict, steps: list[dict], seconds: float) -> tuple[dict | None, int | None]:
    """Return the supervisor's report (None if it gave none), and how it ended."""
    supervisor = _start()
    try:
        report = _report(supervisor, [settings, steps], time.monotonic() + seconds)
    finally:
        for stream in (supervisor.stdout, supervisor.stdin):
            if stream is not None:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(1.0)
        supervisor.kill()  # the kernel then kills the code as well
        supervisor.wait()
    return report, supervisor.returncode


def _start() -> subprocess.Popen:
    clean = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
    clean |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-I", "-B", str(Path(__file__).with_name("supervisor.py"))],
        cwd="/",
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )


def _report(supervisor: subprocess.Popen, messages: list, end: float) -> dict | None:
    """Send what is asked and return the report; None if the supervisor ends, hangs or raves."""
    assert supervisor.stdin and supervisor.stdout  # both are pipes
    texts = [json.dumps(message).encode() for message in messages]
    sending = b"".join(struct.pack("=I", len(text)) + text for text in texts)
    into, out = supervisor.stdin.fileno(), supervisor.stdout.fileno()
    os.set_blocking(into, False)
    ready, found = select.poll(), b""  # not select: a large run has more than 1024 files open
    ready.register(into, select.POLLOUT)
    ready.register(out, select.POLLIN)
    while (left := end - time.monotonic()) > 0 and len(found) < MOST_REPORTED:
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
                return _read(found)
            found += piece
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
