"""Trackers show what the log holds, once, and never hold up or end a run.

Stand-ins of the packages are here; `make trackers` runs the real ones and reads each back."""

import json
import logging
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.config import flatten
from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError, Interrupted
from ssppo_jax.runs import metrics, trackers
from ssppo_jax.runs.metrics import MetricLog, open_log, read_metrics
from ssppo_jax.runs.report import build
from ssppo_jax.runs.trackers import follow
from ssppo_jax.runs.trackers.mlflow import MLflow
from ssppo_jax.runs.trackers.protocol import Run, Tracker


class Recorder(Tracker):
    """Keeps what it is told; fails as often as `fails` says."""

    def __init__(self, fails=0):
        self.fails, self.records, self.calls, self.ids = fails, [], [], []

    def start(self, run):
        self.ids.append(run.id)
        return run.id or "its id"

    def log(self, step, values, time):
        if self.fails:
            self.fails -= 1
            raise ConnectionError("nobody there\nsecond line")
        self.records.append((step, values))

    def table(self, name, step, rows):
        self.calls.append((name, step, len(rows)))

    def attach(self, path):
        self.calls.append(path.name)

    def finish(self, how):
        self.calls.append(how)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits, and a report that costs nothing."""
    monkeypatch.setattr(follow, "FIRST_WAIT", 0.01)

    def report(folder):
        (folder / "report.html").write_text("<html></html>")
        return folder / "report.html"

    monkeypatch.setattr(build, "build_report", report)


def opened(folder, tracker, name="shown"):
    run = Run(folder, "project", "name", {"loss.name": "dpo"})
    return MetricLog(folder, [follow.Follower(name, tracker, run)])


def write(log, *steps, phase="train"):
    for step in steps:
        log.write(step=step, iteration=0, phase=phase, values={"loss": step / 4})


def state(folder, name="shown"):
    return json.loads((folder / "trackers" / f"{name}.json").read_text())


def test_every_record_is_shown_with_its_phase_and_without_what_is_no_number(tmp_path):
    tracker = Recorder()
    with opened(tmp_path, tracker) as log:
        write(log, 1)
        log.write(
            step=2,
            iteration=0,
            phase="judge",
            values={"bad": np.nan, "ok": 1.0},
            wall={"rate": 3.0},
        )
    assert tracker.records == [(1, {"train/loss": 0.25}), (2, {"judge/ok": 1.0, "judge/rate": 3.0})]
    assert tracker.calls == ["report.html", "finished"]


def test_a_resume_shows_no_step_twice_and_goes_on_in_the_same_run(tmp_path):
    first, second, third = Recorder(), Recorder(), Recorder()
    with pytest.raises(Interrupted), opened(tmp_path, first) as log:
        write(log, 1)
        offset = log.offset()
        write(log, 2, 3)
        raise Interrupted
    with pytest.raises(RuntimeError), opened(tmp_path, second) as log:
        log.truncate(offset)
        write(log, 2)
        write(log, 2, phase="evaluate")  # which the first did not have: a key that may change
        raise RuntimeError
    with opened(tmp_path, third) as log:
        log.truncate(offset)
        write(log, 2)
        write(log, 2, phase="evaluate")
        write(log, 3, 4)
    assert [step for step, _ in first.records] == [1, 2, 3]
    assert second.records == [(2, {"evaluate/loss": 0.5})]
    assert third.records == [(4, {"train/loss": 1.0})]
    assert (first.ids, second.ids, third.ids) == ([""], ["its id"], ["its id"])
    assert [t.calls[-1] for t in (first, second, third)] == ["interrupted", "failed", "finished"]
    assert "report.html" not in first.calls + second.calls


def test_a_run_that_begins_anew_in_its_folder_shows_no_step_twice(tmp_path):
    """A kill before the first checkpoint: the whole log is cut off and written again."""
    first, second = Recorder(), Recorder()
    with opened(tmp_path, first) as log:
        write(log, 1, 2)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "torn')
    with opened(tmp_path, second) as log:
        log.truncate(0)
        write(log, 1, 2, 3)
    assert [step for step, _ in first.records + second.records] == [1, 2, 3]


def test_damaged_files_do_not_stop_a_run(tmp_path, caplog):
    with opened(tmp_path, Recorder()) as log:
        write(log, 1)
        offset = log.offset()
        write(log, 2, 3)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"[1]\n" + lines[2])
    with opened(tmp_path, tracker := Recorder()) as log:
        log.truncate(offset)
        write(log, 2, 3)
    assert [step for step, _ in tracker.records] == [2]
    for content in ("{", '{"other": 1}', "[]"):
        (tmp_path / "trackers" / "shown.json").write_text(content)
        with opened(tmp_path, tracker := Recorder()) as log:
            write(log, 4)
        assert tracker.ids == [""]
    assert caplog.text.count("shown.json is damaged") == 3


def test_a_log_that_was_edited_does_not_end_a_run_that_is_done(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("edited by hand\n")
    with opened(tmp_path, Recorder()) as log:
        write(log, 1)
    assert re.search(r"shown lacks \d records of this run: JSONDecodeError", caplog.text)


def test_a_kill_while_a_record_is_sent_does_not_send_it_twice(tmp_path):
    seen = []

    class Killed(Recorder):
        def log(self, step, values, time):
            seen.append(state(tmp_path)["records"])  # what a start after the kill would read

    with opened(tmp_path, Killed()) as log:
        write(log, 1, 2)
    assert seen[0] >= 1 and seen[1] == 2


def test_a_tracker_that_is_down_is_told_once_counted_and_catches_up(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tracker = Recorder(fails=3)
    with opened(tmp_path, tracker) as log:
        write(log, 1, 2, 3)
        while tracker.fails:
            threading.Event().wait(0.005)
    assert [step for step, _ in tracker.records] == [1, 2, 3]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "fails (ConnectionError: nobody there); the run goes on" in caplog.text
    assert "failed 3 times and has all records" in caplog.text
    assert state(tmp_path)["failures"] == 3 and state(tmp_path)["records"] == 3


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3)])
def test_a_tracker_that_never_starts_leaves_the_runs_files_whole(tmp_path, caplog, error):
    class Broken(Recorder):
        def start(self, run):
            raise error

    with opened(tmp_path, Broken()) as log:
        write(log, 1, 2)
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 2
    assert f"lacks 2 records of this run: {type(error).__name__}" in caplog.text
    assert state(tmp_path)["records"] == 0 and state(tmp_path)["failures"] >= 1
    with opened(tmp_path, tracker := Recorder()) as log:  # it is up again when the run goes on
        log.truncate((tmp_path / "metrics.jsonl").stat().st_size)
        write(log, 3)
    assert [step for step, _ in tracker.records] == [1, 2, 3]


def test_a_tracker_that_hangs_is_not_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(metrics.PATIENCE, "finished", 0.05)
    release = threading.Event()

    class Hanging(Recorder):
        def log(self, step, values, time):
            release.wait(30)

    fast = Recorder()
    run = Run(tmp_path, "project", "name", {})
    followers = [follow.Follower("slow", Hanging(), run), follow.Follower("fast", fast, run)]
    with MetricLog(tmp_path, followers) as log:
        write(log, 1, 2)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "slow"]
    told = {key: state(tmp_path, "slow")[key] for key in ("failures", "error")}
    assert thread.daemon  # Python does not wait for it either
    release.set()
    thread.join(30)
    assert [step for step, _ in fast.records] == [1, 2]
    assert "slow does not end in time, and the run does not wait for it" in caplog.text
    assert told == {"failures": 1, "error": "it did not end in time"}


def test_the_responses_of_an_evaluation_are_shown_once(tmp_path):
    samples = tmp_path / "samples.jsonl"

    def evaluated(*iterations):
        rows = [{"iteration": i, "response": "a\nb"} for i in iterations for _ in range(2)]
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))

    evaluated(0)
    with opened(tmp_path, first := Recorder()) as log:
        write(log, 1)
        while not first.calls:
            threading.Event().wait(0.005)
        evaluated(0, 1)
        write(log, 2)
    evaluated(0, 1, 2)
    with opened(tmp_path, second := Recorder()) as log:
        write(log, 3)
    assert first.calls[0] == ("samples/iteration_0", 1, 2)
    assert [call[0] for call in first.calls[1:2]] == ["samples/iteration_1"]
    assert second.calls[0] == ("samples/iteration_2", 3, 2)


# ---- choosing ------------------------------------------------------------------------------------


def configured(report_to, **more):
    given = {"tracking.report_to": report_to} | more
    return schema.load("smoke", given)


@pytest.mark.parametrize(
    ("report_to", "told"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("wandb,wandb", "'wandb' stands there twice"),
        ("mine.py", "'mine.py' is a file; name its function"),
        ("no/such.py:Lines", "no file 'no/such.py'"),
    ],
)
def test_a_wrong_name_is_an_error_of_the_configuration(report_to, told):
    with pytest.raises(ConfigError, match=told):
        configured(report_to)


@pytest.mark.parametrize("name", ["report_to", "logger"])
def test_the_names_of_other_frameworks_are_answered(name):
    with pytest.raises(ConfigError, match=r"here it is tracking\.report_to"):
        schema.load("smoke", {name: "wandb"})


PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_before_anything_runs(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    told = rf"{name} needs the package {PACKAGES[name]}; type: pip install 'ssppo_jax\[{name}\]'"
    with pytest.raises(ConfigError, match=told):
        open_log(configured(name), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_of_ones_own_file_is_a_tracker(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssppo_jax.runs.trackers.protocol import Tracker\n"
        "class Lines(Tracker):\n"
        "    def start(self, run):\n"
        "        self.file = open(run.folder / 'lines.txt', 'a', encoding='utf-8')\n"
        "        print(run.project, run.name, run.config['seed'], file=self.file)\n"
        "        return run.name\n"
        "    def log(self, step, values, time):\n"
        "        print(step, values['train/loss'], file=self.file)\n"
        "    def finish(self, how):\n"
        "        self.file.close()\n"
        "def number():\n"
        "    return 3\n"
    )
    folder = tmp_path / "run"
    config = configured(f"{file}:Lines", **{"tracking.project": "mine", "seed": "7"})
    with open_log(config, folder) as log:
        write(log, 1)
    assert (folder / "lines.txt").read_text() == "mine run 7\n1 0.25\n"
    with pytest.raises(ConfigError, match="number makes a int; name a class that inherits"):
        open_log(configured(f"{file}:number"), folder)


def test_what_sounds_like_a_secret_is_not_sent(tmp_path):
    config = configured("")
    (follower,) = trackers.followers({"shown": Recorder()}, config, tmp_path)
    assert flatten(config).keys() >= follower.run.config.keys() >= {"seed", "loss.name"}
    config.oracle.unlock().api_key = "hidden"
    (follower,) = trackers.followers({"shown": Recorder()}, config, tmp_path)
    assert "hidden" not in follower.run.config.values()


def test_other_processes_show_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    assert isinstance(open_log(configured(""), tmp_path), metrics.NoLog)


# ---- the four ------------------------------------------------------------------------------------


class Calls:
    """A stand-in of an object of another package: keeps the calls of its methods in one list."""

    def __init__(self, calls, **fields):
        self.calls = calls
        vars(self).update(fields)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


def calls_of(calls, name):
    return [(args, kwargs) for called, args, kwargs in calls if called == name]


def run_once(folder, name, steps=(1, 2), cut=None):
    (folder / "samples.jsonl").write_text('{"iteration": 0, "response": "a|b"}\n')
    with open_log(configured(name, **{"tracking.run_name": "first"}), folder) as log:
        if cut is not None:
            log.truncate(cut)
        write(log, steps[0])
        offset = log.offset()
        write(log, *steps[1:])
    assert state(folder, name)["failures"] == 0, state(folder, name)["error"]
    return offset


@pytest.fixture
def tensorboard(monkeypatch):
    boards = []

    def writer(folder):
        boards.append(Calls([], folder=folder))
        return boards[-1]

    module = types.SimpleNamespace(SummaryWriter=writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    return boards


def test_tensorboard_is_made_anew_from_the_whole_log_at_a_resume(tmp_path, tensorboard):
    offset = run_once(tmp_path, "tensorboard")
    stale = tmp_path / "tensorboard" / "events.old"
    stale.parent.mkdir()
    stale.touch()
    run_once(tmp_path, "tensorboard", (2, 3), cut=offset)
    first, second = [
        [args[:3] for args, _ in calls_of(board.calls, "add_scalar")] for board in tensorboard
    ]
    assert first == [("train/loss", 0.25, 1), ("train/loss", 0.5, 2)]
    assert second == [*first, ("train/loss", 0.75, 3)]
    assert not stale.exists() and tensorboard[1].folder == str(stale.parent)
    (config, table), *_ = zip(*calls_of(tensorboard[1].calls, "add_text"), strict=False)
    assert "| seed | 0 |" in config[1]
    assert table[0] == "samples/iteration_0" and "| 0 | a\\|b |" in table[1]
    assert calls_of(tensorboard[1].calls, "close")


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    calls, settings = [], types.SimpleNamespace(mode="offline", api_key=None, sync_dir="d")
    module = Calls(calls, settings=settings, logged_in=False, id="w1", url="")
    module.login = lambda **_: module.logged_in
    module.setup = lambda: types.SimpleNamespace(settings=settings)
    module.Table = lambda columns, data: (columns, data)
    module.Html = lambda text, inject: text
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_step_as_a_value_and_continues_by_its_id(tmp_path, wandb):
    offset = run_once(tmp_path, "wandb")
    run_once(tmp_path, "wandb", (2, 3), cut=offset)
    (_, first), (_, second) = calls_of(wandb.calls, "init")
    assert (first["id"], second["id"], first["name"]) == (None, "w1", "first")
    assert first["project"] == "ssppo_jax" and first["config"]["loss.name"] == "s_sppo"
    logged = [args[0] for args, _ in calls_of(wandb.calls, "log")]
    numbers = [(x["step"], x["train/loss"]) for x in logged if "train/loss" in x]
    assert numbers == [(1, 0.25), (2, 0.5), (3, 0.75)]
    tables = [x for x in logged if "samples/iteration_0" in x]
    assert [x["samples/iteration_0"] for x in tables] == [(["iteration", "response"], [[0, "a|b"]])]
    assert [x["report"] for x in logged if "report" in x] == 2 * ["<html></html>"]
    assert calls_of(wandb.calls, "define_metric")[1] == (("*",), {"step_metric": "step"})
    assert calls_of(wandb.calls, "finish") == 2 * [((), {"exit_code": 0})]


def test_wandb_without_a_login_says_what_to_type_and_does_not_ask(tmp_path, wandb):
    wandb.settings.mode = "online"
    with pytest.raises(ConfigError, match=r"wandb login, or set WANDB_API_KEY, or WANDB_MODE"):
        open_log(configured("wandb"), tmp_path)
    wandb.settings.api_key = "k"
    run_once(tmp_path, "wandb")


@pytest.fixture
def mlflow(monkeypatch):
    calls = []
    entities = types.SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    module = types.ModuleType("mlflow")
    client = Calls(calls, info=types.SimpleNamespace(run_id="m1"), experiment_id="e1")
    module.MlflowClient, module.entities = lambda: client, entities
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls


def test_mlflow_gets_batches_that_it_takes_and_no_parameter_twice(tmp_path, mlflow):
    offset = run_once(tmp_path, "mlflow")
    begun = len(calls_of(mlflow, "log_batch"))
    run_once(tmp_path, "mlflow", (2, 3), cut=offset)
    batches = [kwargs for _, kwargs in calls_of(mlflow, "log_batch")]
    parameters = [x for batch in batches for x in batch.get("params", ())]
    assert len(parameters) == len(dict(parameters)) > 100
    assert max(len(batch.get("params", ())) for batch in batches) <= 100
    assert not any("params" in batch for batch in batches[begun:])
    numbers = [(x[0], x[1], x[3]) for batch in batches for x in batch.get("metrics", ())]
    assert numbers == [("train/loss", 0.25, 1), ("train/loss", 0.5, 2), ("train/loss", 0.75, 3)]
    assert calls_of(mlflow, "log_table")[0][0][1:] == (
        {"iteration": [0], "response": ["a|b"]},
        "samples/iteration_0.json",
    )
    assert len(calls_of(mlflow, "create_run")) == 1
    assert calls_of(mlflow, "set_terminated") == 2 * [(("m1", "FINISHED"), {})]
    config = json.loads(calls_of(mlflow, "log_text")[0][0][1])
    assert config["loss.name"] == "s_sppo"


def test_a_start_of_mlflow_that_failed_halfway_leaves_one_run(mlflow, monkeypatch):
    def refuse(*_):
        raise OSError("no artifact store")

    tracker = MLflow()
    run = Run(Path("r"), "project", "name", {"loss.name": "dpo"})
    with monkeypatch.context() as patch:
        patch.setattr(tracker.mlflow.MlflowClient(), "log_text", refuse, raising=False)
        for _ in range(2):
            with pytest.raises(OSError):
                tracker.start(run)
    assert tracker.start(run) == "m1"
    assert len(calls_of(mlflow, "create_run")) == 1


def test_mlflow_gets_names_that_it_takes(tmp_path, mlflow):
    with open_log(configured("mlflow"), tmp_path) as log:
        log.write(step=1, iteration=0, phase="judge", values={"mine.py:f (1)": 1.0})
    assert calls_of(mlflow, "log_batch")[-1][1]["metrics"][0][0] == "judge/mine.py:f _1_"


def test_trackio_continues_by_name_and_leaves_standard_output_alone(tmp_path, monkeypatch, capsys):
    calls = []
    module = Calls(calls)

    def init(**kwargs):
        print("* Trackio project initialized")
        calls.append(("init", (), kwargs))
        return Calls(calls, name=kwargs["name"])

    module.init, module.Table = init, lambda columns, data: (columns, data)
    monkeypatch.setitem(sys.modules, "trackio", module)
    offset = run_once(tmp_path, "trackio")
    run_once(tmp_path, "trackio", (2, 3), cut=offset)
    (_, first), (_, second) = calls_of(calls, "init")
    assert first["name"] == second["name"] and first["name"].startswith("first-")
    logged = [(kwargs["step"], args[0]) for args, kwargs in calls_of(calls, "log")]
    numbers = [(step, x["train/loss"]) for step, x in logged if "train/loss" in x]
    assert numbers == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert len(calls_of(calls, "log_artifact")) == len(calls_of(calls, "finish")) == 2
    assert capsys.readouterr().out == ""
