"""Sampling from a geometric mixture of policies: what is drawn, what is recorded, and from which
random stream."""

import functools

import jax
import numpy as np
import pytest
from tiny import (
    ARCHES,
    EOS,
    PAD,
    PARAMS,
    V,
    generator,
    jit,
    make_prompts,
    mask_of,
    random_params,
    rows,
    scorer,
)

from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.sampling.choose import SamplingParams, mixture, restrict
from ssppo_jax.sampling.sampler import make_generate

ARCH, FIRST = ARCHES["tied"], PARAMS["tied"]
SECOND, THIRD = random_params(ARCH, seed=11), random_params(ARCH, seed=12)
KEY, T = jax.random.key(0), 8
RAW = SamplingParams(max_new_tokens=T)
SHAPED = SamplingParams(temperature=1.5, top_p=0.9, top_k=30, max_new_tokens=T)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=T)
LENGTHS, P = (5, 1, 9, 3), 9
PROMPTS = make_prompts(LENGTHS, P)


@functools.cache
def mixed(weights, sampling, num_samples=3, **keywords):
    """A jitted sampler of a mixture: generate(policies, prompts, key)."""
    generate = jit(
        make_generate(
            Decoder(ARCH),
            num_samples=num_samples,
            eos_ids=EOS,
            pad_id=PAD,
            sampling=sampling,
            weights=weights,
            **keywords,
        )
    )
    return lambda policies, prompts, key: jax.device_get(generate(policies, prompts, key))


@functools.cache
def teacher():
    """log pi(.|prompt, tokens before) of all K completions -> [B,K,T,V] in float64."""
    decoder = Decoder(ARCH)
    forward = jit(lambda params, *args: decoder.apply({"params": params}, *args))

    def log_probs(params, tokens):
        out = forward(params, *PROMPTS[:2], tokens)
        last = np.stack([out.prompt[b, n - 1] for b, n in enumerate(LENGTHS)])
        first = np.broadcast_to(last[:, None, None], (*tokens.shape[:2], 1, last.shape[-1]))
        before = np.concatenate([first, out.completion[:, :, :-1]], axis=2).astype(np.float64)
        return normalised(before @ np.asarray(output_kernel(params, ARCH), np.float64))

    return log_probs


