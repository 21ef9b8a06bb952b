"""A full disk ends a command with a message that names the file, and loses nothing.

The kernel plays the full disk: it lets no file grow beyond RLIMIT_FSIZE.
"""

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import sys

import numpy as np
import pytest

from ssppo_jax import files, schema
from ssppo_jax.__main__ import main
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import ConfigError, UserError, WriteError
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.runs.metrics import MetricLog, read_metrics
from ssppo_jax.runs.trackers.follow import Follower
from ssppo_jax.runs.trackers.protocol import Run, Tracker
from ssppo_jax.weights import hf


@contextlib.contextmanager
def full_disk(room=0):
    """No file grows beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def named(path):
    return pytest.raises(WriteError, match=rf"^{path} could not be written: File too large; free")


def test_a_file_written_whole_is_named_and_the_old_one_stands(tmp_path):
    path = tmp_path / "f.json"
    files.write_json(path, "old")
    with full_disk(10), named(path):
        files.write_json(path, "n" * 50)
    assert files.read_json(path) == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["f.json"]  # the half gives its room back


def test_a_record_that_was_torn_is_cut_off_so_that_the_next_one_is_whole(tmp_path):
    """A thread that judges ahead may fail here; the run asks again and appends to the same file."""
    path = tmp_path / "verdicts.jsonl"
    store = KeyedStore(path, lambda fields: fields["v"])
    store.add({"a": {"v": 1}})
    with full_disk(path.stat().st_size + 9), named(path):
        store.add({"b": {"v": 2}})
    assert "b" not in store.known
    store.add({"b": {"v": 3}})
    again = KeyedStore(path, lambda fields: fields["v"])
    assert (again.known, again.torn) == ({"a": 1, "b": 3}, False)


@pytest.mark.parametrize("room", [0, 30])
def test_a_line_of_the_log_that_does_not_fit_is_an_error_with_its_name(tmp_path, room):
    record = {"step": 1, "iteration": 0, "phase": "train", "values": {"loss": 1.0}}
    with MetricLog(tmp_path) as log:
        log.write(**record)
        log.offset()
        path = tmp_path / "metrics.jsonl"
        told = pytest.raises(WriteError, match=rf"^{path} could not be written: .*; free")
        with full_disk(path.stat().st_size + room), told:
            log.write(**record)
    assert len(list(read_metrics(path))) == 1


def test_a_tracker_that_cannot_be_written_for_is_told_and_the_log_goes_on(tmp_path, caplog):
    class Board(Tracker):
        def start(self, run):
            return ""

        def log(self, step, values, time):
            raise OSError(errno.ENOSPC, "No space left on device")

    follower = Follower("board", Board(), Run(tmp_path, "project", "name", {}))
    log = MetricLog(tmp_path, [follower])
    for step in (1, 2):
        log.write(step=step, iteration=0, phase="train", values={"loss": 1.0})
    log.close("failed")
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 2
    assert caplog.text.count("No space left on device); the run goes on") == 1


@pytest.mark.parametrize("room", [100, 3000])
def test_an_export_that_does_not_fit_is_named_and_leaves_nothing(tmp_path, room):
    arch = tiny_arch(vocab_size=8)
    rng, params = np.random.default_rng(0), {}
    for leaf in hf.names.leaves(arch):
        shape = hf.names.shape(leaf, arch)
        hf.insert(params, leaf.path, rng.standard_normal(shape).astype(np.float32))
    with full_disk(room), pytest.raises(WriteError, match=rf"^{tmp_path / 'out'} could not be"):
        hf.save_params(params, arch, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_unless_someone_is_writing_it(tmp_path):
    left, at_work = tmp_path / ".out.tmp-000000000001", tmp_path / ".out.tmp-000000000002"
    for folder in (left, at_work, tmp_path / ".other.tmp-000000000003"):
        folder.mkdir()
        (folder / "half").touch()
    descriptor = os.open(at_work, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with hf.new_folder(tmp_path / "out") as tmp:
        (tmp / "whole").touch()
        with hf.new_folder(tmp_path / "out", replace=True):  # another process does the same
            assert tmp.is_dir()
    os.close(descriptor)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".other.tmp-000000000003",
        at_work.name,
        "out",
    ]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyError), hf.new_folder(folder, replace=True):
        raise KeyError
    assert [p.name for p in folder.iterdir()] == ["old"]
    with hf.new_folder(folder, replace=True) as tmp:
        (tmp / "new").touch()
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_models_that_a_new_run_would_replace_are_not_its_own(tmp_path):
    (tmp_path / "policy").mkdir()
    config = schema.load("smoke", {})
    run_folder.claim(tmp_path, config, "1")  # an empty one is nobody's
    (tmp_path / "config.json").unlink()
    (tmp_path / "policy" / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"has no config\.json, but holds policy"):
        run_folder.claim(tmp_path, config, "1")


def test_the_lock_holds_where_its_holders_name_does_not_fit(tmp_path):
    with full_disk(), RunLock(tmp_path), pytest.raises(UserError, match="another run is using"):
        RunLock(tmp_path).__enter__()


def test_a_finished_run_says_its_result_on_a_full_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / "cache"))
    command = ["train", "--config=smoke", "--config.train.micro_batches=1"]
    workdir = tmp_path / "run"
    run_folder.claim(workdir, schema.load("smoke", {"train.micro_batches": "1"}), "1")
    files.write_json(workdir / "result.json", {"win_rate": 0.625})
    with full_disk():
        assert main([*command, f"--workdir={workdir}"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"win_rate": 0.625}
    assert f"no report: {workdir / 'report.html'} could not be written" in said.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has the device")
def test_an_output_that_takes_nothing_is_an_error_without_a_traceback(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["--version"]) == 74
    assert capsys.readouterr().err.startswith("error: standard output could not be written: No sp")
