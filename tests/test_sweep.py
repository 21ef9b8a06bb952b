"""Sweeps drive a stand-in for the trainer: a script that takes the same command line and ends as it is told to."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ssppo_jax.train
from ssppo_jax import run_folder, schema, sweep
from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.lifecycle import RunLock
from ssppo_jax.sample_phase import Interrupted

ROOT = Path(__file__).parents[1]
BASE = """
from ssppo_jax.schema import base_config, select

def get_config():
    config = base_config()
    select(config, "loss", "s_sppo", beta=0.05)
    return config

"""
TRAINER = """
import json, os, signal, sys, time
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
if beta == 12:
    sys.exit(75)
if beta != 11:
    rate = 0.5 + beta + 0.02 * int(args["config.seed"])
    open(folder + "/result.json", "w").write(json.dumps({"win_rate": rate}))
sys.exit(1 if beta == 0.3 else 0)
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, "-S", "-E", str(script)))
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)


@pytest.fixture
def swept(tmp_path):
    """Writes a swept file; returns its path."""

    def write(body, seeds=""):
        path = tmp_path / "grid.py"
        indented = "\n".join("    " + line for line in body.splitlines())
        path.write_text(f"{BASE}{seeds}\ndef sweep(add):\n{indented}\n")
        return str(path)

    return write


def record(workdir):
    return json.loads((workdir / "sweep.json").read_text())


def attempts(folder):
    return len((folder / "runs").read_text())


def test_every_point_runs_once_per_seed_and_the_table_has_mean_and_standard_error(tmp_path, swept, trainer, capsys):
    spec, out = swept("for beta in (0.1, 0.2):\n    add({'loss.beta': beta})", "SEEDS = (0, 1, 3)"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}) == 0
    names = [f"loss.beta={b},seed={s}" for b in (0.1, 0.2) for s in (0, 1, 3)]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(names)
    first, second = record(out)["table"]
    # rates 0.60, 0.62, 0.66: mean 0.62667, sample deviation 0.030551, over sqrt(3)
    assert first["point"] == {"loss.beta": 0.1} and second["point"] == {"loss.beta": 0.2}
    assert first["mean"] == pytest.approx(0.626667, abs=1e-6) and first["n"] == 3
    assert first["standard_error"] == pytest.approx(0.017638, abs=1e-6)
    text = (out / "sweep.md").read_text()
    assert "| 0.1 | 0.627 ± 0.018 | 3 |  |  |" in text and text.strip() in capsys.readouterr().out
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_run_is_recorded_with_its_last_line_and_the_others_still_run(tmp_path, swept, trainer):
    spec, out = swept("for beta in (13.0, 9.0, 11.0, 0.1):\n    add({'loss.beta': beta})"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}) == 1
    runs = {run["point"]["loss.beta"]: run for run in record(out)["runs"]}
    assert [runs[b]["status"] for b in (13.0, 9.0, 11.0, 0.1)] == ["failed", "failed", "failed", "done"]
    assert runs[13.0]["reason"] == "exit 70: error: beta is unlucky"
    assert runs[9.0]["reason"] == "SIGKILL: working"
    assert runs[11.0]["reason"] == "exit 0: working"  # no result.json: not done, whatever the exit code says
    text = (out / "sweep.md").read_text()
    assert "| 13.0 | failed | 0 | 1 |  |" in text and "| 0.1 | 0.600 (one seed) | 1 |  |  |" in text
    assert "- loss.beta=13.0,seed=0: exit 70: error: beta is unlucky" in text


def test_the_same_command_keeps_finished_runs_and_tries_failed_ones_again(tmp_path, swept, trainer):
    spec, out = swept("for beta in (13.0, 0.1):\n    add({'loss.beta': beta})"), tmp_path / "out"
    assert sweep.sweep(spec, out, {}) == 1
    assert sweep.sweep(spec, out, {}) == 1
    assert attempts(out / "loss.beta=0.1,seed=0") == 1 and attempts(out / "loss.beta=13.0,seed=0") == 2
    log = (out / "loss.beta=13.0,seed=0/output.log").read_text()
    assert log.count("unlucky") == 2  # the log of the first attempt is kept


def test_the_reason_of_a_failure_is_never_an_earlier_attempts(tmp_path, swept, trainer, monkeypatch):
    spec, out = swept("add({'loss.beta': 13.0})"), tmp_path / "out"
    sweep.sweep(spec, out, {})
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, "-S", "-E", "-c", "raise SystemExit(3)"))
    sweep.sweep(spec, out, {})
    assert record(out)["runs"][0]["reason"] == "exit 3: nothing was printed"


