"""What `make faults` counts: a bad outcome is told apart, and each fault has its place."""

import json
import shutil
from functools import reduce
from importlib import import_module

import disks
import malformed
import pytest
import small
from children import Ended


@pytest.mark.parametrize("phase", disks.PHASES)
def test_each_phase_at_which_a_disk_fills_is_a_function_of_the_package(phase):
    place, function, _ = disks.PHASES[phase]
    assert callable(reduce(getattr, function.split("."), import_module(place)))


def test_the_fault_comes_at_the_call_asked_for(monkeypatch):
    said = []
    monkeypatch.setattr(disks, "fill", lambda: said.append("called"))
    disks.from_call("disks", "fill", 2, lambda: said.append("now"))
    for _ in range(3):
        disks.fill()
    assert said == ["called", "now", "called", "called"]


def test_there_are_malformed_inputs_enough_and_no_two_of_a_name():
    assert len(malformed.CASES) >= 150


@pytest.mark.parametrize(
    ("code", "err", "bad"),
    [
        (78, "error: --workdir=x: no such folder\n", None),
        (78, "no such folder\n", "without a message"),
        (78, "Traceback (most recent call last):\nerror: x\n", "shows a traceback"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "shows a traceback"),
        (0, "", "exit code 0"),
        (-11, "", "SIGSEGV"),
    ],
)
def test_a_refusal_is_a_code_and_a_message_without_a_traceback(code, err, bad):
    trouble = Ended(code, "", err, 1.0).trouble(1, 65, 78)
    assert trouble is None if bad is None else bad in trouble


def test_runs_that_differ_in_a_file_a_log_or_a_leftover_are_told_apart(tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    (whole / "policy").mkdir(parents=True)
    for name in ("policy/model.safetensors", "pairs.jsonl", "samples.jsonl", "result.json"):
        (whole / name).write_bytes(b"same")
    record = {"step": 1, "wall": {"time": 1.0}}
    (whole / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    shutil.copytree(whole, other)
    (other / "metrics.jsonl").write_text(json.dumps(record | {"wall": {"time": 2.0}}) + "\n")
    assert small.difference(other, whole, "pair") is None
    (other / "policy" / ".x.tmp-12").touch()
    assert small.difference(other, whole, "pair") == "policy/.x.tmp-12 is left"
    (other / "pairs.jsonl").write_bytes(b"else")
    (other / "metrics.jsonl").write_text(json.dumps(record | {"step": 2}) + "\n")
    assert "pairs.jsonl differs, metrics.jsonl differs" in small.difference(other, whole, "pair")
    (other / "result.json").unlink()
    assert "result.json is missing" in small.difference(other, whole, "pair")
