"""What every loss of every family withstands: padding, permutation, cuts, shards, and the input
that breaks losses."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GROUPS, NAMES, PAIRS, SETTINGS, batches
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads
from running import differentiate, leaves, loss_of, run, value

from ssppo_jax.losses import LOSSES
from ssppo_jax.types import Mean, Policy

EVERY = pytest.mark.parametrize("name", NAMES)
TOKENS = ("old_logp", "ref_logp", "init_logp")


def at_random(name, seed=0):
    return batches(name).at_random(seed)


def part(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


# ---- padding and order ---------------------------------------------------------------------------


@EVERY
def test_padding_may_hold_anything(name):
    """1e6, inf or NaN in every padded slot leaves loss, metrics and gradients bit-identical."""
    policy, batch = at_random(name)
    clean = leaves(run(name, policy, batch, **SETTINGS[name]))
    token, row = batch.mask == 0, batch.weight == 0
    for poison in (1e6, np.inf, np.nan):

        def spoil(x, where, value=poison):
            return np.where(where, np.float32(value), x)

        dirty_policy = Policy(spoil(policy.logp, token), spoil(policy.hidden, row[:, None, None]))
        dirty = batch._replace(
            **{field: spoil(getattr(batch, field), token) for field in TOKENS},
            **{
                field: spoil(getattr(batch, field), row[:, None])
                for field in ("win_rate", "target", "advantage")
            },
            **{field: spoil(getattr(batch, field), row) for field in ("p_win", "similarity")},
        )
        for a, b in zip(
            clean, leaves(run(name, dirty_policy, dirty, **SETTINGS[name])), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@EVERY
def test_a_row_of_weight_zero_does_not_count_even_with_tokens(name):
    policy, batch = at_random(name)
    dropped = batch.weight[:, None, None] == 0
    full = batch._replace(mask=np.where(dropped, np.float32(1), batch.mask))
    expected = leaves(run(name, policy, batch, **SETTINGS[name]))
    for poison in (-1.0, np.nan):
        dirty = Policy(*(np.where(dropped, np.float32(poison), x) for x in policy))
        for a, b in zip(expected, leaves(run(name, dirty, full, **SETTINGS[name])), strict=True):
            np.testing.assert_array_equal(a, b)


@EVERY
def test_permuted_tokens_and_extra_padding_change_nothing(name):
    """Identity 21, first half."""
    policy, batch = at_random(name)
    turned = np.stack(
        [[np.r_[np.arange(n)[::-1], n:5] for n in row] for row in batches(name).LENGTH]
    )

    def turn(x):
        x = np.take_along_axis(x, turned, 2)
        return np.pad(x, ((0, 0), (0, 0), (0, 2)), constant_values=3.0)

    fields = ("completion", "mask", *TOKENS)
    other = batch._replace(**{field: turn(getattr(batch, field)) for field in fields})
    other = other._replace(mask=np.where(np.arange(7) < 5, other.mask, 0.0))
    # Some losses are means of terms of size 1 and both signs: their rounding is absolute.
    assert value(
        name, Policy(turn(policy.logp), policy.hidden), other, **SETTINGS[name]
    ) == pytest.approx(value(name, policy, batch, **SETTINGS[name]), rel=2e-6, abs=1e-7)


@EVERY
def test_the_order_of_prompts_does_not_matter(name):
    policy, batch = at_random(name)
    order = np.array([2, 3, 0, 1])
    mean, _, gradient = run(name, policy, batch, **SETTINGS[name])
    other, _, turned = run(name, part(policy, order), part(batch, order), **SETTINGS[name])
    assert float(other.total) == pytest.approx(float(mean.total), rel=1e-6)
    np.testing.assert_allclose(turned.logp, gradient.logp[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", GROUPS)
def test_the_order_of_the_responses_of_a_group_does_not_matter(name):
    policy, batch = at_random(name)
    order = np.array([2, 0, 1])
    per_response = ("mask", *TOKENS, "advantage", "win_rate", "target")
    other = batch._replace(**{field: getattr(batch, field)[:, order] for field in per_response})
    turned = Policy(*(x[:, order] for x in policy))
    assert value(name, turned, other, **SETTINGS[name]) == pytest.approx(
        value(name, policy, batch, **SETTINGS[name]), rel=2e-6, abs=1e-7
    )


@pytest.mark.parametrize("name", PAIRS)
def test_winner_and_loser_are_told_apart(name):
    """Swapping them, verdicts and all, is another loss: but for SPPO's, which regress each response
    on its own."""
    policy, batch = at_random(name)
    fields = ("mask", *TOKENS, "win_rate", "target")
    swapped = batch._replace(
        **{field: getattr(batch, field)[:, ::-1] for field in fields}, p_win=1 - batch.p_win
    )
    other = value(name, Policy(*(x[:, ::-1] for x in policy)), swapped, **SETTINGS[name])
    symmetric = name in ("s_sppo", "sppo", "sppo_single")
    assert (
        other == pytest.approx(value(name, policy, batch, **SETTINGS[name]), rel=1e-5)
    ) == symmetric


# ---- gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nash_md"])
def test_gradient_agrees_with_finite_differences(name):
    """Differences see through a stopped gradient: KTO's KL is kept at 0 (r < 0), CISPO's weight at
    its cap.

    Nash-MD's log-ratio has no such place: see test_opponent.py.
    """
    policy, batch = at_random(name, seed=1)
    if name == "kto_pair":
        batch = batch._replace(ref_logp=0 * batch.ref_logp)
    if name == "cispo":
        batch = batch._replace(old_logp=policy.logp - 1)
    with jax.enable_x64(True):
        policy = Policy(*(jnp.asarray(x, jnp.float64) for x in policy))
        loss = jax.jit(
            lambda logp, hidden: loss_of(name)(Policy(logp, hidden), batch, **SETTINGS[name])[
                0
            ].result()
        )
        check_grads(loss, tuple(policy), order=1, modes=["rev"], rtol=1e-5, atol=1e-6)


@EVERY
def test_only_s_sppo_moves_the_hidden_states(name):
    _, _, gradient = run(name, *at_random(name), **SETTINGS[name])
    assert np.any(gradient.hidden) == (name == "s_sppo")


# ---- one loss however it is run ------------------------------------------------------------------


@EVERY
def test_jit_changes_nothing(name):
    policy, batch = at_random(name)
    plain = differentiate(name, policy, batch, **SETTINGS[name])
    for a, b in zip(leaves(plain), leaves(run(name, policy, batch, **SETTINGS[name])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_merged_micro_batches_equal_the_whole_batch(name):
    """Unequal micro-batches (two real rows, and one beside a padding row), so a mean of means would
    be seen."""
    policy, batch = at_random(name)
    whole, metrics, gradient = run(name, policy, batch, **SETTINGS[name])
    halves = [
        run(name, part(policy, s), part(batch, s), **SETTINGS[name])
        for s in (slice(0, 2), slice(2, 4))
    ]
    merged = halves[0][0].merge(halves[1][0])
    assert float(merged.result()) == pytest.approx(float(whole.result()), rel=2e-6)
    assert float(merged.weight) == float(whole.weight)
    for key, metric in metrics.items():
        together = halves[0][1][key].merge(halves[1][1][key])
        assert float(together.result()) == pytest.approx(
            float(metric.result()), rel=1e-5, abs=1e-6
        ), key
    for field in Policy._fields:
        cut = np.concatenate([getattr(half[2], field) for half in halves])
        np.testing.assert_allclose(cut, getattr(gradient, field), rtol=1e-6, atol=1e-7)


def test_sharded_over_prompts_equals_one_device():
    """All losses in one program over 4 devices, one prompt each: value, metrics and gradient."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def every(given):
        return {name: differentiate(name, *rows, **SETTINGS[name]) for name, rows in given.items()}

    sharded = every(jax.device_put({name: at_random(name) for name in NAMES}, split))
    for name in NAMES:
        assert not sharded[name][2].logp.sharding.is_fully_replicated
        expected = leaves(run(name, *at_random(name), **SETTINGS[name]))
        for a, b in zip(leaves(sharded[name]), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


# ---- degenerate input ----------------------------------------------------------------------------


@EVERY
def test_degenerate_input_has_a_finite_value_and_gradient(name):
    hyper = (
        {} if "sppo" in name else SETTINGS[name]
    )  # beta = 1e-3 makes SPPO's targets large; elsewhere 1/2 is harder
    for case, (policy, batch) in batches(name).degenerate():
        mean, metrics, gradient = run(name, policy, batch, **hyper)
        means = [
            m for m in metrics.values() if isinstance(m, Mean)
        ]  # a Min and a Max of nothing are infinite
        assert all(np.all(np.isfinite(x)) for x in leaves((mean, means, gradient))), case
        assert np.isfinite(mean.result()), case
        norm = np.sqrt(np.sum(np.square(gradient.logp)))  # in float32, as the optimizer takes it
        assert np.isfinite(norm), case


@EVERY
def test_a_batch_of_padding_alone_is_zero_and_of_weight_zero(name):
    k = at_random(name)[0].logp.shape[1]
    mean, _, gradient = run(
        name,
        *batches(name).build(np.ones((4, k, 5)), np.ones((4, k, 5)), weight=np.zeros(4)),
        **SETTINGS[name],
    )
    assert float(mean.weight) == 0 and float(mean.result()) == 0
    assert not any(np.any(x) for x in gradient)


# ---- what every loss tells -----------------------------------------------------------------------


@EVERY
def test_terms_add_up_to_the_loss(name):
    mean, metrics, _ = run(name, *at_random(name), **SETTINGS[name])
    terms = [m for key, m in metrics.items() if key.startswith("term/")]
    assert terms and all(
        isinstance(t, Mean) and float(t.weight) == float(mean.weight) for t in terms
    )
    assert float(sum(t.total for t in terms)) == float(mean.total)


def test_hyper_parameters_are_keywords_with_plain_defaults_and_a_line_of_help():
    for function in LOSSES.values():
        policy, batch, *hyper = inspect.signature(function).parameters.values()
        assert (policy.name, batch.name) == ("policy", "batch")
        for p in hyper:
            assert p.kind is p.KEYWORD_ONLY and isinstance(p.default, float | int | str | bool), p
            assert f"  {p.name}: " in inspect.getdoc(function).partition("Args:")[2], (
                function.__name__,
                p.name,
            )
