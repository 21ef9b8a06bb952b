"""What the pair losses are to each other and to their optimum (ALGORITHMS, section 7)."""

import math

import numpy as np
import pytest
from families import PAIRS, SETTINGS
from pair_batches import Row, at_random, build, by_hand
from running import run, value

from ssppo_jax.losses.preference import LOSSES
from ssppo_jax.types import Policy


def at_start(**rows):
    """Four pairs with theta = theta_t: the policy is still its own reference."""
    rng = np.random.default_rng(5)
    rows = {"hidden": rng.normal(size=(4, 2, 3)), **rows}
    return build(-rng.uniform(0.1, 3, (4, 2, 5)), np.ones((4, 2, 5)), **rows)


def test_without_similarity_or_repulsion_s_sppo_is_sppo():
    """Identity 3, first half: S = 0 leaves the targets as they are."""
    policy, batch = at_random()
    batch = batch._replace(target=batch.win_rate)
    gated, _, gradient = run("s_sppo", policy, batch, repulsion_weight=0.0, **SETTINGS["sppo"])
    plain, _, plain_gradient = run("sppo", policy, batch, **SETTINGS["sppo"])
    assert float(gated.total) == pytest.approx(
        float(plain.total), rel=1e-6
    )  # two programs: fused, hence rounded, apart
    np.testing.assert_allclose(gradient.logp, plain_gradient.logp, rtol=1e-6, atol=1e-7)


def test_a_fully_gated_pair_is_held_where_it_is():
    """Identity 3, second half: S = 1 gives the loss 1/2 (r_w^2 + r_l^2) and no gradient at theta =
    theta_t."""
    policy, batch = by_hand()
    half = np.full((1, 2), 0.5, np.float32)
    loss = value("s_sppo", policy, batch._replace(target=half), repulsion_weight=0.0)
    assert loss == pytest.approx((0.75**2 + 1) / 2)
    _, _, gradient = run("s_sppo", *at_start(target=np.full((4, 2), 0.5)))
    assert not np.any(gradient.logp)


@pytest.mark.parametrize(("hyper", "factor"), [({}, 1.0), ({"pair_reduction": "sum"}, 2.0)])
def test_first_gradient_is_the_win_rate_margin_over_beta(hyper, factor):
    """Identity 5: at theta = theta_t, dL/dr_y = -(P_y - 1/2)/beta with `mean`, twice that with
    `sum`.

    And the loss itself has the closed form 1/2 sum ((P - 1/2)/beta)^2 + lambda cos.
    """
    target = np.array([[0.9, 0.1], [0.7, 0.45], [0.55, 0.3], [0.5, 0.2]])
    policy, batch = at_start(target=target)
    mean, _, gradient = run("s_sppo", policy, batch, **hyper)
    expected = np.broadcast_to((-factor * (target - 0.5) / 1e-3)[:, :, None], (4, 2, 5))
    np.testing.assert_allclose(gradient.logp, expected, rtol=1e-6)
    h = policy.hidden.astype(float)
    cos = (
        np.sum(h[:, 0] * h[:, 1], -1)
        / np.linalg.norm(h[:, 0], axis=-1)
        / np.linalg.norm(h[:, 1], axis=-1)
    )
    closed = factor * 0.5 * np.sum(((target - 0.5) / 1e-3) ** 2, axis=-1) + cos
    assert float(mean.result()) == pytest.approx(closed.mean(), rel=1e-6)


def test_sppo_single_with_a_certain_winner_is_half_of_sppo_hard():
    """Identity 6."""
    policy, batch = at_random()
    single, _, gradient = run(
        "sppo_single", policy, batch._replace(p_win=np.ones(4, np.float32)), beta=0.5
    )
    hard, _, hard_gradient = run("sppo_hard", policy, batch, beta=0.5)
    assert float(single.total) == pytest.approx(float(hard.total) / 2, rel=1e-6)
    np.testing.assert_allclose(gradient.logp, hard_gradient.logp / 2, rtol=1e-6)


def test_beta_squared_times_the_loss_is_a_regression_of_beta_r_on_the_win_rate():
    """Identity 7: beta^2 L = 1/2 sum (beta r - (P - 1/2))^2 + beta^2 lambda cos."""
    policy, batch = at_random()
    rows = [Row(policy, batch, b) for b in range(3)]
    for beta in (1e-3, 0.2):
        mean, _ = LOSSES["s_sppo"](policy, batch, beta=beta, repulsion_weight=3.0)
        scaled = sum(
            0.5 * np.sum((beta * np.array(x.r) - (x.Pc - 0.5)) ** 2) + beta**2 * 3 * x.cos
            for x in rows
        )
        assert beta**2 * float(mean.total) == pytest.approx(scaled, rel=1e-5)


