"""What the group losses are to each other and in their limits (ALGORITHMS, section 7)."""

import math

import jax
import numpy as np
import pytest
from families import GROUPS, SETTINGS
from group_batches import at_random, by_hand, full, on_policy
from pair_batches import build
from running import run, slope, value

from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.losses.group import LOSSES
from ssppo_jax.losses.ratio_gates import RATIO_GATES

GATES = sorted(RATIO_GATES)
OF_RATIO = ["sigmoid", "sigmoid_norm", "arctan", "erf", "softsign"]


def policy_gradient(batch):
    """-A/L per token, over the 9 responses."""
    length = np.maximum(batch.mask.sum(-1, keepdims=True), 1)
    return -batch.advantage[..., None] * batch.mask / length / 9


@pytest.mark.parametrize("gate", GATES)
def test_on_policy_every_gate_and_temperature_has_the_plain_policy_gradient(gate):
    """Identity 14, SSPO: A/L per token, raw sigmoid included, whose value there is
    2/temperature."""
    policy, batch = on_policy()
    for taus in ((1.6, 3.0), (10.0, 12.0)):
        hyper = {
            "sspo_gate": gate,
            "sspo_temperature_pos": taus[0],
            "sspo_temperature_neg": taus[1],
        }
        np.testing.assert_allclose(
            slope("sspo", policy, batch, **hyper), policy_gradient(batch), rtol=3e-6, atol=1e-8
        )


@pytest.mark.parametrize("name", ["sapo", "grpo", "gspo", "gspo_token", "gmpo"])
def test_on_policy_the_relatives_have_the_same_gradient(name):
    """Identity 14, the others. (CISPO and DAPO average over tokens.)"""
    policy, batch = on_policy()
    np.testing.assert_allclose(
        slope(name, policy, batch), policy_gradient(batch), rtol=3e-6, atol=1e-8
    )


def test_on_policy_rloo_is_reinforce_with_a_baseline():
    """A times the sum of the token scores: L times the gradient of the relatives above."""
    policy, batch = on_policy()
    length = batch.mask.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        slope("rloo", policy, batch), policy_gradient(batch) * length, rtol=3e-6, atol=1e-8
    )


@pytest.mark.parametrize("gate", ["arctan_log", "arctan", "sigmoid_norm"])
def test_without_temperature_sspo_is_unclipped_gspo(gate):
    """Identity 15: the error falls as the square of the temperature, value and gradient."""
    with jax.enable_x64(True):
        policy, batch = at_random()
        wide = jax.tree.map(lambda x: x.astype(x.dtype.kind + "8"), (policy, batch))
        plain = value("sspo", *wide, sspo_gate="identity")
        cold = [
            {"sspo_gate": gate, "sspo_temperature_pos": t, "sspo_temperature_neg": t}
            for t in (0.02, 0.04)
        ]
        errors = [value("sspo", *wide, **hyper) - plain for hyper in cold]
        assert errors[1] / errors[0] == pytest.approx(4, rel=0.02) and abs(errors[0]) < 1e-4
        np.testing.assert_allclose(
            slope("sspo", *wide, **cold[0]), slope("sspo", *wide, sspo_gate="identity"), atol=1e-4
        )


def test_raw_sigmoid_diverges_without_temperature():
    """Identity 15, the exception: s -> 2/temperature."""
    cold = {"sspo_gate": "sigmoid", "sspo_temperature_pos": 1e-3, "sspo_temperature_neg": 1e-3}
    assert value("sspo", *by_hand(), **cold) == pytest.approx(2e3 * -(2 - 1) / 2, rel=1e-2)


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate not in ("identity", "sigmoid")])
def test_a_hot_gate_turns_off_policy_updates_off(gate):
    """Identity 16: s -> 1 and the gradient -> 0 where r is not 1."""
    policy, batch = full([[0.5, -0.4, 0.3], [0.2, 0.6, -0.7]], [1.0, -0.5])
    hot = {"sspo_gate": gate, "sspo_temperature_pos": 1e4, "sspo_temperature_neg": 1e4}
    assert value("sspo", policy, batch, **hot) == pytest.approx(-(1.0 - 0.5) / 3, abs=1e-3)
    np.testing.assert_allclose(slope("sspo", policy, batch, **hot), 0, atol=1e-6)


def test_the_identity_gate_is_gspo_without_clip():
    """Identity 17, first half, value and gradient."""
    policy, batch = at_random()
    wide = {"epsilon": 0.99, "epsilon_high": 50.0}
    assert value("sspo", policy, batch, sspo_gate="identity") == pytest.approx(
        value("gspo", policy, batch, **wide), rel=1e-5
    )
    np.testing.assert_allclose(
        slope("sspo", policy, batch, sspo_gate="identity"),
        slope("gspo", policy, batch, **wide),
        rtol=1e-5,
        atol=1e-7,
    )


