"""What a loss sees: log-probs of each token by the state before it, and one vector per
completion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ARCHES, PAD, PARAMS, V, jit, make_prompts, mask_of, random_params, scorer

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.core import cosine
from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.models.policy import make_apply, pool

PROMPTS = make_prompts((6, 1, 4), 6)
LENGTH = np.array([[5, 2], [1, 4], [3, 5]])
MASK = mask_of(LENGTH, 5)
TOKENS = np.where(MASK > 0, np.random.default_rng(1).integers(1, V, MASK.shape), PAD).astype(
    np.int32
)


@functools.cache
def alone(name, b, k):
    """States of one completion after its prompt as one sequence without padding: after the norm,
    and of each block."""
    decoder, n = Decoder(ARCHES[name]), LENGTH[b, k]
    args = (
        PROMPTS.tokens[b : b + 1, : PROMPTS.length[b]],
        PROMPTS.length[b : b + 1],
        TOKENS[b : b + 1, k : k + 1, :n],
    )
    outs = [
        jit(functools.partial(decoder.apply, tap_layer=i))({"params": PARAMS[name]}, *args)
        for i in range(decoder.arch.num_layers)
    ]
    taps = [np.asarray(out.tap)[0, 0] for out in outs]
    return np.asarray(outs[0].prompt)[0], np.asarray(outs[0].completion)[0, 0], taps


@pytest.mark.parametrize("name", ["tied", "gemma2"])
def test_each_token_is_scored_by_the_state_before_it(name):
    """The first one by the prompt's last state; where logits have a soft cap, through it."""
    policy = scorer(name)(PROMPTS, TOKENS, MASK)
    kernel = np.asarray(output_kernel(PARAMS[name], ARCHES[name]), np.float64)
    cap = ARCHES[name].final_softcap
    for b, k in ((0, 0), (1, 1), (2, 0)):
        prompt, own, _ = alone(name, b, k)
        logits = np.concatenate([prompt[-1:], own[:-1]]) @ kernel
        logits = logits if cap is None else cap * np.tanh(logits / cap)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        want = logp[np.arange(len(own)), TOKENS[b, k, : len(own)]]
        np.testing.assert_allclose(policy.logp[b, k, : len(own)], want, atol=1e-5)


SETTINGS = [
    ({}, lambda own, taps: own[-1]),
    ({"repulsion_pooling": "mean_response"}, lambda own, taps: own.mean(0)),
    ({"repulsion_layer": "final_pre_norm"}, lambda own, taps: taps[1][-1]),
    (
        {"repulsion_layer": "0", "repulsion_pooling": "mean_response"},
        lambda own, taps: taps[0].mean(0),
    ),
]


@pytest.mark.parametrize(
    "settings, want", SETTINGS, ids=lambda x: str(x) if isinstance(x, dict) else ""
)
def test_hidden_is_the_configured_state_of_the_completion(settings, want):
    hidden = scorer(**settings)(PROMPTS, TOKENS, MASK).hidden
    assert hidden.dtype == np.float32
    for b, k in ((0, 0), (1, 1), (2, 0)):
        _, own, taps = alone("tied", b, k)
        np.testing.assert_allclose(hidden[b, k], want(own, taps), atol=2e-5)


@pytest.mark.parametrize(
    "settings, want", SETTINGS, ids=lambda x: str(x) if isinstance(x, dict) else ""
)
def test_tokens_in_padding_change_nothing_that_counts(settings, want):
    poisoned_prompts = make_prompts(PROMPTS.length, 6, fill=V - 1)
    poisoned = np.where(MASK > 0, TOKENS, V - 2).astype(np.int32)
    clean = scorer(**settings)(PROMPTS, TOKENS, MASK)
    other = scorer(**settings)(poisoned_prompts, poisoned, MASK)
    np.testing.assert_array_equal(
        np.where(MASK > 0, clean.logp, 0), np.where(MASK > 0, other.logp, 0)
    )
    np.testing.assert_array_equal(clean.hidden, other.hidden)


