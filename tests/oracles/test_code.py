"""Code against unit tests: what is right passes, and what is harmful is contained and scores 0 with
its reason."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.code import code, code_of
from ssppo_jax.oracles.sandbox import run as sandbox
from ssppo_jax.oracles.sandbox.run import Limits, supervised
from ssppo_jax.types import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
LIMITS = Limits(seconds=5.0, memory_mb=512, disk_mb=4, strict=True)
ADD = "def add(a, b):\n    return a + b\n"


def run(source, *tests, **limits):
    return supervised(source, list(tests) or ["pass"], LIMITS._replace(**limits)).outcome


# ---- right and wrong -----------------------------------------------------------------------------


def test_each_test_passes_or_fails_on_its_own():
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4, 'no'", "x = add(2, 2)"]
    got = run(ADD, *tests, "assert x == 4")
    assert (got.outcome, got.passed, got.reason) == ("failed", 3, "AssertionError: no")
    assert run(ADD, "assert add(1, 2) == 3") == ("passed", 1, "")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = '\0'", "null bytes"),
    ],
)
def test_code_that_does_not_run_passes_nothing(source, reason):
    got = run(source.replace("'\\0'", "\0"), "pass")
    assert got.outcome == "failed" and got.passed == 0 and reason in got.reason


@pytest.mark.parametrize(
    "source",
    ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)", "import os; os.abort()"],
)
def test_a_process_that_ends_early_has_not_passed(source):
    got = run(ADD, source, "pass")
    assert got.outcome == "crash" and got.passed == 0 and "0 of 2 tests" in got.reason


def test_results_that_the_code_writes_itself_do_not_count():
    forged = (
        "import os, json\nos.write(3, (json.dumps({'test': ''}) + chr(10)).encode())\nos._exit(0)"
    )
    assert run(forged, "assert False") == ("crash", 0, "ended with 0 after 0 of 1 tests")


def test_libraries_threads_and_the_folder_may_be_used():
    source = """
import threading, json, decimal, collections, asyncio, tempfile, pathlib
import numpy as np
out = []
t = threading.Thread(target=lambda: out.append(int(np.arange(4).sum())))
t.start(); t.join()
pathlib.Path("notes.txt").write_text("x")
with tempfile.TemporaryFile() as f:
    f.write(b"y")
async def go():
    await asyncio.sleep(0)
    return 7