def normalised(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def at(log_probs, tokens):
    return np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def restricted(log_probs):
    """SHAPED by hand: temperature, then the 30 likeliest, then the fewest of them that reach
    0.9."""
    out = np.full_like(log_probs, -np.inf)
    for index in np.ndindex(log_probs.shape[:-1]):
        row = log_probs[index] / SHAPED.temperature
        order = np.argsort(-row)[: SHAPED.top_k]
        p = np.exp(normalised(row[order]))
        order = order[: np.searchsorted(np.cumsum(p), SHAPED.top_p) + 1]
        out[index][order] = normalised(row[order])
    return out


# ---- the ends of the mixture ---------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [RAW, SHAPED, GREEDY], ids=["raw", "shaped", "greedy"])
def test_weight_one_for_the_first_policy_samples_from_it_alone(sampling):
    got, alone = (
        mixed((1.0, 0.0), sampling)((FIRST, SECOND), PROMPTS, KEY),
        generator(3, sampling)(PROMPTS, KEY),
    )
    for field in ("tokens", "length", "finish"):
        np.testing.assert_array_equal(getattr(got, field), getattr(alone, field))
    np.testing.assert_allclose(got.logp, alone.logp, atol=1e-5)
    np.testing.assert_allclose(got.sampling_logp, alone.sampling_logp, atol=1e-5)


@pytest.mark.parametrize("sampling", [RAW, SHAPED, GREEDY], ids=["raw", "shaped", "greedy"])
def test_weight_one_for_the_second_draws_its_tokens_and_records_the_firsts_log_probs(sampling):
    got = mixed((0.0, 1.0), sampling)((FIRST, SECOND), PROMPTS, KEY)
    alone = mixed((1.0,), sampling)(SECOND, PROMPTS, KEY)
    for field in ("tokens", "length", "finish"):
        np.testing.assert_array_equal(getattr(got, field), getattr(alone, field))
    np.testing.assert_allclose(got.sampling_logp, alone.sampling_logp, atol=1e-5)
    mask = mask_of(got.length, T) > 0
    np.testing.assert_allclose(
        got.logp[mask], scorer()(PROMPTS, got.tokens, mask_of(got.length, T)).logp[mask], atol=1e-5
    )
    assert (
        np.abs(got.logp - alone.logp)[mask] > 0.1
    ).mean() > 0.5  # the two are different policies


def test_a_mixture_of_a_policy_with_itself_is_the_policy():
    got, alone = (
        mixed((0.3, 0.7), RAW)((FIRST, FIRST), PROMPTS, KEY),
        generator(3, RAW)(PROMPTS, KEY),
    )
    np.testing.assert_array_equal(got.tokens, alone.tokens)
    np.testing.assert_allclose(got.sampling_logp, alone.logp, atol=1e-5)


# ---- between them --------------------------------------------------------------------------------

MIXTURES = {
    (0.5, 0.5): (FIRST, SECOND),
    (0.75, 0.25): (FIRST, SECOND),
    (0.2, 0.5, 0.3): (FIRST, SECOND, THIRD),
}


@pytest.mark.parametrize("sampling", [RAW, SHAPED], ids=["raw", "shaped"])
@pytest.mark.parametrize("weights", MIXTURES)
def test_log_probs_as_sampled_are_those_of_the_renormalised_geometric_mixture(weights, sampling):
    policies = MIXTURES[weights]
    samples = mixed(weights, sampling)(policies, PROMPTS, KEY)
    log_probs = [teacher()(params, samples.tokens) for params in policies]
    want = normalised(sum(w * x for w, x in zip(weights, log_probs, strict=True)))
    want = restricted(want) if sampling is SHAPED else want
    mask = mask_of(samples.length, T) > 0
    assert mask.sum() > 30 and len(np.unique(samples.length)) > 2
    np.testing.assert_allclose(
        samples.sampling_logp[mask], at(want, samples.tokens)[mask], atol=2e-5
    )
    assert not samples.sampling_logp[~mask].any() and not samples.logp[~mask].any()


def test_the_token_at_the_threshold_of_top_k_is_kept():
    """A mixture computed twice and rounded differently falls below its own k-th value, for 1 token
    in 100."""
    rng, params = np.random.default_rng(0), SamplingParams(top_k=5)
    logits = rng.normal(size=(2, 4096, 1, 32)).astype(np.float32)
    restricted_mixture = jit(
        lambda *x: restrict(mixture([3.0 * y + y * y for y in x], (0.7, 0.3)), params)
    )
    np.testing.assert_array_equal(np.isfinite(restricted_mixture(*logits)).sum(-1), 5)


@pytest.mark.parametrize("sampling", [RAW, SHAPED, GREEDY], ids=["raw", "shaped", "greedy"])
def test_raw_log_probs_are_the_trainers_under_the_first_policy(sampling):
    samples = mixed((0.5, 0.5), sampling)((FIRST, SECOND), PROMPTS, KEY)
    mask = mask_of(samples.length, T)
    policy = scorer()(PROMPTS, samples.tokens, mask)
    np.testing.assert_allclose(np.where(mask > 0, policy.logp, 0), samples.logp, atol=1e-5)


def test_greedy_takes_the_likeliest_token_of_the_mixture():
    samples = mixed((0.5, 0.5), GREEDY)((FIRST, SECOND), PROMPTS, KEY)
    one, two = (teacher()(params, samples.tokens) for params in (FIRST, SECOND))
    mask = mask_of(samples.length, T) > 0
    np.testing.assert_array_equal((one + two).argmax(-1)[mask], samples.tokens[mask])
    assert (
        min((x.argmax(-1) != samples.tokens)[mask].mean() for x in (one, two)) > 0.1
    )  # of neither alone


def test_tokens_are_drawn_as_often_as_the_mixture_says():
    n, coef = 4000, 0.5
    sampling = SamplingParams(max_new_tokens=1)
    tokens = mixed((1 - coef, coef), sampling, n)((FIRST, SECOND), rows(PROMPTS, [0]), KEY).tokens
    often = np.bincount(tokens.ravel(), minlength=V) / n
    one, two = (
        teacher()(params, np.zeros((4, 1, 1), np.int32))[0, 0, 0] for params in (FIRST, SECOND)
    )

    def chi_square(log_probs):
        p = np.exp(normalised(log_probs))
        return n * np.sum((often - p) ** 2 / p)

    assert chi_square((1 - coef) * one + coef * two) < 2 * V  # expected: V - 1
    arithmetic = np.log((np.exp(one) + np.exp(two)) / 2)
    assert min(chi_square(other) for other in (one, two, arithmetic)) > 4 * V


def test_a_row_of_a_mixture_alone_in_another_bucket_equals_the_row_in_the_batch():
    generate = mixed((0.5, 0.5), SHAPED)
    batch = generate((FIRST, SECOND), PROMPTS, KEY)
    for b in (0, 2):
        alone = generate((FIRST, SECOND), rows(make_prompts(LENGTHS, 14, fill=V - 1), [b]), KEY)
        np.testing.assert_array_equal(alone.tokens[0], batch.tokens[b])
        np.testing.assert_allclose(alone.sampling_logp[0], batch.sampling_logp[b], atol=1e-5)


# ---- random addresses ----------------------------------------------------------------------------


def test_the_sample_after_the_policys_is_where_an_opponent_is_drawn():
    """`first_sample` moves the address and nothing else, so an opponent that is the policy is its
    next sample."""
    three = generator(3, SHAPED)(PROMPTS, KEY)
    moved = mixed((1.0,), SHAPED, 2, first_sample=1)(FIRST, PROMPTS, KEY)
    np.testing.assert_array_equal(moved.tokens, three.tokens[:, 1:])
    opponent = mixed((1.0, 0.0), SHAPED, 1, first_sample=1)((FIRST, SECOND), PROMPTS, KEY)
    np.testing.assert_array_equal(opponent.tokens, three.tokens[:, 1:2])
    assert (three.tokens[:, 0] != three.tokens[:, 1]).any(-1).all()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(), (0.5,), (0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0)])
def test_weights_of_no_mixture_are_refused(weights):
    with pytest.raises(ValueError, match="add up to 1"):
        mixed(weights, RAW)


def test_another_number_of_policies_than_of_weights_is_refused():
    with pytest.raises(ValueError, match="2 weights and 3 parameters"):
        mixed((0.5, 0.5), RAW)((FIRST, SECOND, THIRD), PROMPTS, KEY)
