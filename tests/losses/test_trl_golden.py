"""Losses and advantages agree with TRL 1.16 on random input, value and gradient
(tests/golden/make_trl.py)."""

import json
import pathlib

import numpy as np
import pytest
from pair_batches import build
from running import assert_agrees

from ssppo_jax.losses.advantages import ADVANTAGES, soft_overlong
from ssppo_jax.rollout.importance import MODES, importance_weights

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "trl.npz"))
CASES = {case["case"]: case["hyper"] for case in json.loads(str(GOLDEN["cases"]))}
PAIRS = [
    "dpo",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
]
PAIRS += ["kto_pair", "simpo", "orpo"]
GROUPS = ["grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "gspo", "gmpo"]
ADVANTAGE = {  # TRL's: ours
    "grpo/group": ("grpo", {}),
    "grpo/batch": ("grpo", {"scale_rewards": "batch"}),
    "grpo/none": ("dr_grpo", {}),
    "rloo": ("rloo", {}),
}


def agrees(case, policy, batch):
    name = case.partition("/")[0]
    assert_agrees(
        name, policy, batch, CASES[case], GOLDEN[f"{case}/loss"], GOLDEN[f"{case}/gradient"]
    )


def test_every_loss_trl_has_is_compared():
    assert {case.partition("/")[0] for case in CASES} == {*PAIRS, *GROUPS}


@pytest.mark.parametrize("case", PAIRS)
def test_pair_loss_agrees_with_trl(case):
    agrees(case, *build(GOLDEN["pair/logp"], GOLDEN["pair/mask"], ref=GOLDEN["pair/ref"]))


@pytest.mark.parametrize("case", [case for case in CASES if case.partition("/")[0] in GROUPS])
def test_group_loss_agrees_with_trl(case):
    arrays = {name: GOLDEN[f"group/{name}"] for name in ("old", "ref", "advantage")}
    agrees(case, *build(GOLDEN["group/logp"], GOLDEN["group/mask"], **arrays))


@pytest.mark.parametrize("mode", MODES)
def test_importance_weights_and_the_losses_that_they_weigh_agree_with_trl(mode):
    names = ("old", "sampling", "mask", "ref", "advantage")
    old, sampling, mask, ref, advantage = (GOLDEN[f"group/{name}"] for name in names)
    weight = importance_weights(old, sampling, mask, mode=mode, clip_max=1.2)
    want = np.broadcast_to(GOLDEN[f"importance/{mode}/weight"], mask.shape)
    assert (want == (0 if "mask" in mode else np.float32(1.2))).mean() > 0.1  # the cap is reached
    np.testing.assert_allclose(weight * mask, want * mask, rtol=1e-5)
    given = {"old": old, "ref": ref, "advantage": advantage, "importance_weight": weight}
    policy, batch = build(GOLDEN["group/logp"], mask, **given)
    for case in ("grpo/all", "dapo") if mode.startswith("token") else ("cispo", "gspo"):
        loss, gradient = (GOLDEN[f"importance/{mode}/{case}/{x}"] for x in ("loss", "gradient"))
        assert_agrees(case.partition("/")[0], policy, batch, CASES[case], loss, gradient)


def test_the_random_inputs_reach_both_sides_of_the_clips():
    """Otherwise agreement would say little."""
    ratio = np.exp(GOLDEN["group/logp"] - GOLDEN["group/old"])[GOLDEN["group/mask"] > 0]
    assert (
        np.mean(ratio < 0.8) > 0.1
        and np.mean(ratio > 1.5) > 0.03
        and np.ptp(np.sign(GOLDEN["group/advantage"])) == 2
    )


@pytest.mark.parametrize("case", ADVANTAGE)
def test_advantage_agrees_with_trl(case):
    """Normal rewards, rewards of 0 and 1, and equal ones."""
    name, hyper = ADVANTAGE[case]
    found = ADVANTAGES[name](GOLDEN["reward"], **hyper)
    np.testing.assert_allclose(found, GOLDEN[f"advantages/{case}"], rtol=1e-5, atol=1e-6)


def test_the_length_reward_agrees_with_trl():
    found = soft_overlong(np.arange(1, 16)[None], max_length=10, buffer=4)[0]
    np.testing.assert_allclose(found, GOLDEN["soft_overlong"], rtol=1e-6)
