"""Choosing a token: the right support, the right frequencies, the right log-probs, keys addressed
by purpose."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import jit

from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.plan.hlo import collectives
from ssppo_jax.sampling.choose import SamplingParams, choose, invert, restrict, row_keys

KEY = jax.random.key(0)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_support(logits, *, top_k=0, min_p=0.0, top_p=1.0):
    """Which of the logits [V] may be drawn, by the definitions, one filter after the other."""
    keep = np.ones(len(logits), bool)
    if top_k:
        keep &= [(logits > x).sum() < top_k for x in logits]
    if min_p:
        keep &= softmax(logits) >= min_p * softmax(logits).max()
    if top_p < 1.0:
        p = softmax(np.where(keep, logits, -np.inf))
        keep &= [
            p[p > x].sum() < top_p for x in p
        ]  # the more likely ones together do not yet reach top_p
    return keep


FILTERS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 7, "min_p": 0.05, "top_p": 0.8},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_keep_exactly_the_tokens_of_their_definition(filters):
    logits = 2.5 * np.random.default_rng(0).standard_normal((40, 20)).astype(np.float32)
    got = np.asarray(jit(lambda x: restrict(x, SamplingParams(**filters)))(logits))
    want = np.stack([numpy_support(row, **filters) for row in logits])
    np.testing.assert_array_equal(np.isfinite(got), want)
    np.testing.assert_array_equal(got[want], logits[want])


def test_ties_at_the_edge_stay_together_and_the_likeliest_always_stays():
    logits = np.array([[1.0, 3.0, 1.0, 3.0, 0.0]], np.float32)
    for filters in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}):
        kept = np.isfinite(np.asarray(restrict(logits, SamplingParams(**filters))))[0]
        np.testing.assert_array_equal(kept, [False, True, False, True, False])


N = (100, 200)  # draws
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, 0.2], np.float32)


def draws(params):
    logits = np.broadcast_to(LOGITS, (*N, len(LOGITS)))
    return jax.device_get(jit(choose, static_argnums=2)(jax.random.split(KEY, N), logits, params))


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_p": 0.8}, {"top_k": 3, "min_p": 0.2}],
    ids=str,
)
def test_frequencies_and_log_probs_follow_the_distribution_sampled_from(settings):
    params = SamplingParams(**settings)
    token, logp, sampling_logp = draws(params)
    scaled = LOGITS / params.temperature
    support = numpy_support(scaled, top_k=params.top_k, min_p=params.min_p, top_p=params.top_p)
    p = softmax(np.where(support, scaled, -np.inf))
    seen = np.bincount(token.ravel(), minlength=len(p))
    assert not seen[~support].any()
    expected = token.size * p[support]
    chi_square = ((seen[support] - expected) ** 2 / expected).sum()
    assert chi_square < 26  # 99.9% quantile for 8 degrees of freedom; the draws are fixed
    np.testing.assert_allclose(sampling_logp, np.log(p[token]), atol=1e-5)
    np.testing.assert_allclose(
        logp, np.log(softmax(LOGITS)[token]), atol=1e-5
    )  # raw whatever the settings


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 3}, {"temperature": 0.0}]
)
def test_log_probs_are_recorded_at_the_trainers_temperature_over_all_tokens(settings):
    token, logp, _ = draws(SamplingParams(**settings, logp_temperature=0.7))
    np.testing.assert_allclose(logp, np.log(softmax(LOGITS / np.float32(0.7))[token]), atol=1e-5)


@pytest.mark.parametrize("size", [1, 17, 100])
def test_a_token_of_weight_zero_is_never_drawn_even_at_the_edges_of_rounding(size):
    """Uniforms one float around every boundary of the running sum, where parallel sums are not
    monotone."""
    rng = np.random.default_rng(0)
    weights = np.where(rng.uniform(size=(50, size)) < 0.2, rng.uniform(size=(50, size)), 0).astype(
        np.float32
    )
    weights[:, size // 2] = 1.0
    total = np.cumsum(weights.astype(np.float64), -1)
    edge = (total / total[:, -1:]).astype(np.float32)
    inverse = jit(lambda u: invert(np.broadcast_to(weights[:, None], (50, size, size)), u)[0])
    for uniform in (
        edge,
        np.nextafter(edge, np.float32(0)),
        np.nextafter(edge, np.float32(2)),
        0 * edge,
    ):
        token = np.asarray(inverse(np.clip(uniform, 0, 1 - 2**-24)))
        assert (np.take_along_axis(weights, token, 1) > 0).all()


def test_the_drawn_index_is_where_the_running_sum_passes_the_uniform():
    weights = np.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0], np.float32)
    uniform = np.array([0.0, 0.24, 0.26, 0.74, 0.76, 0.999], np.float32)
    found, total = invert(np.tile(weights, (6, 1)), uniform)
    np.testing.assert_array_equal(found, [1, 1, 3, 3, 4, 4])
    np.testing.assert_allclose(total, weights.sum())


def test_temperature_zero_takes_the_likeliest_and_was_certain_of_it():
    token, logp, sampling_logp = draws(SamplingParams(temperature=0.0))
    assert (token == 0).all() and (sampling_logp == 0).all()
    np.testing.assert_allclose(logp, np.log(softmax(LOGITS)[0]), atol=1e-6)


def test_keys_are_the_stated_fold_ins():
    address = np.array([5, 2**32 - 1], np.uint32)
    keys = jax.random.key_data(row_keys(KEY, address, 3))
    for b, k in np.ndindex(2, 3):
        want = jax.random.fold_in(jax.random.fold_in(KEY, address[b]), k)
        np.testing.assert_array_equal(keys[b, k], jax.random.key_data(want))
    assert len(np.unique(keys.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(
        jax.random.key_data(row_keys(KEY, address, 2, first=1)), keys[:, 1:]
    )


def test_a_vocabulary_that_is_cut_over_devices_stays_cut_while_a_token_is_drawn():
    """Gathered logits were a third of what a decoding step sent (Llama 3 8B, v5e 4x4)."""
    mesh, size = make_mesh((2, 1, 4)), 10_000  # 79 blocks of 128: not a multiple of 4
    cut = NamedSharding(mesh, P("data", None, "tensor"))
    logits = np.random.default_rng(0).normal(size=(4, 2, size)).astype(np.float32)
    keys = row_keys(jax.random.key(0), np.arange(4, dtype=np.uint32), 2)

    def draw(keys, logits):
        return choose(keys, jax.lax.with_sharding_constraint(logits, cut), SamplingParams())

    placed = jax.device_put(logits, cut)
    program = jax.jit(draw).lower(keys, placed).compile()
    largest = max(one.size for one in collectives(program.as_text()))
    assert largest < 4 * 2 * size / 2 / 4  # bytes: a sixteenth of a device's rows, whole
    for one, whole in zip(
        program(keys, placed), choose(keys, logits, SamplingParams()), strict=True
    ):
        np.testing.assert_allclose(one, whole, rtol=1e-5)
