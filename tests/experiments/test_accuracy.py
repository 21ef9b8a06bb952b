"""The sums of experiments/accuracy, and how it chooses rates."""

from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.config import load_module

STUDIES = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def choose():
    return load_module(str(STUDIES / "accuracy/choose.py"))


def runs(choose, objective, rate, *courses):
    """Return outcomes with these held-out accuracies."""
    ages = np.arange(0, 97, 32)
    return [
        choose.OUTCOMES.Outcome(
            objective, 32, 0, rate, seed, ages, np.array(course), 0.3, 0.1, 2.0, 0.9, ""
        )
        for seed, course in enumerate(courses)
    ]


def test_careful_and_hasty_additions_by_hand():
    steps = load_module(str(STUDIES / "accuracy/steps.py"))
    rng = np.random.default_rng(0)
    careful = "7+8:7+8=15,0+1=1,15;15+6:5+6=11,1+1=2,21;####21"
    assert steps.worked([7, 8, 6], rng, hasty=0.0, wrong=1.0) == careful
    assert steps.worked([7, 8, 6], rng, hasty=1.0, wrong=0.0) == "7+8~15;15+6~21;####21"
    first, second, answer = steps.worked([7, 8, 6], rng, 1.0, 1.0).replace("####", "").split(";")
    assert first in ("7+8~5", "7+8~25")
    reached = int(first[4:])
    assert second in (f"{reached}+6~{reached + 16}", f"{reached}+6~{reached - 4}", f"{reached}+6~1")
    assert second.endswith("~" + answer)


def test_a_rate_at_which_one_run_falls_is_not_chosen_however_good_the_other(choose):
    found = runs(choose, "sspo", 1e-4, (0.3, 0.4, 0.5, 0.6), (0.3, 0.4, 0.5, 0.6))
    found += runs(choose, "sspo", 2e-4, (0.3, 0.8, 0.9, 0.9), (0.3, 0.8, 0.9, 0.2))
    assert choose.best(choose.by_rate(found, "sspo")) == 1e-4
    found += runs(choose, "sspo", 5e-5, (0.3, 0.4, 0.5, 0.6), (0.3, 0.4, 0.5, 0.6))
    assert choose.best(choose.by_rate(found, "sspo")) == 5e-5  # the smaller of equals
    only = runs(choose, "grpo", 4e-4, (0.3, 0.2, 0.1, 0.1))
    assert choose.best(choose.by_rate(only, "grpo")) == 4e-4  # where none is stable
    row = choose.table(found).splitlines()[-1]
    assert "5e-05 to 0.0001" in row and "5e-05 (an end)" in row
