import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from ssppo_jax.distributed import stop as lifecycle
from ssppo_jax.distributed.stop import RunLock, StopSignal
from ssppo_jax.errors import UserError

HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def foreign_holder(tmp_path):
    """Another process that holds tmp_path/run.lock until the test ends."""
    command = [sys.executable, "-S", "-c", HOLD, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        yield holder
        holder.kill()


def write_record(folder, **record):
    (folder / "run.lock").write_text(json.dumps(record))


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_second_run_in_one_folder_refuses_and_names_the_first(tmp_path):
    named = rf"pid {os.getpid()} on host {socket.gethostname()}"
    with (
        RunLock(tmp_path / "run"),
        pytest.raises(UserError, match=named),
        RunLock(tmp_path / "run"),
    ):
        pytest.fail("two runs in one folder")


def test_a_refused_run_leaves_the_lock_with_its_holder(tmp_path):
    with RunLock(tmp_path):
        for _ in range(2):
            with pytest.raises(UserError), RunLock(tmp_path):
                pass


def test_the_lock_is_free_after_the_run_even_when_it_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path), RunLock(tmp_path / "other"):
        pass


def test_the_record_of_a_killed_run_does_not_block_the_next(tmp_path):
    write_record(tmp_path, pid=os.getpid(), host="elsewhere", since="long ago")
    with RunLock(tmp_path) as lock:
        assert json.loads(lock.path.read_text())["host"] == socket.gethostname()


def test_a_lock_kept_by_a_dead_runs_orphan_is_taken_over(tmp_path, foreign_holder):
    write_record(tmp_path, pid=dead_pid(), host=socket.gethostname(), since="long ago")
    with RunLock(tmp_path), pytest.raises(UserError, match=f"pid {os.getpid()}"), RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "record", [{"pid": 1, "host": None}, {"pid": None, "host": "elsewhere"}, None]
)
def test_a_lock_that_may_be_alive_is_never_taken_over(tmp_path, foreign_holder, record):
    if record is not None:
        fill = {"pid": record["pid"] or dead_pid(), "host": record["host"] or socket.gethostname()}
        write_record(tmp_path, **fill)
    with pytest.raises(UserError, match="another run is using"), RunLock(tmp_path):
        pytest.fail("took a live lock")


def test_a_lock_of_another_users_live_run_is_never_taken_over(
    tmp_path, foreign_holder, monkeypatch
):
    def not_yours(pid, number):
        raise PermissionError

    write_record(tmp_path, pid=4321, host=socket.gethostname())
    monkeypatch.setattr(lifecycle.os, "kill", not_yours)
    with pytest.raises(UserError, match="pid 4321"), RunLock(tmp_path):
        pytest.fail("took a live lock")


def test_a_lock_on_a_replaced_file_is_not_mistaken_for_the_lock(tmp_path, monkeypatch):
    flock, replaced = fcntl.flock, []

    def replace_then_lock(descriptor, how):
        if not replaced:
            replaced.append((tmp_path / "run.lock").unlink())
        flock(descriptor, how)

    monkeypatch.setattr(lifecycle.fcntl, "flock", replace_then_lock)
    with RunLock(tmp_path) as lock:
        assert os.path.samestat(os.fstat(lock._descriptor), lock.path.stat())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_interrupts_nothing(number, capfd):
    with StopSignal() as stop:
        assert not stop.requested and not stop.agreed()
        signal.raise_signal(number)
        assert stop.requested and stop.agreed()
    message = capfd.readouterr().err
    assert number.name in message
    assert ("Ctrl-C again" in message) == (number == signal.SIGINT)


def test_a_signal_is_noted_also_where_nobody_can_be_told(monkeypatch):
    """As when the terminal that the run was started in is gone."""

    def gone(descriptor, text):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lifecycle.os, "write", gone)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested


def test_a_second_ctrl_c_stops_at_once_but_a_second_sigterm_does_not():
    with StopSignal():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_restored_even_after_an_error():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) not in before
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("others", [False, True])
def test_processes_agree_to_stop_when_any_was_asked(monkeypatch, others):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        lifecycle.multihost_utils, "process_allgather", lambda mine: np.array([mine, others])
    )
    with StopSignal() as stop:
        assert stop.agreed() is others
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed() is True
