"""Whole runs on given responses against TRL's trainers (`golden/make_trl_offline.py`)."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.errors import Interrupted
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training import train as train_module
from ssppo_jax.weights.source import resolve

GOLDEN = np.load(Path(__file__).parent / "golden" / "trl_offline.npz")
HELD_OUT = [
    {"id": f"held-out-{i}", "prompt": f"{i}?", "chosen": "Yes.", "rejected": "No, no."}
    for i in range(3)
]
SETTINGS = {
    "data.source.name": "answered",
    "data.heldout": "3",
    "data.max_prompt_length": "256",
    "data.prompt_buckets": "256",
    "sampling.max_new_tokens": "64",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "1e-3",
    "optimizer.schedule": "constant",
    "optimizer.warmup_ratio": "0",
    "train.iterations": "1",
    "train.batch_size": "4",
    "train.micro_batches": "1",
    "train.prompts_per_iteration": "0",
    "checkpoint.every_steps": "0",
    "checkpoint.export": "false",
    "train.term_norms": "false",
}

pytestmark = pytest.mark.usefixtures("own_cache")


def golden_rows():
    return [row | {"id": f"{i:03d}"} for i, row in enumerate(json.loads(str(GOLDEN["rows"])))]


@pytest.fixture(scope="module")
def tiny(own_cache, tmp_path_factory):
    """The tiny model with the template that TRL was given."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(resolve("random:tiny"), folder)
    (folder / "chat_template.jinja").write_text(str(GOLDEN["template"]), encoding="utf-8")
    return folder


def config_of(folder, rows, model, **overrides):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    place = {"data.source.path": str(path), "model.source": str(model)}
    return schema.load("smoke", SETTINGS | place | given, 1)


def train_in_order(config, folder):
    """Train on the rows in the order of their ids; hold out those that TRL did not see."""
    with pytest.MonkeyPatch.context() as patch:
        prepare = train_module.prepare_prompts

        def parted(*args, **how):
            found = prepare(*args, **how)
            every = sorted(found.train + found.heldout, key=lambda e: e.prompt.id)
            held = [e for e in every if e.prompt.id.startswith("held-out")]
            return found._replace(train=every[: len(every) - len(held)], heldout=held)

        patch.setattr(jax, "device_count", lambda: 1)  # its programs compile in half the time
        patch.setattr(train_module, "prepare_prompts", parted)
        patch.setattr(train_module.GivenCollector, "portion", lambda self, iteration: self.prompts)
        patch.setattr(
            train_module.data,
            "epoch_batches",
            lambda config, iteration, rows: list(np.arange(rows).reshape(-1, 4)),
        )
        return train_module.train(config, folder)


def steps_of(folder, name):
    log = list(read_metrics(folder / "metrics.jsonl"))
    return [r["values"][name] for r in log if r["phase"] == "train"]


@pytest.fixture(scope="module")
def dpo(tiny, tmp_path_factory):
    """A run of DPO that is told to stop before its fifth step, and continued."""
    folder = tmp_path_factory.mktemp("dpo")
    config = config_of(folder, golden_rows() + HELD_OUT, tiny, loss__name="dpo", loss__beta=0.1)
    take, calls = train_module.take_rows, []

    def asked_to_stop(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "take_rows", asked_to_stop)
        with pytest.raises(Interrupted):
            train_in_order(config, folder / "run")
    (rollout,) = (folder / "run" / "rollouts").iterdir()
    written = rollout.stat().st_mtime_ns
    result = train_in_order(config, folder / "run")
    assert rollout.stat().st_mtime_ns == written, "the rows were scored again"
    return folder / "run", result


def test_ten_steps_of_offline_dpo_are_those_of_trl(dpo):
    """The run was stopped on the way, so what it kept is what it needs."""
    folder, _ = dpo
    np.testing.assert_allclose(steps_of(folder, "loss"), GOLDEN["dpo/loss"], rtol=0, atol=1e-4)
    for name in ("rewards/margins", "rewards/accuracies"):
        found, wanted = steps_of(folder, name)[1:], GOLDEN[f"dpo/{name}"][1:]
        # in the first step every margin is 0 but for rounding, so its sign says nothing
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


def test_ten_steps_of_sft_are_those_of_trl(tiny, tmp_path):
    rows = [
        {"id": r["id"], "prompt": r["prompt"], "completion": r["chosen"]} for r in golden_rows()
    ]
    rows += [{"id": r["id"], "prompt": r["prompt"], "completion": r["chosen"]} for r in HELD_OUT]
    config = config_of(tmp_path, rows, tiny, loss__name="sft")
    result = train_in_order(config, tmp_path / "run")
    found = steps_of(tmp_path / "run", "loss")
    np.testing.assert_allclose(found, GOLDEN["sft/loss"], rtol=0, atol=1e-4)
    assert set(result) == {"prompts", "loss", "loss_low", "loss_high"}


def test_held_out_rows_are_measured_against_the_initial_policy_with_intervals(dpo):
    folder, result = dpo
    seen = [r["values"] for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == "evaluate"]
    assert len(seen) == 2 and seen[1] == result
    assert seen[0]["loss"] == pytest.approx(np.log(2)) and seen[0]["rewards/margins"] == 0
    assert result["prompts"] == 3
    assert result["rewards/margins_low"] <= result["rewards/margins"]
    assert result["rewards/margins"] == pytest.approx(
        result["rewards/chosen"] - result["rewards/rejected"], abs=1e-5
    )
    # the loss of a mean margin is below the mean loss (Jensen), and near it for margins this small
    bound = -np.log(1 / (1 + np.exp(-result["rewards/margins"])))
    assert bound <= result["loss"] + 1e-6 < bound + 0.1
