"""Run a response's code against unit tests where it can do no harm: in a process of its own that is
killed as a group.

Threat model. A model wrote the code: it may be wrong, careless, or look for the reward by odd
means, and it may do anything Python can. Contained (`child`): processes and fork bombs, the
network, signals to other processes, reads outside Python's and the system's folders, writes outside
its own folder, memory, processor and wall time, file sizes, floods of output. Its environment is
empty: there are no keys to read.

Not contained: the tests share the process with the code, so code written to do so can make a
failing test pass. It can read /etc, /usr and installed packages. A hole in the kernel is a hole
here. Against human attackers, put the run in a virtual machine."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ssppo_jax.errors import ConfigError

FILE = Path(__file__).with_name("child.py")
MOST_OUTPUT = 1 << 20  # bytes that code and tests may print together
POLL = 0.05  # seconds between looks at the folder's size

OUTCOMES = ("passed", "failed", "time", "memory", "output", "disk", "crash")


class Limits(NamedTuple):
    seconds: float  # wall time of the code and all its tests
    memory_mb: int  # address space
    disk_mb: int  # in the folder, and of one file
    strict: bool  # false: no filters of files and system calls, only limits, empty environment


class Outcome(NamedTuple):
    """The end of one response's code."""

    outcome: str  # one of OUTCOMES
    passed: int  # tests that ran to their end
    reason: str  # of the first that did not


def run_tests(code: str, tests: list[str], limits: Limits) -> Outcome:
    """Run the code, then each test in the same namespace; a test passes when it raises nothing.

    Raises:
      ConfigError: `strict`, and this system cannot do it.
    """
    # a folder that the process cannot leave, removed afterwards with all that was written
    with tempfile.TemporaryDirectory(prefix="ssppo-code-", ignore_cleanup_errors=True) as folder:
        results, write = os.pipe()
        child = _start(folder, write)
        os.close(write)
        try:
            token = secrets.token_hex(16)  # lines without it are not the process's own
            request = {"code": code, "tests": tests, "token": token} | limits._asdict()
            reported, limit = _watch(child, results, pickle.dumps(request), Path(folder), limits)
        finally:
            _end(child)
            os.close(results)
    return _outcome(_lines(reported, token), limit, child.returncode, len(tests))


def _start(folder: str, write: int) -> subprocess.Popen:
    clean = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    clean |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    launch = (
        "import os, runpy, sys; os.dup2(int(sys.argv[2]), 3); runpy.run_path(sys.argv[1],"
        " run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", launch, str(FILE), str(write)],
        cwd=folder,
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(write,),
        bufsize=0,
        start_new_session=True,
    )


def _watch(
    child: subprocess.Popen, results: int, request: bytes, folder: Path, limits: Limits
) -> tuple[bytes, str]:
    """Return what the child reported, and which limit ended it ("" if none did)."""
    assert child.stdin and child.stdout  # both are pipes
    try:
        child.stdin.write(request)
        child.stdin.close()
    except BrokenPipeError:
        return b"", ""
    reported, printed, end = b"", 0, time.monotonic() + limits.seconds
    ready = select.poll()  # not select: a large run has more than 1024 files open
    for stream in (results, child.stdout.fileno()):
        ready.register(stream, select.POLLIN)
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return reported, "time"
        if _size(folder) > limits.disk_mb << 20:
            return reported, "disk"
        for stream, _ in ready.poll(1000 * min(left, POLL)):
            piece = os.read(stream, 1 << 16)
            if not piece and stream == results:  # closed: the process has ended
                return reported, ""
            if not piece:
                ready.unregister(stream)
            if stream == results:
                reported += piece
            else:
                printed += len(piece)
        if printed > MOST_OUTPUT or len(reported) > MOST_OUTPUT:
            return reported, "output"


def _size(folder: Path) -> int:
    """Return the bytes in the folder, as far as they can be seen."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


def _lines(reported: bytes, token: str) -> list[dict]:
    """Return the JSON lines that carry the token."""
    found = []
    for line in reported.split(b"\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict) and line.get("token") == token]


def _end(child: subprocess.Popen) -> None:
    """Kill the whole group, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for stream in (child.stdout, child.stdin):
        if stream is not None:
            stream.close()
    child.wait()


def _outcome(lines: list[dict], limit: str, code: int, tests: int) -> Outcome:
    refused = next((line["sandbox"] for line in lines if "sandbox" in line), None)
    if refused is not None:
        raise ConfigError(
            f"oracle code: this system cannot contain a model's code ({refused}). It takes Linux"
            " 5.13 or newer with Landlock and seccomp. For code you trust:"
            " --config.oracle.sandbox=limits"
        )
    done = [line["test"] for line in lines if "test" in line]
    passed = sum(reason == "" for reason in done)
    reasons = [*(line["code"] for line in lines if "code" in line), *done]
    wrong = next((str(reason) for reason in reasons if reason != ""), "")
    if limit:
        return Outcome(limit, passed, f"stopped: over its limit of {limit}")
    if wrong:
        return Outcome("memory" if wrong.startswith("MemoryError") else "failed", passed, wrong)
    if len(done) < tests:
        end = "time" if code == -signal.SIGXCPU else "crash"
        return Outcome(end, passed, f"ended with {code} after {len(done)} of {tests} tests")
    return Outcome("passed", passed, "")