def test_repulsion_pushes_the_hidden_states_apart_and_through_both():
    """Identity 8 in the loss: a step down the gradient lowers the cosine; identical states get no
    gradient."""
    policy, batch = at_start()
    _, metrics, gradient = run("s_sppo", policy, batch)
    assert np.all(np.linalg.norm(gradient.hidden, axis=-1) > 1e-3)
    moved = policy._replace(hidden=policy.hidden - 0.05 * np.asarray(gradient.hidden))
    _, after, _ = run("s_sppo", moved, batch)
    assert float(after["similarity/hidden"].result()) < float(metrics["similarity/hidden"].result())
    duplicate = policy._replace(hidden=np.repeat(policy.hidden[:, :1], 2, axis=1))
    _, metrics, gradient = run("s_sppo", duplicate, batch)
    assert float(metrics["similarity/hidden"].result()) == pytest.approx(1.0)
    np.testing.assert_allclose(gradient.hidden, 0, atol=1e-6)


AT_THE_REFERENCE = {  # r = 0, P = 1/2, beta = 1/4
    "s_sppo": 0.0,
    "sppo": 0.0,
    "sppo_single": 0.0,
    "sppo_hard": 8.0,
    "dpo": math.log(2),
    "robust": math.log(2),
    "ipo": 4.0,
    "hinge": 1.0,
    "kto_pair": 0.5,
    "exo_pair": -math.log(2) - math.log(0.1 * 0.9) / 2,
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "inpo": 4.0,
}


