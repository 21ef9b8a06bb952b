"""The pieces losses share: sums, means that merge, cosines, and the statistics logged with every
loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from pair_batches import LENGTH, at_random, build

from ssppo_jax.losses import core
from ssppo_jax.types import Mean


def test_clean_makes_constants_of_all_that_must_not_count():
    """Whatever stood there: log-probs, states and row values 0, win rates 1/2; the rest as it was,
    in float32."""
    policy, batch = at_random()
    token, row = (batch.mask > 0), (batch.weight > 0)
    fills = dict.fromkeys(
        ("old_logp", "ref_logp", "init_logp", "similarity", "advantage", "weight"), 0.0
    )
    fills |= dict.fromkeys(("win_rate", "target", "p_win"), 0.5)
    counts = {
        f: token if "logp" in f else row.reshape(-1, *[1] * (getattr(batch, f).ndim - 1))
        for f in fills
    }
    dirty = batch._replace(
        **{f: np.where(counts[f], getattr(batch, f), np.nan) for f in fills if f != "weight"},
        mask=np.where(row[:, None, None], batch.mask, 1.0),
    )
    states = np.where(row[:, None, None], policy.hidden, np.nan)
    found_policy, found = core.clean(
        policy._replace(logp=np.where(token, policy.logp, np.nan), hidden=states), dirty
    )
    for f, fill in fills.items():
        np.testing.assert_array_equal(
            getattr(found, f), np.where(counts[f], getattr(batch, f), fill), err_msg=f
        )
    np.testing.assert_array_equal(found.mask, batch.mask)
    np.testing.assert_array_equal(found_policy.logp, np.where(token, policy.logp, 0))
    np.testing.assert_array_equal(
        found_policy.hidden, np.where(row[:, None, None], policy.hidden, 0)
    )


def test_sequence_logratio_is_the_sum_over_real_tokens_only():
    r = core.sequence_logratio(
        np.array([[[-1.0, -2.0, np.nan]]]),
        np.array([[[-1.5, -4.0, 1e6]]]),
        np.array([[[1.0, 1.0, 0.0]]]),
    )
    assert r.dtype == jnp.float32
    np.testing.assert_allclose(r, [[2.5]])


def test_half_precision_log_probs_are_summed_in_float32():
    """256 terms of -1.0078125: bfloat16 sums would stall at multiples of 2."""
    logp = jnp.full((1, 1, 256), -1.0078125, jnp.bfloat16)
    total = core.sequence_logratio(logp, jnp.zeros_like(logp), jnp.ones_like(logp))
    assert total.dtype == jnp.float32 and float(total[0, 0]) == -258.0


def test_sequence_mean_divides_by_the_length_and_survives_an_empty_sequence():
    mean = core.sequence_mean(
        np.array([[[-1.0, -4.0], [np.nan, np.nan]]]), np.array([[[1.0, 1.0], [0.0, 0.0]]])
    )
    np.testing.assert_array_equal(mean, [[-2.5, 0.0]])


def test_weighted_mean_ignores_what_has_no_weight():
    mean = core.weighted_mean(np.array([1.0, np.nan, 5.0]), np.array([1.0, 0.0, 3.0]))
    assert (float(mean.total), float(mean.weight), float(mean.result())) == (16.0, 4.0, 4.0)


def test_sum_terms_keeps_the_weight_and_names_the_terms():
    total, metrics = core.sum_terms({"a": Mean(3.0, 2.0), "b": Mean(-1.0, 2.0)})
    assert total == Mean(2.0, 2.0)
    assert metrics == {"term/a": Mean(3.0, 2.0), "term/b": Mean(-1.0, 2.0)}


def cosine_gradient(a, b):
    return [
        np.asarray(g) for g in jax.grad(lambda a, b: core.cosine(a, b).sum(), argnums=(0, 1))(a, b)
    ]


def test_cosine_of_a_pencil_pair():
    assert float(core.cosine(np.array([3.0, 4.0]), np.array([8.0, 6.0]))) == pytest.approx(0.96)


def test_squared_distance_of_unit_vectors_is_two_minus_twice_the_cosine():
    """Identity 8: |h_w - h_l|^2 = 2 - 2 cos, on unit vectors; the cosine ignores scale."""
    a, b = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    distance = np.sum((core.unit(a) - core.unit(b)) ** 2, axis=-1)
    np.testing.assert_allclose(distance, 2 - 2 * core.cosine(a, b), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(core.cosine(1e3 * a, 1e-3 * b), core.cosine(a, b), rtol=1e-5)


def test_cosine_gradient_is_orthogonal_to_the_vector_and_zero_between_duplicates():
    """Identity 8: so repulsion turns states and never scales them, and cannot separate exact
    duplicates."""
    a, b = np.random.default_rng(1).normal(size=(2, 6, 4)).astype(np.float32)
    for vector, gradient in zip((a, b), cosine_gradient(a, b), strict=True):
        assert np.all(np.linalg.norm(gradient, axis=-1) > 1e-2)
        np.testing.assert_allclose(np.sum(vector * gradient, axis=-1), 0, atol=1e-6)
    for gradient in cosine_gradient(a, 2 * a):
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_cosine_gradient_agrees_with_finite_differences():
    a, b = np.random.default_rng(2).normal(size=(2, 2, 3))
    with jax.enable_x64(True):
        check_grads(core.cosine, (a, b), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("tiny", [0.0, 1e-20, 1e-13])
def test_cosine_of_a_vector_without_direction_is_zero_with_zero_gradient(tiny):
    a, b = np.full(3, tiny, np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    assert float(core.cosine(a, b)) == 0 and float(core.cosine(a, a)) == 0
    for gradient in (*cosine_gradient(a, b), *cosine_gradient(b, a), *cosine_gradient(a, a)):
        np.testing.assert_array_equal(gradient, 0)


# ---- ratio_stats ---------------------------------------------------------------------------------


def results(policy, batch):
    return {key: float(metric.result()) for key, metric in core.ratio_stats(policy, batch).items()}


def test_ratio_stats_equal_a_float64_loop():
    policy, batch = at_random()
    stats = results(policy, batch)
    u = [
        (policy.logp - batch.old_logp)[b, k, : LENGTH[b, k]].astype(float)
        for b in range(3)
        for k in range(2)
    ]  # log(pi/pi_t)
    d = [
        (batch.init_logp - policy.logp)[b, k, : LENGTH[b, k]].astype(float)
        for b in range(3)
        for k in range(2)
    ]
    ratio = np.exp(np.concatenate(u))
    k3 = lambda x: np.mean([np.sum(np.exp(v) - 1 - v) for v in x])  # noqa: E731
    expected = {
        "ratio/min": ratio.min(),
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "ratio/gap": np.abs(ratio - 1).max(),
        "ratio/sequence_log": np.mean([v.sum() for v in u]),
        "kl/old_k1": -np.mean([v.sum() for v in u]),
        "kl/old_k3": k3(u),
        "kl/init_k1": -np.mean([v.sum() for v in d]),
        "kl/init_k3": k3(d),
        "length/min": 1,
        "length/mean": LENGTH[:3].mean(),
        "length/max": 5,
    }
    assert stats == pytest.approx(expected, rel=2e-6)


def test_ratio_stats_of_micro_batches_merge_to_the_whole():
    policy, batch = at_random()
    part = lambda tree, s: jax.tree.map(lambda x: x[s], tree)  # noqa: E731
    halves = [core.ratio_stats(part(policy, s), part(batch, s)) for s in (slice(0, 1), slice(1, 4))]
    merged = {
        key: float(metric.merge(halves[1][key]).result()) for key, metric in halves[0].items()
    }
    assert merged == pytest.approx(results(policy, batch), rel=1e-6)


@pytest.mark.parametrize("poison", [1e6, np.nan])
def test_ratio_stats_do_not_see_padding(poison):
    policy, batch = at_random()
    spoil = lambda x: np.where(batch.mask == 0, np.float32(poison), x)  # noqa: E731
    dirty = batch._replace(
        old_logp=spoil(batch.old_logp),
        ref_logp=spoil(batch.ref_logp),
        init_logp=spoil(batch.init_logp),
    )
    assert results(policy._replace(logp=spoil(policy.logp)), dirty) == results(policy, batch)


def test_ratio_one_and_no_divergence_on_policy():
    policy, batch = at_random()
    stats = results(policy, batch._replace(old_logp=policy.logp, init_logp=policy.logp))
    assert [stats[f"ratio/{k}"] for k in ("min", "mean", "max")] == [1, 1, 1]
    assert [stats[f"kl/{k}"] for k in ("old_k1", "old_k3", "init_k1", "init_k3")] == [0, 0, 0, 0]


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_extreme_ratios_are_of_real_tokens(shift):
    """Padding has ratio 1: the least ratio of a policy that rose everywhere, the greatest of one
    that fell."""
    policy, batch = at_random()
    stats = results(policy, batch._replace(old_logp=policy.logp - np.float32(shift)))
    assert [stats["ratio/min"], stats["ratio/max"]] == pytest.approx([np.exp(shift)] * 2, rel=1e-5)


def test_unscored_initial_log_probs_do_not_count_as_divergence():
    policy, batch = at_random()
    init = batch.init_logp.copy()
    init[1] = 0.0  # the second row was not scored
    half, whole = (
        core.ratio_stats(policy, batch._replace(init_logp=init)),
        core.ratio_stats(policy, batch),
    )
    assert float(half["kl/init_k3"].weight) == 4 and float(whole["kl/init_k3"].weight) == 6
    none = core.ratio_stats(policy, batch._replace(init_logp=0 * init))
    assert float(none["kl/init_k1"].weight) == 0 and float(none["kl/init_k1"].result()) == 0


def test_exploded_ratios_are_logged_as_large_and_finite():
    logp = np.full((1, 2, 3), -1.0)
    stats = results(*build(logp, np.ones((1, 2, 3)), old=logp - 1e4, init=logp + 1e4))
    assert all(np.isfinite(list(stats.values()))) and stats["ratio/max"] > 1e25


def test_a_batch_of_padding_alone_is_neutral_in_a_merge():
    policy, batch = at_random()
    empty = core.ratio_stats(*build(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), weight=[0.0]))
    merged = {
        key: float(m.merge(empty[key]).result())
        for key, m in core.ratio_stats(policy, batch).items()
    }
    assert merged == results(policy, batch)
