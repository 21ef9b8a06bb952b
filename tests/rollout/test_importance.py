"""Importance weights of each kind of row: what they multiply, and what is said."""

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.config import override
from ssppo_jax.errors import ConfigError
from ssppo_jax.rollout.importance import MAX_LOG_WEIGHT, importance_weights, weighed
from ssppo_jax.rollout.rows import batch_of
from ssppo_jax.types import Samples

ON = {"train.importance_sampling_correction": "true"}


def load(loss, **overrides):
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return schema.load("smoke", {"loss.name": loss} | ON | given)


def rows(k=2):
    """Four rows of K responses of 1 to 3 tokens, with log-probs of two distributions."""
    rng = np.random.default_rng(0)
    shape, length = (4, k, 3), rng.integers(1, 4, (4, k))
    logp, sampling = (-rng.exponential(size=shape).astype(np.float32) for _ in range(2))
    samples = Samples(np.ones(shape, np.int32), length, logp, sampling, np.zeros((4, k), np.int8))
    prompt = type("Encoded", (), {"tokens": np.ones(2, np.int32)})
    return batch_of([prompt] * 4, samples)._replace(old_logp=logp), samples


def test_a_group_loss_gets_a_weight_for_each_token():
    batch, samples = rows()
    found, metrics = weighed(
        load("grpo", train__importance_sampling_mode="token_truncate"), batch, samples
    )
    ratio = np.exp(batch.old_logp - samples.sampling_logp)
    real = batch.mask > 0
    np.testing.assert_allclose(found.importance_weight[real], np.minimum(ratio, 3)[real], rtol=1e-6)
    w = np.minimum(ratio, 3)[real]
    name = "importance_sampling_ratio"
    want = {"min": w.min(), "mean": w.mean(), "max": w.max(), "clipped": (ratio[real] > 3).mean()}
    want["effective_sample_size"] = w.sum() ** 2 / (w.size * (w * w).sum())
    assert metrics == pytest.approx({f"{name}/{key}": x for key, x in want.items()}, rel=1e-5)
    np.testing.assert_array_equal(found.weight, batch.weight)


def test_a_pair_loss_weighs_whole_pairs():
    batch, samples = rows()
    found, metrics = weighed(
        load("dpo", train__importance_sampling_mode="sequence_truncate"), batch, samples
    )
    assert found.importance_weight is None
    log_ratio = ((batch.old_logp - samples.sampling_logp) * batch.mask).sum(-1)
    np.testing.assert_allclose(found.weight, np.minimum(np.exp(log_ratio), 3).prod(1), rtol=1e-5)
    assert metrics["importance_sampling_ratio/mean"] == pytest.approx(
        np.minimum(np.exp(log_ratio), 3).mean(), rel=1e-5
    )


def test_an_opponents_response_is_not_weighed():
    batch, samples = rows()
    found, _ = weighed(load("nash_md"), batch, samples)
    assert (found.importance_weight[:, 1] == 1).all() and (found.importance_weight[:, 0] != 1).any()


def test_responses_that_are_masked_do_not_count():
    batch, samples = rows()
    masked = batch._replace(mask=batch.mask * (np.arange(2) > 0)[None, :, None])
    _, metrics = weighed(load("grpo", train__importance_sampling_clip_max=0), masked, samples)
    log_ratio = ((batch.old_logp - samples.sampling_logp) * batch.mask).sum(-1)[:, 1]
    assert metrics["importance_sampling_ratio/max"] == pytest.approx(
        np.exp(log_ratio.max()), rel=1e-5
    )
    nothing = batch._replace(mask=0 * batch.mask)
    assert weighed(load("grpo"), nothing, samples)[1] == {}


def test_without_the_correction_nothing_is_added():
    batch, samples = rows()
    off = schema.load("smoke", {"loss.name": "grpo"})
    assert weighed(off, batch, samples) == (batch, {})
    assert batch.importance_weight is None


def test_padding_may_hold_anything_and_no_weight_overflows():
    old = np.array([[[0.0, np.nan]], [[0.0, 0.0]]], np.float32)
    sampling = np.array([[[-500.0, 1.0]], [[0.0, np.inf]]], np.float32)
    mask = np.array([[[1, 0]], [[1, 0]]], np.float32)
    for mode, second in (("token_truncate", 1.0), ("sequence_truncate", np.exp(MAX_LOG_WEIGHT))):
        weight = importance_weights(old, sampling, mask, mode=mode, clip_max=0.0)
        np.testing.assert_allclose(weight[0, 0], [np.exp(MAX_LOG_WEIGHT), second], rtol=1e-6)
        np.testing.assert_array_equal(weight[1], 1)


@pytest.mark.parametrize("loss", ["dpo", "s_sppo", "xpo", "sft"])
def test_losses_of_whole_responses_refuse_weights_of_tokens(loss):
    with pytest.raises(ConfigError, match=rf"{loss} weighs whole responses; set sequence_mask"):
        schema.check(load(loss, train__importance_sampling_mode="token_mask"), 1)
    schema.check(load(loss), 1)


def test_without_randomness_weights_mean_nothing():
    with pytest.raises(ConfigError, match="the most likely token is drawn for certain"):
        schema.check(load("nash_md", sampling__temperature=0), 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "grpo", "sampling__top_p": 0.9}, "corrects all but the tokens that are never"),
        ({"loss": "grpo", "sampling__param_dtype": "int8"}, "drawn with rounded weights"),
        ({"loss": "nash_md", "sampling__temperature": 0.7}, "importance_sampling_correction=true"),
    ],
)
def test_a_policy_gradient_of_other_samples_is_told_of_the_weights(given, said):
    base = schema.load("smoke", {"loss.name": given.pop("loss")})
    text = {key.replace("__", "."): str(value) for key, value in given.items()}
    assert override(base, text, schema.COMPONENTS) == []
    (caution,) = schema.cautions(base)
    assert said in caution and "train.importance_sampling_correction=true" in caution
    base.train.importance_sampling_correction = True
    assert not any(said in caution for caution in schema.cautions(base))
