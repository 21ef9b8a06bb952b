"""Losses agree with TRL 1.16 on random log-probs: value and gradient (tests/golden/make_trl.py made the numbers)."""

import json
import pathlib

import jax
import numpy as np
import pytest
from pair_batches import build

from ssppo_jax.losses import group, preference
from ssppo_jax.types import Policy

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "trl.npz"))
CASES = {case["case"]: case["hyper"] for case in json.loads(str(GOLDEN["cases"]))}
PAIRS = ["dpo", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"]
PAIRS += ["kto_pair", "simpo", "orpo"]
GROUPS = ["grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "gspo", "gmpo"]


def loss_and_gradient(function, policy, batch, hyper):
    mean = lambda logp: function(Policy(logp, policy.hidden), batch, **hyper)[0].result()  # noqa: E731
    return jax.jit(jax.value_and_grad(mean))(policy.logp)


def agrees(case, function, policy, batch):
    value, gradient = loss_and_gradient(function, policy, batch, CASES[case])
    np.testing.assert_allclose(value, GOLDEN[f"{case}/loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, GOLDEN[f"{case}/gradient"] * batch.mask, rtol=1e-5, atol=1e-6)


def test_every_loss_trl_has_is_compared():
    assert {case.partition("/")[0] for case in CASES} == {*PAIRS, *GROUPS}


@pytest.mark.parametrize("case", PAIRS)
def test_pair_loss_agrees_with_trl(case):
    policy, batch = build(GOLDEN["pair/logp"], GOLDEN["pair/mask"], ref=GOLDEN["pair/ref"])
    agrees(case, preference.LOSSES[case], policy, batch)


@pytest.mark.parametrize("case", [case for case in CASES if case.partition("/")[0] in GROUPS])
def test_group_loss_agrees_with_trl(case):
    arrays = {name: GOLDEN[f"group/{name}"] for name in ("old", "ref", "advantage")}
    policy, batch = build(GOLDEN["group/logp"], GOLDEN["group/mask"], **arrays)
    agrees(case, group.LOSSES[case.partition("/")[0]], policy, batch)


def test_the_random_inputs_reach_both_sides_of_the_clips():
    """Otherwise agreement would say little."""
    ratio = np.exp(GOLDEN["group/logp"] - GOLDEN["group/old"])[GOLDEN["group/mask"] > 0]
    assert (
        np.mean(ratio < 0.8) > 0.1 and np.mean(ratio > 1.5) > 0.03 and np.ptp(np.sign(GOLDEN["group/advantage"])) == 2
    )
