"""Fitting on pairs: what is exported is what was fitted, and the oracles read it."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import ConfigError, Interrupted
from ssppo_jax.oracles.pairrm import pairrm
from ssppo_jax.oracles.reward_model import reward_model
from ssppo_jax.rollout.rows import batch_of as rows_as_batch
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training.fit import loop
from ssppo_jax.training.fit.head import both_orders, bradley_terry, pairs_of
from ssppo_jax.training.fit.loop import fit
from ssppo_jax.training.fit.temperature import calibrate
from ssppo_jax.types import Given, Policy, Prompt, Samples
from ssppo_jax.weights.ranker import MARKERS, load_ranker, open_ranker, save_ranker

pytestmark = pytest.mark.usefixtures("own_cache")

WORDS = list("abcdefghij")
PAIRS = [
    {
        "id": f"p{i}",
        "prompt": f"{WORDS[i % 10]} {WORDS[i // 10]}?",
        "chosen": "a a",
        "rejected": "b",
    }
    for i in range(24)
]
SETTINGS = {
    "data.source.name": "answered",
    "data.heldout": "4",
    "data.max_prompt_length": "64",
    "data.prompt_buckets": "64",
    "sampling.max_new_tokens": "16",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "3e-3",
    "optimizer.schedule": "constant",
    "train.batch_size": "8",
    "train.epochs": "2",
}


@pytest.fixture
def configure(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # the programs compile in half the time
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")

    def configure(**overrides):
        given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
        place = {"data.source.path": str(tmp_path / "pairs.jsonl")}
        return schema.load("smoke", SETTINGS | place | given, 1)

    return configure


def heldout_of(folder):
    """The prompts that a fit held out, and their two responses."""
    names = json.loads((folder / "split.json").read_text(encoding="utf-8"))["heldout"]
    rows = [row for row in PAIRS if row["id"] in names]
    prompts = [Prompt(r["id"], ({"role": "user", "content": r["prompt"]},)) for r in rows]
    return prompts, [[r["chosen"], r["rejected"]] for r in rows]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Fit with SIGTERM during some steps, and continue to the end. Fits share their programs: JAX
    knows a function that it has compiled."""
    take, kept, steps = loop.take_rows, {}, []
    for name in ("make_train_step", "make_row_step"):
        make = getattr(loop, name)
        monkeypatch.setattr(
            loop, name, lambda *args, name=name, make=make: kept.setdefault(name, make(*args))
        )

    def fit_with_stops(config, folder, stops):
        def asked_to_stop(data, rows, size, buckets):
            if size == config.train.batch_size:  # held-out pairs are taken by the micro-batch
                steps.append(1)
                if len(steps) in stops:
                    os.kill(os.getpid(), signal.SIGTERM)
            return take(data, rows, size, buckets)

        steps.clear()
        monkeypatch.setattr(loop, "take_rows", asked_to_stop)
        for _ in stops:
            with pytest.raises(Interrupted):
                fit(config, folder)
        return fit(config, folder)

    return fit_with_stops


