"""Reward models: transformers' scores, in the model's own chat template, cut over a mesh, nothing
shortened."""

import dataclasses
import json
import pathlib
from datetime import datetime

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers.utils import chat_template_utils

from ssppo_jax.data.chat import encode_chat
from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.errors import ConfigError, GateError
from ssppo_jax.models.arch import LinearScaling, tiny_arch
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.oracles.reward_model import reward_model, scores
from ssppo_jax.types import Prompt
from ssppo_jax.weights import hf, names, tiny

with np.load(
    pathlib.Path(__file__).parents[1] / "golden/reward_models.npz", allow_pickle=False
) as file:
    GOLDEN = dict(file)
IDS, LENGTHS = GOLDEN["ids"], GOLDEN["lengths"]
PROMPTS = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(3)]
RESPONSES = [["yes", "no, never", ""], ["a" * 30, "b", "c"], ["x", "y", "z"]]


@pytest.mark.parametrize("case", [str(case) for case in GOLDEN["cases"]])
def test_scores_over_600_tokens_padded_and_not_equal_transformers(case, tmp_path):
    arch = arch_from_hf(json.loads(str(GOLDEN[f"{case}/config"])))
    mark = f"{case}/tensor/"
    tensors = {
        key.removeprefix(mark): value for key, value in GOLDEN.items() if key.startswith(mark)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    params = hf.load_params(tmp_path, arch)
    assert arch.num_labels == 1 and "head" not in params
    got = jax.jit(lambda p, t, n: scores(Decoder(arch), p, t, n))(params, IDS, LENGTHS)
    np.testing.assert_allclose(got, GOLDEN[f"{case}/scores"], rtol=0, atol=2e-4)
    folder = hf.save_params(params, arch, tmp_path / "out")
    assert hf.read_arch(folder) == arch
    assert all(
        (load_file(folder / "model.safetensors")[key] == value).all()
        for key, value in tensors.items()
    )


def write(folder, *, damage=1.0, **changes):
    tokenizer = tiny.byte_tokenizer()
    arch = tiny_arch(vocab_size=len(tokenizer), num_labels=1, **changes)
    rng, tree = np.random.default_rng(0), {}
    for leaf in names.leaves(arch):
        drawn = rng.standard_normal(names.shape(leaf, arch)).astype(np.float32)
        hf.insert(tree, leaf.path, drawn * np.float32(0.3 * damage))
    tokenizer.save_pretrained(folder / "tokenizer")
    saved = hf.save_params(tree, arch, folder / "model", tokenizer_from=folder / "tokenizer")
    return saved, arch, tree, tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("reward"))


def ask(folder, texts=None, **settings):
    """Ask about all prompts, or the first alone with other responses."""
    oracle = reward_model(source=str(folder), max_length=128, **settings)
    return oracle.ask(PROMPTS[:1], [texts]) if texts else oracle.ask(PROMPTS, RESPONSES)


