"""Nash-MD, XPO and their opponent agree with TRL 0.19, which still has them
(tests/golden/make_trl_online.py)."""

import json
import pathlib

import jax
import numpy as np
import pytest
from pair_batches import build

from ssppo_jax.losses.opponent import LOSSES
from ssppo_jax.sampling.choose import mixture
from ssppo_jax.types import Policy

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "trl_online.npz"))
CASES = json.loads(str(GOLDEN["cases"]))


def test_both_losses_are_compared_on_rows_that_either_side_won():
    assert {case.partition("/")[0] for case in CASES} == set(LOSSES)
    assert set(np.sign(GOLDEN["p_win"] - 0.5)) == {-1, 1}


@pytest.mark.parametrize("case", CASES)
def test_loss_agrees_with_trl(case):
    policy, batch = build(GOLDEN["logp"], GOLDEN["mask"], ref=GOLDEN["ref"], p_win=GOLDEN["p_win"])
    function, hyper = LOSSES[case.partition("/")[0]], CASES[case]
    mean = lambda logp: function(Policy(logp, policy.hidden), batch, **hyper)[0].result()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(mean))(policy.logp)
    np.testing.assert_allclose(value, GOLDEN[f"{case}/loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        gradient, GOLDEN[f"{case}/gradient"] * batch.mask, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("coef", [0.25, 0.5])
def test_the_opponents_log_probs_agree_with_trl(coef):
    mixed = jax.nn.log_softmax(mixture((GOLDEN["logits"], GOLDEN["ref_logits"]), (1 - coef, coef)))
    np.testing.assert_allclose(mixed, GOLDEN[f"mixture/{coef}"], rtol=1e-5, atol=1e-5)