def test_a_run_with_a_result_is_done_even_if_what_came_after_it_failed(tmp_path, swept, trainer):
    assert sweep.sweep(swept("add({'loss.beta': 0.3})"), tmp_path / "out", {}) == 0


def when_ready(file, *actions):
    """In the background: once the file exists, the actions, a moment apart."""

    def wait():
        for _ in range(500):
            if file.is_file():
                break
            time.sleep(0.02)
        for action in actions:
            action()
            time.sleep(0.2)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_run_lets_it_save_and_the_same_command_goes_on(tmp_path, swept, trainer, number, capsys):
    spec, out = swept("for beta in (0.1, 7.0, 0.2):\n    add({'loss.beta': beta})"), tmp_path / "out"
    at_work = out / "loss.beta=7.0,seed=0"
    thread = when_ready(at_work / "ready", lambda: os.kill(os.getpid(), number))
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

    thread = when_ready(ready, interrupt, interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(spec, out, {})
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)


def test_every_point_that_cannot_run_is_told_before_any_runs(tmp_path, swept, trainer):
    spec = swept(
        "add({'loss.beta': 0.1})\nadd({'loss.bta': 0.1})\nadd({'loss.beta': -1.0})\nadd({'loss.beta': 'big'})\n"
        "add({'loss.beta': '0.2'})\nadd({'train.epochs': 1.5})\nadd({'loss.pair_reduction': 'men'})",
        "SEEDS = (0, 1)",
    )
    with pytest.raises(ConfigError) as error:
        sweep.sweep(spec, tmp_path / "out", {})
    message = str(error.value)
    assert message.startswith("6 problem(s)")  # once each, not once per seed
    assert "no such key; did you mean 'loss.beta'?" in message
    assert "loss.beta=-1.0: must be 0 or more" in message
    assert "--config.loss.beta=big: expected a number" in message
    assert "loss.beta takes float, as in 0.2, not '0.2'" in message
    assert "--config.train.epochs=1.5: expected a whole number" in message
    assert "pair_reduction='men'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "seeds", "overrides", "words"),
    [
        ("pass", "", {}, r"sweep\(add\) added nothing; call add\(\)"),
        ("add({'loss.beta': 0.1})\nadd(**{'loss.beta': 0.1})", "", {}, "added twice: loss.beta=0.1"),
        ("add(seed=1)", "", {}, r"write SEEDS = \(0, 1, 2\)"),
        ("add()", "SEEDS = (0, 0)", {}, r"SEEDS=\(0, 0\): must be distinct"),
        ("add()", "SEEDS = (-1,)", {}, "must be distinct whole numbers from 0"),
        ("add()", "SEEDS = ()", {}, "must be distinct"),
        ("add()", "SEEDS = (0, 1)", {"seed": "3"}, r"--config\.seed: .* sweeps it; leave it out"),
        ("add({'loss.beta': 0.1})", "", {"loss.beta": "0.2"}, r"--config\.loss\.beta: .* sweeps it"),
        ("add({'loss.beta': 0.1})", "", {"loss.bta": "0.2"}, "^1 problem.*\n.*no such key"),
        ("x = {}['a']", "", {}, r"grid\.py:\d+: KeyError: 'a'"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(tmp_path, swept, body, seeds, overrides, words):
    with pytest.raises(ConfigError, match=words):
        sweep.plan(swept(body, seeds), tmp_path / "out", overrides)


def test_a_config_without_a_grid_is_refused(tmp_path):
    (tmp_path / "c.py").write_text(BASE)
    with pytest.raises(ConfigError, match=r"defines no sweep\(add\)"):
        sweep.plan(str(tmp_path / "c.py"), tmp_path / "out", {})


def test_a_folder_of_another_configuration_is_not_taken_for_this_sweeps(tmp_path, swept):
    spec, out = swept("add({'loss.beta': 0.1})"), tmp_path / "out"
    folder = out / "loss.beta=0.1,seed=0"
    run_folder.claim(folder, schema.load(spec, {"loss.beta": "0.1"}), "1")
    (folder / "result.json").write_text('{"win_rate": 0.7}')
    assert sweep.plan(spec, out, {})[0].win_rate == 0.7
    with pytest.raises(ConfigError, match=r"train\.epochs: the run has 1, given 2; give a new --workdir"):
        sweep.plan(spec, out, {"train.epochs": "2"})


def test_two_sweeps_in_one_folder_the_second_refuses(tmp_path, swept, trainer):
    with RunLock(tmp_path / "out"), pytest.raises(UserError, match="another run is using"):
        sweep.sweep(swept("add()"), tmp_path / "out", {})


def test_what_a_sweep_runs_is_what_train_understands(tmp_path, swept, monkeypatch):
    """Typed values, a re-selected component, a NumPy number and a list survive the way over the command line."""
    spec = swept(
        "import numpy as np\n"
        "add({'loss.name': 'dpo', 'loss.beta': np.float64(0.1), 'pairs.include_self': False})\n"
        "add({'data.prompt_buckets': [128, 512], 'train.epochs': np.int64(2)})\n"
        "add()",
        "SEEDS = (5,)",
    )
    given = []

    def train(config, workdir):
        given.append((config, workdir))
        raise Interrupted

    monkeypatch.setattr(ssppo_jax.train, "train", train)
    runs = sweep.plan(spec, tmp_path / "out", {"eval.num_samples": "1"})
    for run in runs:
        assert run.command[:4] == [sys.executable, "-m", "ssppo_jax", "train"]
        assert main(run.command[3:]) == 75
    (dpo, folder), (buckets, _), (plain, _) = given
    assert dpo.loss.to_dict() == {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0} and not dpo.pairs.include_self
    assert folder == tmp_path / "out/loss.name=dpo,loss.beta=0.1,pairs.include_self=False,seed=5"
    assert buckets.data.prompt_buckets == (128, 512) and buckets.train.epochs == 2
    assert plain.loss.beta == 0.05 and {c.seed for c, _ in given} == {5}
    assert {c.eval.num_samples for c, _ in given} == {1}


def test_without_seeds_a_point_has_the_configs_own(tmp_path, swept):
    spec = swept("add()")
    assert [run.seed for run in sweep.plan(spec, tmp_path, {})] == [0]
    (run,) = sweep.plan(spec, tmp_path, {"seed": "4"})
    assert run.seed == 4 and run.folder.name == "as-configured,seed=4"


def test_odd_values_make_distinct_safe_folder_names(tmp_path, swept):
    spec = swept("for name in ('a/b', 'a_b', 'a b', '../x', 'y' * 300):\n    add({'model.source': name})")
    names = [run.folder.name for run in sweep.plan(spec, tmp_path, {})]
    assert len(set(names)) == 5 and all(len(name) < 200 and not set(name) & set("/ ") for name in names)
    assert names[1] == "model.source=a_b,seed=0"


def test_a_dry_run_lists_commands_and_touches_neither_disk_nor_device(tmp_path, swept):
    """In its own process: an accelerator belongs to one process, and a sweep that took it would starve its runs."""
    spec, out = swept("for beta in (0.1, 0.2):\n    add({'loss.beta': beta})", "SEEDS = (0, 1)"), tmp_path / "a b"
    code = (
        "import sys; from ssppo_jax.__main__ import main; from jax._src import xla_bridge\n"
        "status = main(sys.argv[1:]); sys.exit(99 if xla_bridge._backends else status)"
    )
    command = [sys.executable, "-c", code, "sweep", "--dry-run", f"--config={spec}", f"--workdir={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and not out.exists()
    assert shlex.split(lines[3])[-3:] == [
        "--config.loss.beta=0.2",
        "--config.seed=1",
        f"--workdir={out}/loss.beta=0.2,seed=1",
    ]


def test_summary_counts_what_is_missing_and_a_plot_is_drawn_even_of_failures(tmp_path):
    def run(beta, seed, status, rate=None):
        return sweep.Run({"loss.beta": beta}, seed, tmp_path / f"{beta}{seed}", [], status, rate, "why | so")

    runs = [
        run(1, 0, "done", 0.6),
        run(1, 1, "failed"),
        run(2, 0, "failed"),
        run(3, 0, "pending"),
        run(3, 1, "stopped"),
    ]
    rows = [(r["mean"], r["standard_error"], r["n"], r["failed"], r["unfinished"]) for r in sweep.summary(runs)]
    assert rows == [(0.6, None, 1, 1, 0), (None, None, 0, 1, 0), (None, None, 0, 0, 2)]
    lines = sweep.table(runs).splitlines()
    assert lines[2:5] == [
        "| 1 | 0.600 (one seed) | 1 | 1 |  |",
        "| 2 | failed | 0 | 1 |  |",
        "| 3 | not run | 0 |  | 2 |",
    ]
    sweep._plot(runs, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