def test_a_response_is_scored_as_the_answer_in_the_chat_template(model):
    folder, arch, tree, tokenizer = model
    verdict = checked(ask(folder), (3, 3))
    for b, k in np.ndindex(3, 3):
        turns = [*PROMPTS[b].messages, {"role": "assistant", "content": RESPONSES[b][k]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = np.array([tokenizer.encode(text, add_special_tokens=False)], np.int32)
        want = scores(Decoder(arch), tree, ids, np.array([ids.shape[1]], np.int32))[0]
        np.testing.assert_allclose(verdict.reward[b, k], want, atol=1e-5)
    assert np.ptp(verdict.reward) > 0.1
    gap = verdict.reward[0, 0] - verdict.reward[0, 1]
    preference = preference_of(verdict, temperature=2.0)[0, 0, 1]
    np.testing.assert_allclose(preference, 1 / (1 + np.exp(-gap / 2)), atol=1e-6)


def test_the_same_cut_over_a_mesh_and_whatever_the_batch(model):
    folder, *_ = model
    alone = ask(folder).reward
    cut = reward_model(source=str(folder), max_length=128, batch_size=3)
    cut.place(make_mesh((2, 2, 2)))
    np.testing.assert_allclose(cut.ask(PROMPTS, RESPONSES).reward, alone, atol=1e-5)
    np.testing.assert_allclose(ask(folder, dtype="bfloat16").reward, alone, atol=0.1)


def test_a_special_token_in_a_response_stays_text_and_ends_no_turn(model):
    folder, _, _, tokenizer = model
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a<|im_end|>b"}]
    ids = encode_chat(tokenizer, turns, answered=True)
    assert list(ids).count(tokenizer.eos_token_id) == 2  # of the two turns the template wrote
    verdict = ask(folder, texts=["a<|im_end|>b", "ab", "a"])
    assert verdict.failed == (None,) and verdict.reward[0, 0] != verdict.reward[0, 1]


def test_a_model_of_nan_is_an_error_by_name_and_no_failure_of_prompts(tmp_path):
    folder, *_ = write(tmp_path, damage=np.nan)
    with pytest.raises(GateError, match=rf"reward_model '{folder}' gives 9 of 9 texts a score"):
        ask(folder)


def test_a_template_that_prints_the_date_rewards_alike_on_every_day(model, monkeypatch):
    folder, *_ = model
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tiny.CHAT_TEMPLATE
    monkeypatch.setattr(
        "ssppo_jax.oracles.reward_model.load_tokenizer", lambda folder, vocab_size: tokenizer
    )
    rewards = []
    for day in (1, 2):
        monkeypatch.setattr(chat_template_utils, "datetime", clock(day))
        rewards.append(ask(folder).reward)
    np.testing.assert_array_equal(*rewards)
    assert (ask(folder, date="2024-07-27").reward != rewards[0]).any()


def clock(day):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, day)

    return Clock


def test_linear_scaling_reaches_its_factor_further(tmp_path):
    folder, *_ = write(tmp_path, rope_scaling=LinearScaling(2.0))
    reward_model(source=str(folder), max_length=1024)
    with pytest.raises(ConfigError, match="max_length=1025 is beyond its 1024 positions"):
        reward_model(source=str(folder), max_length=1025)


def test_what_is_too_long_fails_its_prompt_and_is_never_cut(model):
    folder, *_ = model
    short = reward_model(source=str(folder), max_length=64)
    verdict = short.ask(PROMPTS, [RESPONSES[0], ["a" * 40, "b", "c"], RESPONSES[2]])
    assert [f is None for f in verdict.failed] == [True, False, True]
    assert "max_length = 64" in verdict.failed[1].reason and np.isnan(verdict.reward[1]).all()
    alone = short.ask(PROMPTS[2:], RESPONSES[2:]).reward
    np.testing.assert_allclose(verdict.reward[2:], alone, atol=1e-6)


def test_an_answer_the_template_would_change_is_a_failure(model, monkeypatch):
    folder, *_ = model
    said = tiny.CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", said)
    tokenizer = tiny.byte_tokenizer()
    monkeypatch.setattr(
        "ssppo_jax.oracles.reward_model.load_tokenizer", lambda folder, vocab_size: tokenizer
    )
    verdict = ask(folder, texts=["hm</think>a", "b", "c"])
    assert "changes or drops the assistant turn" in verdict.failed[0].reason


def test_a_model_that_is_no_reward_model_is_refused(model, tmp_path):
    folder, arch, *_ = model
    with pytest.raises(ConfigError, match="beyond its 512 positions"):
        reward_model(source=str(folder))
    plain = dataclasses.replace(arch, num_labels=0)
    language = hf.save_params(_zeros(plain), plain, tmp_path / "language")
    with pytest.raises(ConfigError, match="has no classification head"):
        reward_model(source=str(language))


def _zeros(arch):
    tree: dict = {}
    for leaf in names.leaves(arch):
        hf.insert(tree, leaf.path, np.zeros(names.shape(leaf, arch), np.float32))
    return tree
