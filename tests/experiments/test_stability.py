"""The sums of experiments/stability, and what its plan calls an area and a collapse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssppo_jax.config import load_module

STUDY = Path(__file__).parents[2] / "experiments/stability"


@pytest.fixture(scope="module")
def sums():
    return load_module(str(STUDY / "sums.py"))


@pytest.fixture(scope="module")
def outcomes():
    return load_module(str(STUDY / "outcomes.py"))


def outcome(outcomes, *accuracy, rate=1e-4, failed=""):
    ages = np.arange(0, 65, 32)
    return outcomes.Outcome(
        "sspo", 8, 0, rate, 1, ages, np.array(accuracy), 0.3, 0.1, 2.0, 0.9, failed
    )


def test_the_working_of_a_sum_by_hand(sums):
    rng = np.random.default_rng(0)
    assert sums.worked([37, 58, 46], rng) == (
        "37+58:7+8=15,3+5+1=9,95;95+46:5+6=11,9+4+1=14,141;####141"
    )
    assert sums.worked([30, 4], rng) == "30+4:0+4=4,3+0=3,34;####34"
    assert sums.terms_of("Calculate 37 + 5 + 100.") == [37, 5, 100]


def test_a_mistake_is_of_ten_and_what_follows_goes_on_from_it(sums):
    text = sums.worked([37, 58, 46], np.random.default_rng(0), mistakes=1.0)
    first, second, answer = text.replace("####", "").split(";")
    assert first in ("37+58:7+8=15,3+5+1=8,85", "37+58:7+8=15,3+5+1=10,105")
    assert second.startswith(first.rpartition(",")[2] + "+46:")
    assert second.endswith("," + answer)


def test_areas_and_collapses_by_hand(outcomes):
    steady = outcome(outcomes, 0.2, 0.4, 0.8)
    assert steady.area == pytest.approx((0.3 + 0.6) / 2)
    assert steady.stable and not steady.collapsed
    fallen = outcome(outcomes, 0.6, 0.29, 0.7)  # below half of 0.6, though it comes back
    assert fallen.collapsed and not fallen.stable
    assert not outcome(outcomes, 0.2, 0.6, 0.3).collapsed
    assert not outcome(outcomes, 0.4, 0.6, 0.35).stable  # ends below its start
    assert outcome(outcomes, 0.2, 0.4, 0.3, failed="step 40 is not finite").collapsed


def test_evaluations_are_read_by_the_policy_s_age(outcomes):
    course = pd.Series([0.2, 0.3], index=[0, 4])  # stopped before iteration 8
    assert outcomes.by_age(course, np.arange(0, 65, 32), 8).tolist() == [0.2, 0.3, 0.0]


def test_all_runs_make_the_same_updates_on_the_same_number_of_responses():
    study = load_module(str(STUDY / "config.py"))
    for updates in (2, 8, 32):
        keys = study.stale(updates)
        assert keys["train.iterations"] * updates == study.UPDATES
        assert keys["train.iterations"] * keys["train.prompts_per_iteration"] == (
            study.UPDATES * study.PROMPTS
        )
        assert keys["eval.every"] * updates == study.BETWEEN