def test_the_hard_clip_gate_is_gmpo_where_only_its_side_is_reached():
    """Identity 17, second half: GMPO clips one side by the sign of A; beyond the other side the two
    must differ."""
    u = np.array([[1.0, 0.1, -0.2], [-1.0, 0.2, -0.1]])
    tau = math.pi / 2 / 0.4
    hyper = {"sspo_gate": "log_clip", "sspo_temperature_pos": tau, "sspo_temperature_neg": tau}
    policy, batch = full(u, [1.0, -0.5])
    assert value("sspo", policy, batch, **hyper) == pytest.approx(
        value("gmpo", policy, batch), rel=1e-5
    )
    np.testing.assert_allclose(
        slope("sspo", policy, batch, **hyper), slope("gmpo", policy, batch), rtol=1e-5, atol=1e-8
    )
    policy, batch = full(-u, [1.0, -0.5])
    assert abs(value("sspo", policy, batch, **hyper) - value("gmpo", policy, batch)) > 0.01


def test_sspo_by_arctan_log_never_leaves_its_bounds():
    """Identity 18 in the loss: |log s| < pi/(2 temperature) whatever the tokens."""
    policy, batch = full([[20.0] * 3, [-20.0] * 3], [1.0, 1.0])
    _, metrics = LOSSES["sspo"](policy, batch, sspo_temperature_pos=3.0)
    low, high = (float(metrics[f"sequence_weight/{end}"].result()) for end in ("min", "max"))
    assert math.exp(-math.pi / 6) < low < math.exp(-math.pi / 6 * 0.96)
    assert math.exp(math.pi / 6 * 0.96) < high < math.exp(math.pi / 6)