def test_a_fit_stopped_in_and_between_epochs_is_the_uninterrupted_one_and_read_by_its_oracle(
    configure, stopped, tmp_path
):
    """The oracle reads a whole conversation, the fit a prompt once and two completions: the same
    margin."""
    whole = stopped(configure(), tmp_path / "whole", ())
    result = stopped(configure(), tmp_path / "run", (1, 3))
    assert result == whole
    logs, models = [], []
    for folder in (tmp_path / "run", tmp_path / "whole"):
        log = list(read_metrics(folder / "metrics.jsonl"))
        logs.append([{key: r[key] for key in r if key != "wall"} for r in log])
        models.append((folder / "reward_model" / "model.safetensors").read_bytes())
    assert logs[0] == logs[1] and models[0] == models[1]
    assert [r["step"] for r in logs[0] if r["phase"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in logs[0] if r["phase"] == "evaluate"] == [0, 3, 6]
    assert result["rewards/accuracies"] == 1 and result["loss"] < np.log(2)
    assert 0 < result["reward_temperature"] < result["rewards/margins"]
    oracle = reward_model(source=str(tmp_path / "run" / "reward_model"), max_length=128)
    reward = oracle.ask(*heldout_of(tmp_path / "run")).reward
    margin = (reward[:, 0] - reward[:, 1]).mean()
    assert margin == pytest.approx(result["rewards/margins"], rel=1e-4)
    assert fit(configure(), tmp_path / "run") == result  # finished: nothing is computed


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain DeBERTa-v3, as transformers saves a masked language model: no head, no markers."""
    folder = tmp_path_factory.mktemp("deberta")
    golden = np.load(Path(__file__).parents[1] / "golden" / "pairrm.npz")
    config = json.loads(str(golden["config"]))
    for key in ("source_prefix_id", "cand_prefix_id", "cand1_prefix_id", "cand2_prefix_id"):
        config.pop(key)
    config.pop("n_tasks")
    tensors = {
        name.removeprefix("tensor/").replace("pretrained_model.", "deberta."): golden[name]
        for name in golden.files
        if name.startswith("tensor/pretrained_model.")
    }
    tensors["cls.predictions.bias"] = np.zeros(3, np.float32)  # of the language model
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS, "?"]
    vocab = {word: i for i, word in enumerate(words)}
    vocab |= {f"x{i}": i for i in range(len(words), config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_pairrm_fitted_from_a_plain_deberta_is_read_by_its_oracle(configure, plain, tmp_path):
    config = configure(fit__head="pairwise", model__source=plain, train__epochs=8)
    result = fit(config, tmp_path / "run")
    assert result["rewards/accuracies"] == 1 and result["loss"] < 0.5
    oracle = pairrm(source=str(tmp_path / "run" / "pairrm"))
    preference = oracle.ask(*heldout_of(tmp_path / "run")).preference
    margin = np.log(preference[:, 0, 1] / preference[:, 1, 0])
    assert margin.mean() == pytest.approx(result["rewards/margins"], rel=1e-3)


def test_a_pairrm_is_written_bit_for_bit_and_markers_get_embeddings(plain, tmp_path):
    made = open_ranker(plain)
    arch, size = made.loaded.ranker.arch, json.loads((plain / "config.json").read_text())
    ids = [arch.source_id, arch.first_id, arch.second_id]
    assert ids == [made.tokenizer.token_to_id(marker) for marker in MARKERS]
    assert arch.vocab_size == max(ids) + 1 == size["vocab_size"] + 3
    one = save_ranker(made.loaded.params, made, tmp_path / "one")
    again = load_ranker(one)
    two = save_ranker(again.params, open_ranker(one), tmp_path / "two")
    tensors, same = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert tensors.keys() == same.keys()
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)
    body = load_file(plain / "model.safetensors")
    layer = "encoder.layer.1.output.dense.weight"
    assert np.array_equal(tensors[f"pretrained_model.{layer}"], body[f"deberta.{layer}"])


def batch_of(p_win):
    ids = np.array([5], np.int32)
    rows = [
        EncodedPrompt(Prompt(f"{i}", ()), ids, np.uint32(i), (ids, ids)) for i in range(len(p_win))
    ]
    tokens = np.ones((len(rows), 2, 1), np.int32)
    logp = np.zeros(tokens.shape, np.float32)
    length = np.ones(tokens.shape[:2], np.int32)
    samples = Samples(tokens, length, logp, logp, np.zeros(length.shape, np.int8))
    return rows_as_batch(rows, samples, p_win=np.array(p_win, np.float32))


def test_losses_by_hand():
    """Margins 2 and -1 with certain and with soft labels, in float64."""

    def entropy(z, p):
        return -p * np.log(1 / (1 + np.exp(-z))) - (1 - p) * np.log(1 / (1 + np.exp(z)))

    batch = batch_of([1.0, 0.7])
    scores = np.array([[[3.0], [1.0]], [[0.5], [1.5]]], np.float32)
    mean, metrics = bradley_terry(Policy(np.zeros((2, 2, 1), np.float32), scores), batch)
    assert float(mean.result()) == pytest.approx(
        (entropy(2.0, 1.0) + entropy(-1.0, 0.7)) / 2, rel=1e-6
    )
    assert float(metrics["rewards/accuracies"].result()) == 0.5
    mean, metrics = both_orders(Policy(np.zeros((2, 2, 1), np.float32), scores), batch)
    wanted = [(entropy(3, 1) + entropy(-1, 1)) / 2, (entropy(0.5, 0.7) + entropy(-1.5, 0.7)) / 2]
    assert float(mean.result()) == pytest.approx(np.mean(wanted), rel=1e-6)
    assert float(metrics["rewards/margins"].result()) == pytest.approx((1 - 0.5) / 2)


def test_pairs_of_k_responses_leave_ties_out_and_put_the_winner_first():
    scored = Given(("a", "b", "c"), reward=(1.0, 3.0, 1.0))
    assert pairs_of(scored, 0.0) == [(1, 0, 1.0), (1, 2, 1.0)]
    soft = pairs_of(scored, 2.0)[0]
    assert soft[:2] == (1, 0) and soft[2] == pytest.approx(1 / (1 + np.exp(-1)))
    matrix = Given(("a", "b"), preference=((0.5, 0.3), (0.7, 0.5)))
    assert pairs_of(matrix, 0.0) == [(1, 0, 0.7)]


def test_the_temperature_is_that_of_least_loss():
    rng = np.random.default_rng(0)
    margin = rng.normal(0.02, 0.05, 60)
    p = np.where(rng.random(60) < 0.8, 1.0, 0.6)
    smooth = (61 * p + 1 - p) / 62

    def loss(temperature):
        chance = 1 / (1 + np.exp(-margin / temperature))
        return -np.mean(smooth * np.log(chance) + (1 - smooth) * np.log(1 - chance))

    best = calibrate(margin, p)
    assert min(loss(best * factor) for factor in (0.99, 1.01)) > loss(best)
    # All in order: not 0, which would make the reward certain. By hand: sigmoid(1 / T) = 4 / 5.
    assert calibrate(np.ones(3), np.ones(3)) == pytest.approx(1 / np.log(4))
    assert calibrate(np.array([-1.0, 0.5]), np.ones(2)) is None
    assert calibrate(np.zeros(2), np.ones(2)) is None


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"data.source.name": "quickstart"}, "fit learns from responses"),
        ({"lora.rank": "4"}, r"lora\.rank: fit trains the whole model"),
        ({"fit.head": "pair"}, "must be one of 'reward', 'pairwise'"),
        ({"fit.head": "pairwise"}, "model.source=random:tiny: .* begins from a DeBERTa"),
    ],
)
def test_what_cannot_be_fitted_is_told_before_a_compile(overrides, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    given = {"data.source.name": "answered", "data.source.path": str(tmp_path / "x.jsonl")}
    if overrides.get("data.source.name") == "quickstart":
        given = {}
    with pytest.raises(ConfigError, match=reason):
        fit(schema.load("smoke", given | overrides, 1), tmp_path / "run")
