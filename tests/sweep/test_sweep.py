"""Sweeps drive a stand-in for the trainer: a script that takes the same command line and ends as it
is told to."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from swept import write_swept

from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import UserError
from ssppo_jax.sweep import cores, grid
from ssppo_jax.sweep import run as sweep

ROOT = Path(__file__).parents[2]
TRAINER = """
import glob, json, os, signal, sys, time
args = dict(arg[2:].split("=", 1) for arg in sys.argv[1:])
folder = args["workdir"]
with open(folder + "/runs", "a") as f:
    f.write("x")
beta = float(args.get("config.loss.beta", 0.05))
print("working", flush=True)
if beta == 13:
    print("Traceback\\nerror: beta is unlucky\\n", file=sys.stderr)
    sys.exit(70)
if beta == 9:
    os.kill(os.getpid(), signal.SIGKILL)
if beta == 7 and not os.path.exists(folder + "/saved"):
    def save(*_):
        open(folder + "/saved", "w").close()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    open(folder + "/ready", "w").close()
    time.sleep(20)
if beta == 8:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(folder + "/ready", "w") as f:
        f.write(str(os.getpid()))
    time.sleep(20)
if beta == 5:
    time.sleep(20)
if beta == 12:
    sys.exit(75)
if beta == 6:
    with open(folder + "/cores", "w") as f:
        f.write(json.dumps([os.environ.get("NPROC"), sorted(os.sched_getaffinity(0))]))
    deadline = time.time() + 10
    while len(glob.glob(os.path.dirname(folder) + "/*/cores")) < 2:
        if time.time() > deadline:
            sys.exit(3)
        time.sleep(0.02)
if beta != 11:
    rate = 0.5 + beta + 0.02 * int(args["config.seed"])
    with open(folder + "/metrics.jsonl", "w") as f:
        for i in range(3):
            values = {"win_rate": rate - 0.1 * (2 - i)}
            record = {"phase": "evaluate", "step": i, "iteration": i, "values": values}
            record["wall"] = {"time": 0.0}
            f.write(json.dumps(record) + "\\n")
    open(folder + "/result.json", "w").write(json.dumps({"win_rate": rate, "prompts": 8}))
sys.exit(1 if beta == 0.3 else 0)
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(grid, "TRAIN", (sys.executable, "-S", "-E", str(script)))
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(cores, "platform", lambda: "cpu")


@pytest.fixture
def swept(tmp_path):
    return partial(write_swept, tmp_path)


def record(workdir):
    return json.loads((workdir / "sweep.json").read_text())


def attempts(folder):
    return len((folder / "runs").read_text())


def test_every_point_runs_once_per_seed_and_the_table_has_mean_and_standard_error(
    tmp_path, swept, trainer, capsys
):
    spec, out = (
        swept("for beta in (0.1, 0.2):\n    add({'loss.beta': beta})", "SEEDS = (0, 1, 3)"),
        tmp_path / "out",
    )
    assert sweep.sweep(spec, out, {}) == 0
    names = [f"loss.beta={b},seed={s}" for b in (0.1, 0.2) for s in (0, 1, 3)]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(names)
    assert [(run["point"]["loss.beta"], run["seed"]) for run in record(out)["runs"][:3]] == [
        (0.1, 0),
        (0.2, 0),
        (0.1, 1),
    ]
    first, second = record(out)["table"]
    # rates 0.60, 0.62, 0.66: mean 0.62667, sample deviation 0.030551, over sqrt(3)
    assert first["point"] == {"loss.beta": 0.1} and second["point"] == {"loss.beta": 0.2}
    rate = first["metrics"]["evaluate/win_rate"]
    assert rate["mean"] == pytest.approx(0.626667, abs=1e-6) and rate["n"] == first["n"] == 3
    assert rate["standard_error"] == pytest.approx(0.017638, abs=1e-6)
    text = (out / "sweep.md").read_text()
    assert "| 0.1 | 0.627 ± 0.018 | 3 |  |  |" in text and text.strip() in capsys.readouterr().out
    for name in ("sweep.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_failing_run_is_recorded_with_its_last_line_and_the_others_still_run(
    tmp_path, swept, trainer
):
    spec, out = (
        swept("for beta in (13.0, 9.0, 11.0, 0.1):\n    add({'loss.beta': beta})"),
        tmp_path / "out",
    )
    assert sweep.sweep(spec, out, {}) == 1
    runs = {run["point"]["loss.beta"]: run for run in record(out)["runs"]}
    assert [runs[b]["status"] for b in (13.0, 9.0, 11.0, 0.1)] == [
        "failed",
        "failed",
        "failed",
        "done",
    ]
    assert runs[13.0]["reason"] == "exit 70: error: beta is unlucky"
    assert runs[9.0]["reason"] == "SIGKILL: working"
    assert (
        runs[11.0]["reason"] == "exit 0: working"
    )  # no result.json: not done, whatever the exit code says
    text = (out / "sweep.md").read_text()
    assert "| 13.0 | failed | 0 | 1 |  |" in text and "| 0.1 | 0.600 (one seed) | 1 |  |  |" in text
    assert "- loss.beta=13.0,seed=0: exit 70: error: beta is unlucky" in text


