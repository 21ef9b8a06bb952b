"""Statistics of two results on the same questions, and of one result over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ssppo_jax.benchmark.contract import SEED, mean_of
from ssppo_jax.evaluate import Estimate

PERMUTATIONS = 9999


class Paired(NamedTuple):
    """The difference of two results, question by question."""

    difference: Estimate  # the second minus the first
    p_value: float  # two-sided, of the sign-flip permutation test


def values_of(grades: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Return one metric of every graded question, by id; failures and NaN are left out."""
    found = {name: row.get("grade", {}).get(metric) for name, row in grades.items()}
    return {name: float(x) for name, x in found.items() if x is not None and x == x}


def _common(
    first: Mapping[str, float], second: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of the questions that both results have, in one order."""
    names = [name for name in first if name in second]
    return np.array([first[n] for n in names]), np.array([second[n] for n in names])


def paired_test(first: Mapping[str, float], second: Mapping[str, float]) -> Paired | None:
    """Compare two results on the questions that both have; None if there are fewer than two.

    The p-value is that of the permutation test that flips the signs of differences
    (`scipy.stats.permutation_test`): it assumes no distribution, and holds for accuracies.
    """
    a, b = _common(first, second)
    if len(a) < 2:
        return None
    difference = mean_of(b - a)
    if not (b - a).any():
        return Paired(difference, 1.0)

    def mean_gap(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(y - x, axis=axis)

    test = stats.permutation_test(
        (a, b),
        mean_gap,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=256,
        rng=np.random.default_rng(SEED),
    )
    return Paired(difference, float(test.pvalue))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with Student's 95% interval; one seed gives an open interval."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, -np.inf, np.inf, len(x))
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half, len(x))


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float] | None:
    """Say how far two judges agree on the same answers: Spearman's correlation and, over pairs of
    questions that neither ties, the share that both order alike."""
    a, b = _common(first, second)
    if len(a) < 3:
        return None
    upper = np.triu_indices(len(a), 1)
    gaps_a, gaps_b = (np.sign(x[:, None] - x[None, :])[upper] for x in (a, b))
    decided = (gaps_a != 0) & (gaps_b != 0)
    constant = (a == a[0]).all() or (b == b[0]).all()
    return {
        "questions": float(len(a)),
        "spearman": float("nan") if constant else float(stats.spearmanr(a, b).statistic),
        "same_order": float((gaps_a == gaps_b)[decided].mean()) if decided.any() else float("nan"),
    }
