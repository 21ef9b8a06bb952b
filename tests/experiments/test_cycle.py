"""The circle of experiments/cycle: its equilibrium by a linear program, its gaps by the
definition."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.oracles.protocol import checked
from ssppo_jax.types import Prompt

sys.path.append(str(Path(__file__).parents[2] / "experiments/cycle"))
sys.path.append(str(Path(__file__).parents[2] / "experiments/nash"))
import cycle
import gaps
from game import duality_gap, equilibrium

RED, GREEN, BLUE, NONE = "a rosy red fox", "a mossy green fox", "an inky blue fox", "a chalky fox"


def test_the_oracle_is_a_game_and_its_equilibrium_the_solved_one():
    np.testing.assert_array_equal(cycle.PREFERENCE + cycle.PREFERENCE.T, 1)
    np.testing.assert_allclose(equilibrium(cycle.PREFERENCE), cycle.EQUILIBRIUM, atol=1e-9)
    prompt = Prompt("a", ({"role": "user", "content": "describe a fox"},), {})
    asked = cycle.oracle().ask([prompt], [[RED, GREEN, BLUE, NONE, f"{RED} {GREEN}"]])
    (said,) = checked(asked).preference
    np.testing.assert_array_equal(said[:4, :4], cycle.PREFERENCE)
    np.testing.assert_array_equal(said[4], said[3])  # two colours are as none


def test_the_gaps_are_those_of_their_definition():
    share = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 3))
    found = gaps.course(share)
    for t in range(5):
        own, average = share[t].mean(axis=0), share[: t + 1].mean(axis=(0, 1))
        assert found.own[t] == pytest.approx(float(duality_gap(own, cycle.PREFERENCE)), abs=1e-6)
        want = float(duality_gap(average, cycle.PREFERENCE))
        assert found.average[t] == pytest.approx(want, abs=1e-6)

        def beats(s, policy):
            """The chance that iterate s is preferred to a policy, on the same prompts."""
            chances = [a @ cycle.PREFERENCE @ b for a, b in zip(share[s], policy, strict=True)]
            return np.mean(chances)

        played = share[: t + 1].mean(axis=0)
        so_far = max(beats(s, played) for s in range(t + 1))
        assert found.average_iterates[t] == pytest.approx(2 * so_far - 1)
        assert found.own_iterates[t] == pytest.approx(
            2 * max(beats(s, share[t]) for s in range(5)) - 1
        )


def test_shares_are_read_by_iterate_and_prompt(tmp_path):
    rows = [(0, "p", RED), (0, "p", RED), (0, "q", NONE), (0, "q", BLUE)]
    rows += [(2, "p", GREEN), (2, "p", RED), (2, "q", BLUE), (2, "q", BLUE)]
    line = '{{"iteration": {}, "prompt_id": "{}", "response": "{}"}}\n'
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(line.format(*row) for row in rows))
    want = [[[1, 0, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 1, 0]]]
    np.testing.assert_array_equal(gaps.shares(path), want)