@pytest.mark.parametrize("gate", OF_RATIO)
def test_sspo_is_sapo_for_responses_of_one_token_or_one_ratio(gate):
    """Identity 19, value and gradient."""
    for u in ([[0.4], [-0.3]], [[0.4] * 3, [-0.3] * 3]):
        policy, batch = full(u, [1.0, -0.5])
        sspo = {"sspo_gate": gate, "sspo_temperature_pos": 2.0, "sspo_temperature_neg": 3.0}
        sapo = {"sapo_gate": gate, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
        assert value("sspo", policy, batch, **sspo) == pytest.approx(
            value("sapo", policy, batch, **sapo), rel=1e-5
        )
        np.testing.assert_allclose(
            slope("sspo", policy, batch, **sspo), slope("sapo", policy, batch, **sapo), rtol=1e-5
        )


def test_sapo_weighs_a_token_by_sech_squared():
    """Identity 20: d gain/d log pi = A r f', f' = tau f (1 - tau/4 f) = sech^2(tau (r - 1)/2)."""
    u, tau = np.array([[0.4, -0.7, 1.2], [-0.3, 0.1, 0.9]]), 3.0
    policy, batch = full(u, [1.0, -0.5])
    found = slope("sapo", policy, batch, sapo_temperature_pos=tau, sapo_temperature_neg=tau)
    r = np.exp(u)
    f = 4 / tau / (1 + np.exp(-tau * (r - 1)))
    np.testing.assert_allclose(
        tau * f * (1 - tau / 4 * f), np.cosh(tau * (r - 1) / 2) ** -2, rtol=1e-9
    )
    expected = -np.array([[1.0], [-0.5]]) * r * np.cosh(tau * (r - 1) / 2) ** -2 / 3 / 3
    np.testing.assert_allclose(found[0, :2, :3], expected, rtol=1e-5)


def test_without_temperature_sapo_is_unclipped_grpo_up_to_a_constant():
    """Identity 20, second half: the same gradient."""
    policy, batch = at_random()
    cold = slope("sapo", policy, batch, sapo_temperature_pos=1e-2, sapo_temperature_neg=1e-2)
    plain = slope("grpo", policy, batch, epsilon=0.999, epsilon_high=1e3)
    np.testing.assert_allclose(cold, plain, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("gate", GATES)
def test_the_geometric_mean_of_the_gates_is_at_most_their_arithmetic_mean(gate):
    """Identity 22 (Jensen): so SSPO's value of a response is at most SAPO's under A > 0."""
    policy, batch = at_random()
    batch = batch._replace(advantage=np.ones_like(batch.advantage))
    sspo = {"sspo_gate": gate, "sspo_temperature_pos": 2.0}
    sapo = {"sapo_gate": gate, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 2.0}
    assert value("sspo", policy, batch, **sspo) > value("sapo", policy, batch, **sapo) + 1e-4


def test_gspo_token_is_gspo_in_value_and_gradient():
    """Identity 23, first half."""
    a, b = (run(name, *at_random(), **SETTINGS[name]) for name in ("gspo", "gspo_token"))
    assert float(a[0].total) == pytest.approx(float(b[0].total), rel=1e-6)
    np.testing.assert_allclose(a[2].logp, b[2].logp, rtol=1e-5, atol=1e-7)


def test_dr_grpo_is_grpo_when_every_response_has_the_full_length():
    """Identity 23, second half (the std of 1 is the advantage's part)."""
    policy, batch = full(np.random.default_rng(2).normal(size=(3, 5)), [1.0, -0.5, 0.2])
    assert value("dr_grpo", policy, batch) == pytest.approx(value("grpo", policy, batch), rel=1e-6)
    assert value("dr_grpo", policy, batch, max_completion_length=10) == pytest.approx(
        value("grpo", policy, batch) / 2, rel=1e-6
    )


@pytest.mark.parametrize("name", GROUPS)
def test_equal_rewards_give_no_loss_gradient(name):
    """Identity 24: from the reward to the gradient, off policy; at the reference, where the KL has
    none."""
    policy, batch = at_random()
    advantage = ADVANTAGES["grpo"](np.full((4, 3), 0.1, np.float32))
    batch = batch._replace(advantage=advantage, ref_logp=policy.logp)
    _, _, gradient = run(name, policy, batch, **SETTINGS[name])
    assert not np.any(gradient.logp)


def test_k3_is_never_negative_and_zero_at_the_reference():
    """Identity 25."""
    logp = np.full((1, 2, 3), -1.0)
    for d in (-50.0, -2.0, -1e-3, 1e-3, 2.0, 19.0):
        found = value("grpo", *build(logp, np.ones((1, 2, 3)), ref=logp + d), beta=1.0)
        assert found > 0 and found == pytest.approx(math.expm1(d) - d, rel=2e-3)
    assert value("grpo", *build(logp, np.ones((1, 2, 3))), beta=1.0) == 0


def test_token_mean_weighs_long_responses_more_than_short_ones():
    """What sets DAPO apart from GRPO: one response of 3 tokens and one of 1, opposite
    advantages."""
    policy, batch = build(
        np.full((1, 2, 3), -1.0), [[[1, 1, 1], [1, 0, 0]]], advantage=[[1.0, -1.0]]
    )
    assert value("grpo", policy, batch) == pytest.approx(0.0, abs=1e-7)
    assert value("dapo", policy, batch) == pytest.approx(-2 / 4)


def test_bnpo_is_dapo_and_token_mean_grpo_at_equal_clips():
    policy, batch = at_random()
    hyper = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.1}
    plain = slope("bnpo", policy, batch, **hyper)
    np.testing.assert_array_equal(slope("dapo", policy, batch, **hyper), plain)
    np.testing.assert_array_equal(
        slope("grpo", policy, batch, **hyper, loss_agg_mode="token-mean"), plain
    )


def test_cispo_has_the_token_mean_policy_gradient_weighted_by_the_ratio():
    """The gradient of the unclipped surrogate, which GRPO has too; its value is another."""
    policy, batch = at_random()
    wide = {"epsilon": 0.999, "epsilon_high": 50.0}
    expected = slope("bnpo", policy, batch, **wide)
    np.testing.assert_allclose(
        slope("cispo", policy, batch, epsilon_high=50.0), expected, rtol=1e-5, atol=1e-8
    )
    tokens = batch.mask.sum()
    on = slope("cispo", policy, batch._replace(old_logp=policy.logp))
    np.testing.assert_allclose(
        on, -batch.advantage[..., None] * batch.mask / tokens, rtol=1e-6, atol=1e-9
    )


def test_a_cap_on_the_ratio_acts_on_negative_advantages_alone():
    """INTELLECT-2's delta: without it a token of A < 0 and r -> inf pushes without bound."""
    policy, batch = full([[3.0], [3.0]], [1.0, -1.0])
    capped, free = (slope("grpo", policy, batch, delta=delta)[0, :2, 0] for delta in (2.0, 0.0))
    assert capped[0] == free[0] == 0 and capped[1] == 0
    assert free[1] == pytest.approx(math.exp(3) / 3, rel=1e-5)
    assert value("grpo", policy, batch, delta=2.0) == pytest.approx((-1.2 + 2.0) / 3, rel=1e-5)
