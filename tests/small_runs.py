"""Whole runs of the smoke config, cut down further, on a 2 x 2 x 2 mesh: shared by the tests of the
loop."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.oracles.links import bradley_terry
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training import train as train_module
from ssppo_jax.types import Failed, Verdict

SMOKE = str(Path(__file__).parents[1] / "configs" / "smoke.py")
MESH = {"mesh.data": "2", "mesh.fsdp": "2", "mesh.tensor": "2"}
SMALL = {
    "data.prompt_buckets": "256",
    "sampling.max_new_tokens": "6",
    "sampling.num_samples": "3",
    "data.heldout": "4",
}


def configure(**overrides):
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return schema.load(SMOKE, MESH | SMALL | given)


def length_oracle(fails=lambda prompt: False):
    """Prefers longer texts; cannot judge the prompts `fails` says."""

    def ask(prompts, responses):
        score = np.array([[len(text) for text in group] for group in responses], np.float64)
        preference = bradley_terry(score, temperature=1.0)
        failed = tuple(Failed("no answer") if fails(p) else None for p in prompts)
        preference[[f is not None for f in failed]] = np.nan
        return Verdict(preference, None, failed)

    return Oracle(ask)


def byte_oracle(flat=lambda prompt: False):
    """Rewards the share of ASCII characters, by the part `ascii`; the prompts `flat` says get 1
    whatever the text."""

    def ask(prompts, responses):
        share = [
            [np.mean([c < "\x80" for c in text] or [0]) for text in group] for group in responses
        ]
        reward = np.where([[flat(p)] for p in prompts], 1.0, np.array(share)).astype(np.float32)
        return Verdict(None, reward, (None,) * len(prompts), {"ascii": reward / 2})

    return Oracle(ask)


def values(log, phase):
    return [record["values"] for record in log if record["phase"] == phase]


RECORDS = ("pairs.jsonl", "groups.jsonl", "opponents.jsonl")


def run_with(folder, oracle, **overrides):
    """result, metric log and the records trained on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: oracle)
        result = train_module.train(configure(checkpoint__export="false", **overrides), folder)
    rows = [
        json.loads(line)
        for f in folder.glob("*s.jsonl")
        if f.name in RECORDS
        for line in f.read_text().splitlines()
    ]
    return result, list(read_metrics(folder / "metrics.jsonl")), rows