def test_finished_runs_of_other_points_are_said_to_be_left_out(tmp_path, swept, trainer, capsys):
    out = tmp_path / "out"
    assert sweep.sweep(swept("add({'loss.beta': 0.1})"), out, {}) == 0
    assert "Not in this table" not in (out / "sweep.md").read_text() + capsys.readouterr().out
    # of another length: Python knows a compiled file's source by its second and its size
    assert sweep.sweep(swept("add({'loss.beta': 0.25})"), out, {}) == 0
    told = "Not in this table: 1 finished run(s) of other points or seeds, such as loss.beta=0.1"
    assert told in (out / "sweep.md").read_text() and told in capsys.readouterr().out


def test_the_same_command_keeps_finished_runs_and_tries_failed_ones_again(tmp_path, swept, trainer):
    spec, out = swept("for beta in (13.0, 0.1):\n    add({'loss.beta': beta})"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}) == 1
    assert sweep.sweep(spec, out, {}) == 1
    assert (
        attempts(out / "loss.beta=0.1,seed=0") == 1 and attempts(out / "loss.beta=13.0,seed=0") == 2
    )
    log = (out / "loss.beta=13.0,seed=0/output.log").read_text()
    assert log.count("unlucky") == 2  # the log of the first attempt is kept


def test_the_reason_of_a_failure_is_never_an_earlier_attempts(
    tmp_path, swept, trainer, monkeypatch
):
    spec, out = swept("add({'loss.beta': 13.0})"), tmp_path / "out"
    sweep.sweep(spec, out, {})
    monkeypatch.setattr(grid, "TRAIN", (sys.executable, "-S", "-E", "-c", "raise SystemExit(3)"))
    sweep.sweep(spec, out, {})
    assert record(out)["runs"][0]["reason"] == "exit 3: nothing was printed"


def test_a_run_with_a_result_is_done_even_if_what_came_after_it_failed(tmp_path, swept, trainer):
    assert sweep.sweep(swept("add({'loss.beta': 0.3})"), tmp_path / "out", {}) == 0


def when_ready(files, *actions):
    """In the background: once the files exist, the actions, a moment apart."""

    def wait():
        for _ in range(500):
            if all(file.is_file() for file in files):
                break
            time.sleep(0.02)
        for action in actions:
            action()
            time.sleep(0.2)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_run_lets_it_save_and_the_same_command_goes_on(
    tmp_path, swept, trainer, number, capsys
):
    spec, out = (
        swept("for beta in (0.1, 7.0, 0.2):\n    add({'loss.beta': beta})"),
        tmp_path / "out",
    )
    at_work = out / "loss.beta=7.0,seed=0"
    thread = when_ready([at_work / "ready"], lambda: os.kill(os.getpid(), number))
    start = time.perf_counter()
    assert sweep.sweep(spec, out, {}) == 75
    thread.join()
    assert time.perf_counter() - start < 15 and (at_work / "saved").is_file()
    assert [run["status"] for run in record(out)["runs"]] == ["done", "stopped", "pending"]
    assert "| 7.0 | not run | 0 |  | 1 |" in (out / "sweep.md").read_text()
    assert "the same command continues" in capsys.readouterr().err
    assert sweep.sweep(spec, out, {}) == 0
    assert [run["status"] for run in record(out)["runs"]] == ["done"] * 3
    assert attempts(out / "loss.beta=0.1,seed=0") == 1 and attempts(at_work) == 2


def test_a_run_that_was_stopped_on_its_own_stops_the_sweep(tmp_path, swept, trainer):
    spec, out = swept("for beta in (12.0, 0.1):\n    add({'loss.beta': beta})"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}) == 75
    assert [run["status"] for run in record(out)["runs"]] == ["stopped", "pending"]


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path, swept, trainer):
    spec, out = swept("add({'loss.beta': 8.0})"), tmp_path / "out"
    ready = out / "loss.beta=8.0,seed=0/ready"

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    thread = when_ready([ready], interrupt, interrupt)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(spec, out, {})
    thread.join()
    assert time.perf_counter() - start < 15  # it ignores being told, and works for 20 s
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)
    (run,) = record(out)["runs"]
    assert run["status"] == "stopped" and run["seconds"] > 0