"""
    got = run(
        source,
        "assert out == [6]",
        "assert asyncio.run(go()) == 7",
        "assert open('notes.txt').read() == 'x'",
    )
    assert got == ("passed", 3, "")


def test_threads_left_behind_do_not_keep_it():
    start = time.monotonic()
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    assert run(source, "pass").outcome == "passed" and time.monotonic() - start < 4


# ---- contained -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["while True: pass", "import time; time.sleep(60)", "import time\ntime.sleep(60)"]
)
def test_what_does_not_end_is_ended(source):
    start = time.monotonic()
    got = run(source, seconds=1.0)
    assert got.outcome == "time" and got.passed == 0 and time.monotonic() - start < 4


FORKS = {
    "fork": "import os\nwhile True: os.fork()",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/true'])",
    "multiprocessing": (
        "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()"
    ),
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "system call": (
        "import ctypes\nraise PermissionError if ctypes.CDLL(None).syscall(57) < 0 else SystemExit"
    ),
}


@pytest.mark.parametrize("how", FORKS)
def test_no_process_can_be_started(how):
    got = run(FORKS[how])
    assert got.outcome == "failed" and ("PermissionError" in got.reason or "Errno 1" in got.reason)


@pytest.mark.parametrize(
    "source",
    [
        "x = bytearray(1 << 33)",
        "x = [0]\nwhile True: x = x * 2",
        "x = 'a' * (1 << 40)",
        "x = 10 ** (10 ** 9)",
    ],
)
def test_huge_allocations_end_as_memory_or_time(source):
    got = run(source, seconds=4.0)
    assert got.outcome in ("memory", "time") and got.passed == 0


def test_thread_bombs_end():
    source = (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,),"
        " daemon=True).start()"
    )
    assert run(source, seconds=2.0).outcome in ("failed", "memory", "time")


@pytest.mark.parametrize("where", ["elsewhere", "parent", "home"])
def test_nothing_is_written_outside_its_folder(where, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    name = f"ssppo-escape-{os.getpid()}"
    target = {
        "elsewhere": tmp_path / name,
        "parent": tmp_path / "code" / name,
        "home": Path.home() / name,
    }[where]
    try:
        got = run(f"open({f'../{name}' if where == 'parent' else str(target)!r}, 'w').write('x')")
        assert got.outcome == "failed" and "PermissionError" in got.reason and not target.exists()
    finally:
        target.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "call",
    [
        "os.unlink({0!r})",
        "os.truncate({0!r}, 0)",
        "os.chmod({0!r}, 0)",
        "os.rename({0!r}, 'mine')",
        "os.symlink({0!r}, 'link') or open('link', 'a').write('x')",
        "os.link({0!r}, 'link')",
        "os.utime({0!r}, (0, 0))",
        "open({0!r}).read()",
    ],
)
def test_files_outside_are_neither_changed_nor_read(call, tmp_path):
    target = tmp_path / "secret"
    target.write_text("untouched")
    before = target.stat()
    got = run(f"import os\n{call.format(str(target))}")
    assert got.outcome == "failed" and ("PermissionError" in got.reason or "Errno 18" in got.reason)
    assert target.read_text() == "untouched" and target.stat().st_mtime == before.st_mtime
    assert target.stat().st_mode == before.st_mode


def test_the_network_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        got = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert got.outcome == "failed" and "PermissionError" in got.reason


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_floods_of_output_are_cut_off(stream):
    got = run(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)")
    assert got.outcome == "output"


def test_floods_into_the_folder_are_cut_off_and_removed():
    one = run("f = open('big', 'wb')\nwhile True: f.write(b'x' * 65536); f.flush()")
    # its own limit on one file, or ours on the folder
    assert one.outcome in ("disk", "failed", "crash")
    many = run("i = 0\nwhile True:\n    i += 1\n    open(str(i), 'wb').write(b'x' * 1000000)")
    assert many.outcome == "disk"


def test_it_cannot_signal_the_run_nor_read_its_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-token")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        for call in (
            f"os.kill({victim.pid}, 9)",
            f"signal.pidfd_send_signal(os.pidfd_open({victim.pid}), 9)",
        ):
            assert "PermissionError" in run(f"import os, signal\n{call}").reason
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    seen = "import os\nassert 'canary' not in repr(os.environ)\nopen('/proc/self/environ')"
    assert "PermissionError" in run(seen).reason


def test_limits_cannot_be_lifted_again():
    lift = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    assert run(lift).outcome == "failed"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    run("open('x', 'w').write('y')\nwhile True: pass", seconds=0.5)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_where_it_cannot_be_contained_nothing_is_run(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    text = sandbox.FILE.read_text()
    broken.write_text(
        text.replace(
            "version = libc.syscall(_CREATE, None", "version = -libc.syscall(_CREATE, None"
        )
    )
    monkeypatch.setattr(sandbox, "FILE", broken)
    with pytest.raises(
        ConfigError, match=r"cannot contain .*Landlock is not available.*oracle.sandbox=limits"
    ):
        run("pass")
    assert run(ADD, "assert add(1, 1) == 2", strict=False).outcome == "passed"


# ---- the oracle ----------------------------------------------------------------------------------


def prompt(tests, i=0):
    return Prompt(f"p{i}", ({"role": "user", "content": "write add"},), {"tests": tests})


def test_rewards_and_what_became_of_each_response():
    good, bad, loop = (
        f"Sure.\n```python\n{ADD}```\nDone.",
        "```python\ndef add(a, b): return 3\n```",
        "while True: pass",
    )
    tests = ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]
    verdict = code(timeout=1.0).ask(
        [prompt(tests), prompt(tests[0], 1)], [[good, bad, loop], ["", bad, good]]
    )
    np.testing.assert_array_equal(verdict.reward, [[1, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(verdict.parts["tests"], [[1, 0.5, 0], [0, 1, 1]])
    outcomes = ("no_code", *sandbox.OUTCOMES)
    names = [
        [next(n for n in outcomes if verdict.parts[n][b, k]) for k in range(3)] for b in (0, 1)
    ]
    assert names == [["passed", "failed", "time"], ["no_code", "passed", "passed"]]
    np.testing.assert_array_equal(sum(verdict.parts[n] for n in outcomes), np.ones((2, 3)))
    share = code(timeout=1.0, partial=True).ask([prompt(tests)], [[good, bad, loop]])
    np.testing.assert_array_equal(share.reward, [[1, 0.5, 0]])


def test_the_last_python_block_is_the_code():
    text = "```python\na\n```\n```py\nb\n```\n```text\nout\n```"
    assert code_of(text, "auto") == code_of(text, "fenced") == "b\n"
    assert code_of("```\nc\n```", "auto") == "c\n" and code_of("x = 1", "auto") == "x = 1"
    assert code_of("x = 1", "fenced") is None and code_of(" \n", "auto") is None
    assert code_of("<think>```python\nbad\n```</think>```python\nd\n```", "auto") == "d\n"
    assert code_of("```python\na\n```", "whole") == "```python\na\n```"


@pytest.mark.parametrize("tests", [None, "", [], ["ok", ""], [1], {"a": "b"}])
def test_prompts_without_tests_are_refused_before_anything_is_sampled(tests):
    with pytest.raises(DataError, match=r"'p0' has no tests \(1 of 2\)"):
        code().check([prompt(tests), prompt("pass", 1)])


def test_equal_responses_are_run_once_and_have_one_verdict():
    """Whose luck is drawn anew in each process: equal texts would differ in half of the pairs."""
    lucky = "import os\ndef lucky(): return os.urandom(1)[0] % 2"
    tests = prompt("assert lucky() == 1"), prompt("assert lucky() == 0", 1)
    responses = [[lucky] * 12 + [ADD], [ADD, *[lucky] * 12]]
    reward = code().ask(list(tests), responses).reward
    assert len(set(reward[0, :12])) == len(set(reward[1, 1:])) == 1
    assert reward[0, 12] == reward[1, 0] == 0  # each row's verdicts are at their responses


def test_several_run_at_a_time():
    start = time.monotonic()
    sleep = [f"import time; time.sleep(0.8 + {n} / 1000)" for n in range(4)]
    code(workers=4).ask([prompt("pass")], [sleep])
    assert time.monotonic() - start < 2.6


def test_signals_of_the_run_do_not_reach_it():
    """It has a session of its own, so Ctrl-C is the run's to handle."""
    assert run("import os; assert os.getsid(0) == os.getpid()").outcome == "passed"
    assert signal.getsignal(signal.SIGINT) is not None
