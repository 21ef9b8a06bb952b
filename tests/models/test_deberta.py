"""PairRM's ranker equals llm-blender's own on torch, over rows long enough to leave the exact
buckets."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.deberta import relative_buckets
from ssppo_jax.weights.ranker import load_ranker, open_ranker, read_arch

with np.load(pathlib.Path(__file__).parents[1] / "golden/pairrm.npz", allow_pickle=False) as file:
    GOLDEN = dict(file)
CONFIG = json.loads(str(GOLDEN["config"]))
TENSORS = {
    key.removeprefix("tensor/"): value for key, value in GOLDEN.items() if key.startswith("tensor/")
}
IDS, LENGTHS = GOLDEN["ids"], GOLDEN["lengths"]


def write(folder, config=None, tensors=None):
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    save_file(TENSORS | (tensors or {}), folder / "model.safetensors")
    return folder


@pytest.fixture
def ranker(tmp_path):
    loaded = load_ranker(write(tmp_path))
    return jax.jit(
        lambda tokens, length: loaded.ranker.apply({"params": loaded.params}, tokens, length)
    )


def test_logits_over_600_tokens_padded_and_not_equal_llm_blender(ranker):
    assert np.ptp(GOLDEN["logits"]) > 0.3
    np.testing.assert_allclose(ranker(IDS, LENGTHS), GOLDEN["logits"], rtol=0, atol=2e-4)
    short = IDS[2:, : LENGTHS[2]]  # the padded row alone, without its padding
    np.testing.assert_allclose(ranker(short, LENGTHS[2:]), GOLDEN["logits"][2:], rtol=0, atol=2e-4)


def test_what_stands_in_the_padding_changes_nothing(ranker):
    poisoned = IDS.copy()
    poisoned[2, LENGTHS[2] :] = CONFIG["cand1_prefix_id"]
    np.testing.assert_array_equal(ranker(poisoned, LENGTHS), ranker(IDS, LENGTHS))
    assert float(ranker(IDS[:1], np.zeros(1, np.int32))[0]) == 0.0


def test_exchanging_the_candidates_markers_turns_the_logit_about_only_in_part(ranker):
    """The order is seen: a ranker must be asked in both."""
    turned = IDS.copy()
    first, second = CONFIG["cand1_prefix_id"], CONFIG["cand2_prefix_id"]
    turned[first == IDS], turned[second == IDS] = second, first
    assert np.abs(np.asarray(ranker(turned, LENGTHS)) + GOLDEN["logits"]).max() > 1e-2


def test_buckets_are_exact_when_near_logarithmic_when_far_and_odd():
    bucket = relative_buckets(600, 32, 96) - 32
    distance = np.subtract.outer(np.arange(600), np.arange(600))
    near = np.abs(distance) <= 16
    np.testing.assert_array_equal(bucket[near], distance[near])
    inside = np.abs(bucket) < 31
    np.testing.assert_array_equal(bucket[inside], -bucket.T[inside])
    row = bucket[:, 0]
    assert (np.diff(row) >= 0).all() and np.argmax(row == 31) < 96
    assert row.max() == 31 and bucket.min() == -32


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position_buckets": None}, "position_buckets is missing"),
        ({"model_type": "bert"}, "model_type is 'bert', only 'deberta-v2'"),
        ({"share_att_key": False}, "share_att_key is False"),
        ({"pos_att_type": ["c2p"]}, r"pos_att_type is \['c2p'\]"),
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_size": "many"}, "hidden_size is 'many', not a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, which is too small"),
        ({"max_relative_positions": "x"}, "max_relative_positions is 'x', not a whole number"),
        ({"pos_att_type": [1, "c2p"]}, r"pos_att_type is \['1', 'c2p'\]"),
    ],
)
def test_a_setting_that_is_not_implemented_is_named(changes, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        read_arch(write(tmp_path, changes))


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    extra = {
        "head_layer.9.weight": np.zeros(2, np.float32),
        "head_layer.4.bias": np.zeros(3, np.float32),
    }
    with pytest.raises(ConfigError, match=r"unknown head_layer.9.weight"):
        load_ranker(write(tmp_path, tensors=extra))
    with pytest.raises(ConfigError, match=r"head_layer.4.bias has shape \(3,\)"):
        load_ranker(write(tmp_path, tensors={"head_layer.4.bias": np.zeros(3, np.float32)}))


def test_the_reach_is_that_of_the_positions_unless_it_is_given(tmp_path):
    arch = read_arch(write(tmp_path))
    assert arch.reach == 96
    assert read_arch(write(tmp_path, {"max_relative_positions": 48})).reach == 48
    assert dataclasses.replace(arch) == arch and arch.tasks == 2


@pytest.mark.parametrize("shape", [(40, 24), (20, 8)])
def test_embeddings_of_a_plain_encoder_that_do_not_fit_its_config_are_named(shape, tmp_path):
    """Rows for the markers are put behind them, which takes a table of that width and no longer."""
    plain = {name: CONFIG[name] for name in CONFIG if not name.endswith("prefix_id")}
    (tmp_path / "config.json").write_text(json.dumps(plain | {"vocab_size": 20, "hidden_size": 24}))
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    embeddings = {"embeddings.word_embeddings.weight": np.zeros(shape, np.float32)}
    save_file(embeddings, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"word_embeddings.weight has shape .*, config.json asks"):
        open_ranker(tmp_path)