def test_more_padding_changes_nothing_that_counts():
    wide = make_prompts(PROMPTS.length, 11)
    extra = np.full((3, 2, 4), PAD, np.int32)
    tokens = np.concatenate([TOKENS, extra], 2)
    mask = np.concatenate([MASK, np.zeros_like(extra, np.float32)], 2)
    clean, other = scorer()(PROMPTS, TOKENS, MASK), scorer()(wide, tokens, mask)
    np.testing.assert_allclose(
        np.where(MASK > 0, other.logp[..., :5] - clean.logp, 0), 0, atol=1e-5
    )
    np.testing.assert_allclose(clean.hidden, other.hidden, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last_token", "mean_response"])
def test_pooling_reads_masked_tokens_only(pooling):
    states = np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2)
    mask = mask_of(np.array([[3, 4, 0]]), 4)
    poisoned = np.where(mask[..., None] > 0, states, np.nan)
    got = np.asarray(
        pool(jnp.asarray(poisoned if pooling == "mean_response" else states), mask, pooling)
    )
    want = {"last_token": [[4, 5], [14, 15]], "mean_response": [[2, 3], [11, 12]]}[pooling]
    np.testing.assert_array_equal(got[0, :2], want)
    assert np.isfinite(got).all()  # a completion without tokens has some finite vector


def test_pooled_states_of_a_bfloat16_model_are_float32():
    states = jnp.ones((1, 1, 300, 2), jnp.bfloat16)  # a bfloat16 sum of 300 ones stops at 256
    for pooling in ("last_token", "mean_response"):
        got = pool(states, np.ones((1, 1, 300), np.float32), pooling)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, 1.0)


@functools.cache
def repulsion_gradient(**settings):
    apply = make_apply(Decoder(ARCHES["tied"]), **settings)

    def repulsion(params, tokens):
        hidden = apply(params, PROMPTS.tokens, PROMPTS.length, tokens, MASK)[0].hidden
        return jnp.sum(cosine(hidden[:, 0], hidden[:, 1]))

    return jit(jax.value_and_grad(repulsion))


def test_the_repulsion_gradient_reaches_every_parameter():
    """Identity 9; with the tap at the first block, nothing above it is reached."""
    _, gradient = repulsion_gradient()(PARAMS["tied"], TOKENS)
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(gradient))


def test_the_repulsion_gradient_is_the_slope_of_the_cosine():
    direction = random_params(ARCHES["tied"], 99)
    value = repulsion_gradient()
    _, gradient = value(PARAMS["tied"], TOKENS)
    step = 1e-3
    up, down = (
        jax.tree.map(lambda p, d, s=s: p + s * d, PARAMS["tied"], direction) for s in (step, -step)
    )
    slope = (value(up, TOKENS)[0] - value(down, TOKENS)[0]) / (2 * step)
    inner = sum(
        jax.tree.leaves(jax.tree.map(lambda g, d: float(np.sum(g * d)), gradient, direction))
    )
    np.testing.assert_allclose(slope, inner, rtol=1e-2)


def test_a_tapped_layer_gets_gradient_below_it_only():
    _, gradient = repulsion_gradient(repulsion_layer="0")(PARAMS["tied"], TOKENS)
    for leaf in jax.tree.leaves(gradient["layers"]):
        assert np.abs(leaf[0]).max() > 1e-4 and not np.any(leaf[1])
    assert not np.any(gradient["norm"]["scale"])


@pytest.mark.parametrize("layer", ["2", "-1", "final"])
def test_a_layer_the_model_does_not_have_is_refused(layer):
    """Nothing would be tapped, and the embeddings repelled without a word."""
    with pytest.raises(ConfigError, match=f"repulsion_layer='{layer}'.*from 0 to 1"):
        make_apply(Decoder(ARCHES["tied"]), repulsion_layer=layer)
