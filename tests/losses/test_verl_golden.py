"""Group losses and advantages agree with verl 0.9 on random input, value and gradient
(tests/golden/make_verl.py)."""

import json
import pathlib

import numpy as np
import pytest
from families import GROUPS
from pair_batches import build
from running import assert_agrees

from ssppo_jax.losses.advantages import ADVANTAGES

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "verl.npz"))
CASES = json.loads(str(GOLDEN["cases"]))


def test_every_group_loss_that_verl_has_is_compared():
    """verl has no SSPO, and its RLOO is the advantage alone."""
    assert {case.partition("/")[0] for case in CASES} == set(GROUPS) - {"sspo", "rloo"}


@pytest.mark.parametrize("case", CASES)
def test_group_loss_agrees_with_verl(case):
    policy, batch = build(
        GOLDEN["logp"], GOLDEN["mask"], old=GOLDEN["old"], advantage=GOLDEN["advantage"]
    )
    loss, gradient = GOLDEN[f"{case}/loss"], GOLDEN[f"{case}/gradient"]
    assert_agrees(case.partition("/")[0], policy, batch, CASES[case], loss, gradient)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_advantage_agrees_with_verl(name):
    np.testing.assert_allclose(
        ADVANTAGES[name](GOLDEN["reward"]), GOLDEN[f"advantages/{name}"], rtol=1e-5, atol=1e-6
    )
