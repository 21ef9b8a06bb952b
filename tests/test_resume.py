"""A run killed with SIGKILL in any phase and started again ends exactly where the uninterrupted run
does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Runs `train` with one function replaced by a version that kills the process at its n-th call.
KILLER = """
import os, signal, sys
from ssppo_jax import train, runtime
from ssppo_jax.rollout import collect
from ssppo_jax.rollout import score as score_phase
from ssppo_jax.weights import checkpoint
from ssppo_jax.__main__ import main

def deadly(owner, name, call, number=signal.SIGKILL):
    original, calls = getattr(owner, name), []
    def replacement(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, replacement)

where = os.environ["KILL"]
if where == "asked":         # SIGTERM in the first iteration's training: saves, exits with 75
    deadly(train, "take_rows", 1, signal.SIGTERM)
elif where == "sampling":    # the second iteration's samples are being made
    deadly(collect, "sample_prompts", 1)
elif where == "scoring":     # they are sampled and judged, the rollout is not yet written
    deadly(score_phase, "score_rows", 1)
elif where == "saving":      # a checkpoint in the second iteration: arrays written, manifest not
    deadly(checkpoint, "write_manifest", 1)
elif where == "other keys":  # not a kill: the negative control, random keys that were not restored
    key = runtime.Runtime.key
    runtime.Runtime.key = lambda self, stream, index=0: key(self, stream, index + 1000)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    environment = os.environ | {
        "XLA_FLAGS": "",
        "SSPPO_CACHE": str(shared / "models"),
        "SSPPO_PROGRESS": "off",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

    def run(workdir, kill="never", expect=0, kind=()):
        command = [
            sys.executable,
            "-c",
            KILLER,
            "train",
            "--config=configs/smoke.py",
            f"--workdir={workdir}",
        ]
        overrides = ["--config.data.heldout=2", *kind]
        done = subprocess.run(
            command + overrides,
            cwd=ROOT,
            env=environment | {"KILL": kill},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == expect, done.stderr[-3000:]
        return workdir

    return run


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("whole"))


def _log(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "wall"} for r in records]


def _files(workdir, rows="pairs"):
    names = ["policy/model.safetensors", f"{rows}.jsonl", "samples.jsonl", "result.json"]
    return {name: (workdir / name).read_bytes() for name in names}


def test_stopped_and_killed_in_three_phases_ends_like_the_uninterrupted_run(
    launch, uninterrupted, tmp_path
):
    launch(tmp_path, kill="asked", expect=75)
    for phase in ("sampling", "scoring", "saving"):
        launch(tmp_path, kill=phase, expect=-signal.SIGKILL)
    launch(tmp_path)
    assert _files(tmp_path) == _files(uninterrupted)
    assert _log(tmp_path) == _log(uninterrupted)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ("groups", ["loss.name=sspo", "sampling.num_samples=3"]),
        ("opponents", ["loss.name=nash_md", "sampling.num_samples=2", "train.reference=initial"]),
    ],
)
def test_groups_and_opponents_continue_as_pairs_do(rows, kind, launch, tmp_path):
    kind = [
        f"--config.{setting}"
        for setting in (*kind, "train.prompts_per_iteration=8", "train.batch_size=4")
    ]
    whole = launch(tmp_path / "whole", kind=kind)
    launch(tmp_path / "killed", kill="asked", expect=75, kind=kind)
    launch(tmp_path / "killed", kill="saving", expect=-signal.SIGKILL, kind=kind)
    killed = launch(tmp_path / "killed", kind=kind)
    assert _files(killed, rows) == _files(whole, rows)
    assert _log(killed) == _log(whole)
    assert any(r["phase"] == "train" and r["values"]["update_norm"] > 0 for r in _log(whole))


def test_a_resume_that_loses_its_random_keys_is_told_apart(launch, uninterrupted, tmp_path):
    launch(tmp_path, kill="asked", expect=75)
    launch(tmp_path, kill="other keys")
    assert (
        _files(tmp_path)["policy/model.safetensors"]
        != _files(uninterrupted)["policy/model.safetensors"]
    )


def test_the_run_trained_something(uninterrupted):
    log = _log(uninterrupted)
    train = [r["values"] for r in log if r["phase"] == "train"]
    assert len(train) == 4
    assert all(t["update_norm"] > 0 for t in train)
    assert {"generate", "judge", "score", "train", "iteration", "evaluate"} == {
        r["phase"] for r in log
    }