def test_runs_at_a_time_end_in_the_table_that_one_after_the_other_gives(tmp_path, swept, trainer):
    spec = swept("for beta in (0.1, 13.0, 0.2):\n    add({'loss.beta': beta})", "SEEDS = (0, 1)")
    assert (
        sweep.sweep(spec, tmp_path / "one", {})
        == sweep.sweep(spec, tmp_path / "many", {}, jobs=4)
        == 1
    )
    assert (tmp_path / "one/sweep.md").read_text() == (tmp_path / "many/sweep.md").read_text()
    one, many = (
        [
            {k: v for k, v in run.items() if k not in ("folder", "command", "seconds")}
            for run in record(out)["runs"]
        ]
        for out in (tmp_path / "one", tmp_path / "many")
    )
    assert one == many


def test_two_jobs_are_two_runs_at_work_each_on_its_part_of_the_cores(tmp_path, swept, trainer):
    """Each of the two runs ends only once the other has started."""
    spec, out = swept("add({'loss.beta': 6.0})", "SEEDS = (0, 1)"), tmp_path / "out"
    before = os.sched_getaffinity(0)
    assert sweep.sweep(spec, out, {}, jobs=2) == 0
    used = [json.loads((out / f"loss.beta=6.0,seed={s}/cores").read_text()) for s in (0, 1)]
    assert used == [[str(len(before)), share] for share in cores.shares(sorted(before), 2)]
    assert os.sched_getaffinity(0) == before


def test_on_an_accelerator_jobs_keep_all_cores_and_are_told_to_share_its_memory(
    tmp_path, swept, trainer, monkeypatch, capsys
):
    monkeypatch.setattr(cores, "platform", lambda: "gpu")
    monkeypatch.delenv("NPROC", raising=False)
    spec, out = swept("add({'loss.beta': 6.0})", "SEEDS = (0, 1)"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}, jobs=2) == 0
    everything = [None, sorted(os.sched_getaffinity(0))]
    assert [json.loads((out / f"loss.beta=6.0,seed={s}/cores").read_text()) for s in (0, 1)] == [
        everything
    ] * 2
    assert "2 runs share the gpu" in (err := capsys.readouterr().err) and "MEM_FRACTION=0.45" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_every_run_at_work_and_starts_no_other(tmp_path, swept, trainer, number):
    spec, out = (
        swept("for beta in (7.0, 0.1):\n    add({'loss.beta': beta})", "SEEDS = (0, 1)"),
        tmp_path / "out",
    )
    folders = [out / f"loss.beta=7.0,seed={s}" for s in (0, 1)]
    thread = when_ready([f / "ready" for f in folders], lambda: os.kill(os.getpid(), number))
    assert sweep.sweep(spec, out, {}, jobs=2) == 75
    thread.join()
    assert all((f / "saved").is_file() for f in folders)
    assert [run["status"] for run in record(out)["runs"]] == [
        "stopped",
        "done",
        "stopped",
        "pending",
    ]
    assert sweep.sweep(spec, out, {}, jobs=2) == 0


def test_a_run_that_was_stopped_on_its_own_stops_those_beside_it(tmp_path, swept, trainer):
    spec, out = (
        swept("for beta in (5.0, 12.0, 0.1):\n    add({'loss.beta': beta})"),
        tmp_path / "out",
    )
    start = time.perf_counter()
    assert sweep.sweep(spec, out, {}, jobs=2) == 75
    assert time.perf_counter() - start < 15  # beta 5 works for 20 s, and dies of being told to stop
    assert [run["status"] for run in record(out)["runs"]] == ["stopped", "stopped", "pending"]


def test_a_runs_seconds_are_those_of_all_its_attempts(tmp_path, swept, trainer):
    spec, out = swept("for beta in (0.1, 13.0):\n    add({'loss.beta': beta})"), tmp_path / "out"
    sweep.sweep(spec, out, {})
    done, failed = (run["seconds"] for run in record(out)["runs"])
    assert done > 0 and failed > 0
    sweep.sweep(spec, out, {})
    assert record(out)["runs"][0]["seconds"] == done and record(out)["runs"][1]["seconds"] > failed


def test_two_sweeps_in_one_folder_the_second_refuses(tmp_path, swept, trainer):
    with RunLock(tmp_path / "out"), pytest.raises(UserError, match="another run is using"):
        sweep.sweep(swept("add()"), tmp_path / "out", {})


def test_a_dry_run_lists_commands_and_touches_neither_disk_nor_device(tmp_path, swept):
    """In its own process: an accelerator belongs to one process, and a sweep that took it would
    starve its runs."""
    spec, out = (
        swept("for beta in (0.1, 0.2):\n    add({'loss.beta': beta})", "SEEDS = (0, 1)"),
        tmp_path / "a b",
    )
    code = (
        "import sys; from ssppo_jax.__main__ import main; from jax._src import xla_bridge\n"
        "status = main(sys.argv[1:]); sys.exit(99 if xla_bridge._backends else status)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "sweep",
        "--dry-run",
        f"--config={spec}",
        f"--workdir={out}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and not out.exists()
    assert shlex.split(lines[3])[-3:] == [
        "--config.loss.beta=0.2",
        "--config.seed=1",
        f"--workdir={out}/loss.beta=0.2,seed=1",
    ]
