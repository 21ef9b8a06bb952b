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
from ssppo_jax.training import evaluation as evaluation_module
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


def share_programs(patch):
    """Let starts of one config share their programs: JAX knows a function that it has compiled."""
    kept = {}
    for module, name in (
        (train_module, "make_train_step"),
        (train_module, "make_score_step"),
        (evaluation_module, "make_row_step"),
    ):
        make = getattr(module, name)
        patch.setattr(
            module,
            name,
            lambda *args, name=name, make=make, **how: kept.setdefault(name, make(*args, **how)),
        )


def logged(folder, phase):
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == phase]


def steps_of(folder, name):
    return [r["values"][name] for r in logged(folder, "train")]


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
        share_programs(patch)
        with pytest.MonkeyPatch.context() as stop:
            stop.setattr(train_module, "take_rows", asked_to_stop)
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


PACKED = {"train__padding_free": True, "train__max_token_len": 1024}  # a step's rows in one stream


@pytest.mark.parametrize(
    ("steps", "how"), [(10, {}), (2, PACKED)], ids=["ten padded", "two packed"]
)
def test_steps_of_sft_are_those_of_trl(tiny, tmp_path, steps, how):
    rows = [
        {"id": r["id"], "prompt": r["prompt"], "completion": r["chosen"]}
        for r in golden_rows()[: 4 * steps]
    ]
    rows += [{"id": r["id"], "prompt": r["prompt"], "completion": r["chosen"]} for r in HELD_OUT]
    config = config_of(tmp_path, rows, tiny, loss__name="sft", **how)
    result = train_in_order(config, tmp_path / "run")
    found = steps_of(tmp_path / "run", "loss")
    np.testing.assert_allclose(found, GOLDEN["sft/loss"][:steps], rtol=0, atol=1e-4)
    assert set(result) == {"prompts", "loss", "loss_low", "loss_high"}


def test_s_sppo_learns_from_given_pairs_through_its_gate_and_its_repulsion(tiny, tmp_path):
    """The first step is taken at pi_t, where the loss has a closed form (arXiv 2606.01561, eq. 3.1
    and 3.2): a certain winner of two has win rate 0.75, which the pair's similarity draws to 0.5.
    """
    rows = golden_rows()[:8]
    settings = {"loss__beta": 0.05, "loss__repulsion_weight": 0.5, "train__term_norms": True}
    config = config_of(
        tmp_path,
        rows + HELD_OUT,
        tiny,
        loss__name="s_sppo",
        similarity__name="token_jaccard",
        **settings,
    )
    train_in_order(config, tmp_path / "run")
    texts = [[r[side][0]["content"].split() for side in ("chosen", "rejected")] for r in rows]
    similarity = np.array([len({*a} & {*b}) / len({*a} | {*b}) for a, b in texts])
    assert 0 < similarity.mean() < 1
    target = 0.25 * (1 - similarity)
    records = (tmp_path / "run" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    found = np.array([json.loads(line)["target"] for line in records])
    np.testing.assert_allclose(found - 0.5, np.stack([target, -target], 1), atol=1e-6)
    first, second = (r["values"] for r in logged(tmp_path / "run", "train"))
    regression = np.mean((target[:4] / 0.05) ** 2)
    assert first["term/regression"] == pytest.approx(regression, rel=1e-4)
    assert first["similarity/semantic"] == pytest.approx(similarity[:4].mean(), rel=1e-5)
    repulsion = 0.5 * first["similarity/hidden"]
    assert first["loss"] == pytest.approx(regression + repulsion, rel=1e-4)
    assert first["grad_norm/regression"] > 0 and first["grad_norm/repulsion"] > 0
    assert second["rewards/margins"] > 0


def test_held_out_rows_are_measured_against_the_initial_policy_with_intervals(dpo):
    folder, result = dpo
    seen = [r["values"] for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == "evaluate"]
    assert len(seen) == 2 and seen[1] == result
    assert seen[0]["loss"] == pytest.approx(np.log(2))
    # two programs, for a batch and for a row, may round the same log-probs differently
    assert seen[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(seen[1]["rewards/margins"]) > 1e-4
    assert result["prompts"] == 3
    assert result["rewards/margins_low"] <= result["rewards/margins"]
    assert result["rewards/margins"] == pytest.approx(
        result["rewards/chosen"] - result["rewards/rejected"], abs=1e-5
    )
    # the loss of a mean margin is below the mean loss (Jensen), and near it for margins this small
    bound = -np.log(1 / (1 + np.exp(-result["rewards/margins"])))
    assert bound <= result["loss"] + 1e-6 < bound + 0.1
