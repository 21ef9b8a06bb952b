"""From Python the package does what the command line does, with its errors."""

import jax
import numpy as np
import pytest

import ssppo_jax
from ssppo_jax.data.chat import encode_chat
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.training import train as train_module

SMALL = {"data.prompt_buckets": (256,), "sampling.max_new_tokens": 4}


@pytest.fixture(scope="module")
def policy(own_cache):
    config = ssppo_jax.configure("smoke", SMALL | {"train.micro_batches": 1})
    return ssppo_jax.load_policy("random:tiny", config)


def test_training_from_python_makes_the_folder_and_leaves_none_behind(monkeypatch, tmp_path):
    calls = []

    def train(config, workdir, *, profile):
        assert workdir.is_dir()
        calls.append((config.loss.name, workdir, profile))
        if len(calls) > 1:
            raise DataError("bad rows")
        return {"win_rate": 0.5}

    monkeypatch.setattr(train_module, "train", train)
    config = ssppo_jax.configure("smoke", {"loss.name": "dpo", "train.micro_batches": 1})
    assert ssppo_jax.train(config, tmp_path / "run") == {"win_rate": 0.5}
    assert calls == [("dpo", tmp_path / "run", False)]
    with pytest.raises(DataError):
        ssppo_jax.train(config, tmp_path / "failed")
    assert not (tmp_path / "failed").exists()


def test_a_configs_problems_are_those_of_the_command_line():
    with pytest.raises(ConfigError, match="'dpp' is not known; did you mean 'dpo'"):
        ssppo_jax.configure("smoke", {"loss.name": "dpp"})
    with pytest.raises(ConfigError, match=r"train.batch_size=7 must be a multiple"):
        ssppo_jax.configure("smoke", {"train.batch_size": 7})
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        ssppo_jax.smaple  # noqa: B018


def test_samples_come_one_list_for_each_prompt_and_the_seed_changes_them(policy):
    chats = ["Say hi.", [{"role": "system", "content": "Shout."}, {"role": "user", "content": "x"}]]
    first = ssppo_jax.sample(policy, chats, num_samples=2)
    assert [len(group) for group in first] == [2, 2]
    assert first == ssppo_jax.sample(policy, chats, num_samples=2)
    assert first != ssppo_jax.sample(policy, chats, num_samples=2, seed=1)
    with pytest.raises(ConfigError, match="sample takes no 'temprature'; it takes temperature"):
        ssppo_jax.sample(policy, "Say hi.", temprature=0.5)
    with pytest.raises(DataError, match=r"prompt 0: .*must end with a user turn, not assistant"):
        ssppo_jax.sample(policy, [[{"role": "assistant", "content": "x"}]])
    with pytest.raises(DataError, match="dropped 1 of 1 prompts longer than 256 tokens"):
        ssppo_jax.sample(policy, "x" * 400)
    with pytest.raises(ConfigError, match="num_samples=0: give 1 or more"):
        ssppo_jax.sample(policy, "Say hi.", num_samples=0)
    with pytest.raises(DataError, match="there is no prompt; give a text"):
        ssppo_jax.sample(policy, [])
    with pytest.raises(DataError, match="prompt 1 is neither a text nor a list of turns"):
        ssppo_jax.sample(policy, ["Say hi.", ["hi"]])


def test_positions_that_the_model_does_not_have_are_refused(policy):
    reach = policy.runtime.arch.reach
    with pytest.raises(DataError, match=rf"and the model reads {reach}; shorten one of them"):
        ssppo_jax.score(policy, ["Say hi."], [["word " * reach]])
    with pytest.raises((ConfigError, DataError), match=str(reach)):
        ssppo_jax.sample(policy, "Say hi.", max_new_tokens=reach)


def test_scores_are_those_of_one_forward_pass_over_prompt_and_response(policy):
    prompts, responses = ["Say hi.", "And now?"], [["Hi", "Hello there"], ["No", "Yes"]]
    found = ssppo_jax.score(policy, prompts, responses)
    runtime, rows = policy.runtime, []
    for prompt, group in zip(prompts, responses, strict=True):
        turns = [{"role": "user", "content": prompt}]
        start = len(encode_chat(runtime.tokenizer, turns))
        for text in group:
            answered = [*turns, {"role": "assistant", "content": text}]
            whole = encode_chat(runtime.tokenizer, answered, answered=True)
            rows.append(
                (start, whole[: start + 1 + np.argmax(np.isin(whole[start:], runtime.eos))])
            )
    tokens = np.zeros((len(rows), max(len(ids) for _, ids in rows)), np.int32)
    for row, (_, ids) in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    length = np.array([len(ids) for _, ids in rows], np.int32)
    params = jax.device_get(policy.params)
    out = jax.jit(Decoder(runtime.arch).apply)({"params": params}, tokens, length)
    head = (
        params["embed"]["embedding"] if runtime.arch.tie_embeddings else params["head"]["kernel"].T
    )
    logits = np.asarray(out.prompt, np.float64) @ np.asarray(head, np.float64).T
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    wanted = [
        logp[i, np.arange(start - 1, len(ids) - 1), ids[start:]].sum()
        for i, (start, ids) in enumerate(rows)
    ]
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-3)
    with pytest.raises(DataError, match=r"given 1 lists of \[2\] texts for 2 prompts"):
        ssppo_jax.score(policy, prompts, responses[:1])
    with pytest.raises(DataError, match="a list of texts for each prompt"):
        ssppo_jax.score(policy, prompts, ["Hey", "Yes"])  # it scored each letter as a response
