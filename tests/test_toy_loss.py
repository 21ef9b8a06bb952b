"""A loss in one new file is selected, explained, overridden, swept and trained with from the
command line.

In processes of their own, from a copy of the package that differs from it by that one file.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssppo_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[1]
TOY = '''
import jax

from ssppo_jax.losses.core import clean, sequence_logratio, sum_terms, weighted_mean


def toy(policy, batch, *, boost: float = 2.0):
    """boost * softplus(r_l - r_w): log 2 times the boost at pi_t.

    Args:
        boost: how much louder than DPO it is
    """
    policy, batch = clean(policy, batch)
    r = sequence_logratio(policy.logp, batch.ref_logp, batch.mask)
    value = boost * jax.nn.softplus(r[:, 1] - r[:, 0])
    return sum_terms({"toy": weighted_mean(value, batch.weight)})


LOSSES = {"toy": toy}
'''
SWEEP = """

def sweep(add):
    for boost in (0.5, 4.0):
        add({"loss.name": "toy", "loss.boost": boost})
"""
SMALL = {
    "data.heldout": 4,
    "data.prompt_buckets": 256,
    "train.iterations": 1,
    "train.prompts_per_iteration": 8,
    "checkpoint.export": "false",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """command("train", ...) runs the copy with configs/smoke.py plus a sweep; returns the finished
    process."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(
        ROOT / "ssppo_jax", folder / "ssppo_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "ssppo_jax/losses/toy.py").write_text(TOY)
    (folder / "smoke.py").write_text((ROOT / "configs/smoke.py").read_text() + SWEEP)
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {
        "XLA_FLAGS": quick,
        "SSPPO_CACHE": str(folder / "cache"),
        "SSPPO_PROGRESS": "off",
    }

    def run(name, *arguments):
        line = [sys.executable, "-m", "ssppo_jax", name, "--config=smoke.py", *arguments]
        return subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def test_help_shows_its_keyword_the_value_given_and_its_meaning(command):
    done = command("train", "--config.loss.name=toy", "--config.loss.boost=3", "--help")
    assert done.returncode == 0, done.stderr
    assert "--config.loss.boost=3.0\n        how much louder than DPO it is" in done.stdout
    assert "--config.loss.name=toy" in done.stdout and "--config.loss.beta" not in done.stdout


def test_a_misspelt_keyword_of_it_is_refused_with_the_right_one(command):
    done = command("train", "--config.loss.name=toy", "--config.loss.bost=3", "--help")
    assert done.returncode == 78 and "did you mean 'loss.boost'?" in done.stderr


def test_a_sweep_goes_over_its_keyword(command):
    done = command("sweep", "--workdir=swept", "--dry-run")
    assert done.returncode == 0, done.stderr
    runs = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[-4:-2] for line in runs] == [
        ["--config.loss.name=toy", f"--config.loss.boost={boost}"] for boost in (0.5, 4.0)
    ]


def test_it_trains(command, tmp_path):
    """The first step is taken at pi_t, where it is boost * log 2."""
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    done = command(
        "train", f"--workdir={tmp_path}", "--config.loss.name=toy", "--config.loss.boost=3", *small
    )
    assert done.returncode == 0, done.stderr
    first = next(
        record["values"]
        for record in read_metrics(tmp_path / "metrics.jsonl")
        if record["phase"] == "train"
    )
    assert first["loss"] == first["term/toy"] == pytest.approx(3 * math.log(2), rel=1e-4)
    assert first["update_norm"] > 0
    assert 0 <= json.loads((tmp_path / "result.json").read_text())["win_rate"] <= 1
