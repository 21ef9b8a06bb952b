"""Jobs of submitit drive a stand-in for the trainer, on its local executor and on a stand-in for
SLURM's commands. `make slurm` runs the real ones."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from swept import write_swept

from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError
from ssppo_jax.sweep import grid, submit
from ssppo_jax.sweep.outcome import Job
from ssppo_jax.sweep.run import sweep

TRAINER = """
import json, os, signal, sys, time
args = dict(arg[2:].split("=", 1) for arg in sys.argv[1:])
folder = args["workdir"]
with open(folder + "/runs", "a") as f:
    f.write("x")
beta = float(args["config.loss.beta"])
print("working", flush=True)
if beta == 13:
    sys.exit("error: beta is unlucky")
if beta == 9:
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
if beta == 7 and not os.path.exists(folder + "/saved"):
    def save(*_):
        open(folder + "/saved", "w").close()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    with open(folder + "/ready", "w") as f:
        f.write(str(os.getppid()))
    time.sleep(100)
record = {"phase": "evaluate", "step": 0, "iteration": 0, "values": {"win_rate": beta}}
open(folder + "/metrics.jsonl", "w").write(json.dumps(record | {"wall": {"time": 0.0}}) + "\\n")
open(folder + "/result.json", "w").write("{}")
"""


@pytest.fixture(autouse=True)
def trainer(tmp_path, monkeypatch):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(grid, "TRAIN", (sys.executable, "-S", "-E", str(script)))
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(submit, "LATE", 0.2)


def swept(folder, *betas):
    return write_swept(folder, f"for beta in {betas}:\n    add({{'loss.beta': beta}})")


def once_ready(file, act):
    """In the background: call act(content of the file) once it is there."""

    def wait():
        until = time.monotonic() + 120
        while not (file.is_file() and file.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        act(int(file.read_text()))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_preempted_job_saves_and_continues_and_the_others_are_as_always(tmp_path):
    """USR2 is what submitit has SLURM send before a preemption and at the time limit."""
    out = tmp_path / "out"
    ready = out / "loss.beta=7.0,seed=0" / "ready"
    thread = once_ready(ready, lambda parent: os.kill(parent, signal.SIGUSR2))
    assert sweep(swept(tmp_path, 7.0, 13.0, 9.0), out, {}, launcher="local", jobs=3) == 1
    thread.join()
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done", "failed", "failed"]
    assert (ready.parent / "saved").is_file() and (ready.parent / "runs").read_text() == "xx"
    assert runs[0]["values"] == {"evaluate/win_rate": 7.0}
    assert runs[1]["reason"] == "exit 1: error: beta is unlucky"
    assert runs[2]["reason"] == "the job ended without an exit code: working"


def test_a_job_that_someone_stopped_is_submitted_again(tmp_path):
    """SIGTERM alone, as `scancel --signal=TERM` or a preemption without the user's signal."""
    out = tmp_path / "out"
    ready = out / "loss.beta=7.0,seed=0" / "ready"
    thread = once_ready(ready, lambda parent: os.kill(parent, signal.SIGTERM))
    assert sweep(swept(tmp_path, 7.0), out, {}, launcher="local") == 0
    thread.join()
    assert (ready.parent / "runs").read_text() == "xx"


def test_a_stop_of_the_sweep_lets_its_jobs_save_and_submits_no_other(tmp_path):
    out, spec = tmp_path / "out", swept(tmp_path, 7.0, 0.1)
    ready = out / "loss.beta=7.0,seed=0" / "ready"
    thread = once_ready(ready, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep(spec, out, {}, launcher="local") == 75
    thread.join()
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["stopped", "pending"]
    assert (ready.parent / "saved").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--launcher=slurm"], "Could not detect"),
        (["--launcher=local", "--job_option=partitoin=gpu"], "partitoin"),
        (["--launcher=local", "--job_option=partition"], "KEY=VALUE"),
        (["--job_option=partition=gpu"], "--launcher=slurm or local"),
        (["--launcher=ray"], "invalid choice: 'ray'"),
    ],
)
def test_what_cannot_be_launched_is_told_before_anything_is_submitted(
    tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.setenv("PATH", "/nonexistent")
    out = tmp_path / "out"
    code = main(["sweep", f"--config={swept(tmp_path, 0.1)}", f"--workdir={out}", *options])
    assert code == 78 and words in capsys.readouterr().err
    assert not list(out.glob("*/runs"))


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssppo_jax\[slurm\]'"):
        sweep(swept(tmp_path, 0.1), tmp_path / "out", {}, launcher="local")


def test_jobs_that_the_queue_does_not_know_are_over_and_silence_says_nothing(tmp_path, monkeypatch):
    def job(name):
        paths = type("Paths", (), {"result_pickle": tmp_path / f"{name}_result"})
        one = type("Job", (), {"job_id": name, "paths": paths, "task": lambda self, _: self})()
        return Job(None, one, 0)

    def squeue(body):
        script = tmp_path / "squeue"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = [job("12_0"), job("12_1"), job("13")]
    names = lambda: [one.work.job_id for one in submit._ended(jobs, slurm=True)]  # noqa: E731
    squeue('test "$4" = --jobs=12,13 && echo 12_1 && echo 13')
    assert names() == ["12_0"]
    squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert names() == ["12_0", "12_1", "13"]
    squeue("echo 'Unable to contact slurm controller' >&2; exit 1")
    assert names() == []
    squeue("echo 12_0; echo 12_1; echo 13")
    (tmp_path / "13_result").touch()  # stopped and saved, and SLURM will start it again
    assert names() == []


class Lost:
    """A job that is over and leaves no result, as one that SLURM cancels while it waits."""

    paths = SimpleNamespace(result_pickle=Path("/nowhere"))

    def done(self):
        return True

    def task(self, _):
        return self


def test_jobs_that_leave_no_result_are_waited_for_together(tmp_path, monkeypatch):
    """A sweep of a hundred jobs that is stopped must not take ten seconds for each of them."""
    executor = SimpleNamespace(batch=nullcontext, submit=lambda task: Lost())
    monkeypatch.setattr(submit, "_executor", lambda *_: executor)
    monkeypatch.setattr(submit, "LATE", 1.0)
    spec, out = swept(tmp_path, *(beta / 10 for beta in range(1, 13))), tmp_path / "out"
    start = time.perf_counter()
    assert sweep(spec, out, {}, launcher="local", jobs=12) == 1
    assert time.perf_counter() - start < 10
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    wanted = "the job ended without an exit code: nothing was printed"
    assert {run["reason"] for run in runs} == {wanted}