def test_only_losses_without_a_reference_have_no_value_there():
    assert set(PAIRS) - set(AT_THE_REFERENCE) == {"simpo", "orpo"}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_at_the_reference_a_loss_has_its_pencil_value(name):
    """Identity 26: log 2 for the logistic losses, 1/2 for KTO (r = z_0); and no preference gives
    SPPO none."""
    hyper = {"s_sppo": {"repulsion_weight": 0.0}, "exo_pair": {"label_smoothing": 0.1}}.get(
        name, {}
    )
    hyper |= {"eta": 0.25, "tau": 0.1} if name == "inpo" else {"beta": 0.25}
    assert value(name, *at_start(), **hyper) == pytest.approx(AT_THE_REFERENCE[name], rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothing_does_not_move_dpo_at_the_reference(smoothing):
    """Identity 26."""
    assert value("dpo", *at_start(), label_smoothing=smoothing) == pytest.approx(
        math.log(2), rel=1e-6
    )


@pytest.mark.parametrize(
    "name", [name for name in PAIRS if name not in ("sppo", "s_sppo", "sppo_single")]
)
def test_the_first_step_raises_the_winner_and_lowers_the_loser(name):
    """SPPO's go by the win rates (identity 5), and APO-down starts on the loser alone."""
    gradient = run(name, *at_start(), **SETTINGS[name])[2].logp
    assert np.all(gradient[:, 1] > 0)
    assert np.all(gradient[:, 0] < 0) if name != "apo_down" else not np.any(gradient[:, 0])


def swapped(policy, batch):
    """The same pairs, the labels flipped."""
    turn = lambda x: x[:, ::-1]  # noqa: E731
    return Policy(*map(turn, policy)), batch._replace(
        mask=turn(batch.mask), ref_logp=turn(batch.ref_logp)
    )


def test_robust_dpo_under_its_label_noise_is_dpo_in_expectation():
    """Unbiased: (1 - e) L(w, l) + e L(l, w) = DPO(w, l); cDPO instead is the expectation of DPO."""
    clean, flipped = at_random(), swapped(*at_random())
    mixed = lambda name, e, **h: (1 - e) * value(name, *clean, **h) + e * value(name, *flipped, **h)  # noqa: E731
    noisy = {"beta": 0.5, "label_smoothing": 0.3}
    assert mixed("robust", 0.3, **noisy) == pytest.approx(value("dpo", *clean, beta=0.5), rel=1e-5)
    assert mixed("dpo", 0.3, beta=0.5) == pytest.approx(value("dpo", *clean, **noisy), rel=1e-5)


def margin(d):
    """Four pairs with r_w - r_l = 5 d."""
    logp = np.full((4, 2, 5), -3.0)
    return build(logp, np.ones((4, 2, 5)), ref=logp - np.array([d / 2, -d / 2])[None, :, None])


def test_exo_is_zero_where_the_policy_says_what_the_label_does():
    """s(beta D) = 1 - e; a KL divergence, it is positive elsewhere."""
    best = math.log(0.9 / 0.1) / 0.5 / 5
    losses = [
        value("exo_pair", *margin(best + d), beta=0.5, label_smoothing=0.1)
        for d in (-0.2, 0.0, 0.2)
    ]
    assert losses[1] == pytest.approx(0, abs=1e-6) and min(losses[0], losses[2]) > 5e-3


def test_hinge_pushes_up_to_its_margin_and_not_beyond():
    """1 - beta D = 0 at D = 2."""
    for d, pushed in ((0.38, True), (0.42, False)):
        mean, _, gradient = run("hinge", *margin(d), beta=0.5)
        assert (float(mean.total) > 0) == pushed == bool(np.any(gradient.logp))


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference_do_not_read_one(name):
    policy, batch = at_random()
    other = batch._replace(ref_logp=batch.ref_logp - 3, old_logp=batch.old_logp + 1)
    assert value(name, policy, other, **SETTINGS[name]) == value(
        name, policy, batch, **SETTINGS[name]
    )


def test_simpo_of_one_token_without_margin_is_dpo_against_a_uniform_reference():
    policy, batch = build(
        np.random.default_rng(0).uniform(-3, -0.1, (4, 2, 1)),
        np.ones((4, 2, 1)),
        ref=np.full((4, 2, 1), -1.0),
    )
    assert value("simpo", policy, batch, beta=2.0, simpo_gamma=0.0) == pytest.approx(
        value("dpo", policy, batch, beta=2.0), rel=1e-6
    )


def test_orpo_at_equal_odds_is_the_likelihood_of_the_winner_and_a_constant():
    policy, batch = build(np.full((4, 2, 5), -0.7), np.ones((4, 2, 5)))
    assert value("orpo", policy, batch, beta=0.3) == pytest.approx(
        0.7 + 0.3 * math.log(2), rel=1e-6
    )


def test_the_kl_of_kto_is_never_negative_and_has_no_gradient():
    """Pencil: r = (1, 2), beta = 1/2. KL_w = 1 and KL_l = 2 count in the value; below 0 they are
    0."""
    s = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    ones = np.ones((4, 2, 1))
    policy, batch = build(-ones, ones, ref=-ones - np.array([1.0, 2.0])[None, :, None])
    mean, _, gradient = run("kto_pair", policy, batch, beta=0.5)
    a, b = s((1 - 2) / 2), s((1 - 2) / 2)
    assert float(mean.result()) == pytest.approx((2 - a - b) / 2, rel=1e-6)
    np.testing.assert_allclose(
        gradient.logp[0, :, 0], [-a * (1 - a) / 4, b * (1 - b) / 4], rtol=1e-5
    )
    policy, batch = build(-ones, ones, ref=-ones - np.array([-1.0, -2.0])[None, :, None])
    assert value("kto_pair", policy, batch, beta=0.5) == pytest.approx(
        (2 - s(-0.5) - s(1.0)) / 2, rel=1e-6
    )


def test_sppo_of_two_samples_judged_against_each_other_alone_is_sppo_single():
    policy, batch = at_random()
    batch = batch._replace(win_rate=np.stack([batch.p_win, 1 - batch.p_win], axis=-1))
    assert value("sppo", policy, batch, beta=0.5, log_z_coef=0.6) == pytest.approx(
        value("sppo_single", policy, batch, beta=0.5, log_z_coef=0.6), rel=1e-6
    )


def test_bco_and_apo_zero_treat_winner_and_loser_apart():
    """The gradient of one response does not depend on the other, unlike DPO's."""
    policy, batch = at_random()
    moved = batch._replace(
        ref_logp=batch.ref_logp - np.array([0.0, 1.0], np.float32)[None, :, None]
    )
    for name, apart in (("bco_pair", True), ("apo_zero", True), ("nca_pair", True), ("dpo", False)):
        before, after = (
            run(name, policy, b, **SETTINGS[name])[2].logp[:, 0] for b in (batch, moved)
        )
        assert np.array_equal(before, after) == apart, name


def test_without_label_noise_robust_dpo_is_dpo():
    """Identity 26. (cDPO without smoothing is `dpo` at its default, see the pencil values.)"""
    plain, _, gradient = run("dpo", *at_random(), beta=0.5)
    robust, _, robust_gradient = run("robust", *at_random(), beta=0.5, label_smoothing=0.0)
    assert float(robust.total) == pytest.approx(float(plain.total), rel=1e-6)
    np.testing.assert_allclose(robust_gradient.logp, gradient.logp, rtol=1e-6, atol=1e-7)


def test_ipo_is_minimal_at_its_margin():
    """Identity 26: loss and gradient vanish where the mean log-ratios differ by 1/(2 beta)."""
    logp = np.full((4, 2, 5), -3.0)
    policy, batch = build(
        logp, np.ones((4, 2, 5)), ref=logp - np.array([0.75, -0.25])[None, :, None]
    )
    mean, _, gradient = run("ipo", policy, batch, beta=0.5)
    assert float(mean.total) == 0 and not np.any(gradient.logp)
    assert value("ipo", policy, batch, beta=0.4) > 0.01


def test_inpo_without_a_reference_is_unnormalised_ipo_against_pi_t():
    policy, batch = at_random()
    ipo = value(
        "ipo", policy, batch._replace(ref_logp=batch.old_logp), beta=0.5, ipo_length_normalize=False
    )
    assert value("inpo", policy, batch, eta=0.5, tau=0.0) == pytest.approx(ipo, rel=1e-6)
