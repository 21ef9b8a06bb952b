"""Win rates and other means over prompts, with their uncertainty. Pure NumPy, float64 inside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssppo_jax.errors import UserError


class Estimate(NamedTuple):
    """A mean over prompts and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int  # prompts


def win_rate(
    p: np.ndarray,  # [B] win probability of the candidate over the baseline, one per prompt
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Estimate:
    """Mean of p with a 95% bootstrap interval over prompts (`mean_interval`), clipped to [0, 1].

    Raises:
        UserError: p is empty, not one-dimensional, or not in [0, 1].
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or p.size == 0:
        raise UserError(f"a win rate needs one probability for each of at least one prompt, got shape {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():  # NaN is in neither
        raise UserError("win probabilities must lie in [0, 1]; drop the prompts the oracle failed on first")
    return mean_interval(p, rng=rng, resamples=resamples, bounds=(0.0, 1.0))


def mean_interval(
    x: np.ndarray,  # [B] one number per prompt
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    bounds: tuple[float, float] = (-np.inf, np.inf),  # where the mean must lie
) -> Estimate:
    """Mean of x with a 95% bootstrap interval over prompts.

    Prompts are resampled whole: the K samples of one prompt are alike, and counting each sample or pair as a new
    observation would make the interval too narrow. The percentile interval of the bootstrap means is widened about
    the mean by sqrt(n / (n - 1)), which undoes the bootstrap's underestimated variance, and clipped to the bounds.
    It covers the true mean slightly less than 95% of the time for small n. It knows only what it saw: prompts that
    all say the same give an interval of width 0, and one prompt alone gives the bounds.
    """
    x = np.asarray(x, np.float64)
    n, mean = x.size, float(x.mean())
    if n == 1:
        return Estimate(mean, *bounds, 1)
    means = np.array([x[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    spread = np.quantile(means, (0.025, 0.975)) - mean
    low, high = np.clip(mean + spread * np.sqrt(n / (n - 1)), *bounds)
    return Estimate(mean, float(min(low, mean)), float(max(high, mean)), n)


def cross_win_probability(
    preference: np.ndarray,  # [B,2K,2K] P(i > j): the candidate's K responses first, then the baseline's K
    k: int,
) -> np.ndarray:  # [B] float64
    """Mean of P over the K x K pairs of a candidate's and a baseline's response to the same prompt.

    Raises:
        UserError: the matrix is not [B,2k,2k].
    """
    preference = np.asarray(preference)
    if k < 1 or preference.ndim != 3 or preference.shape[1:] != (2 * k, 2 * k):
        raise UserError(f"expected preferences of shape [B, {2 * k}, {2 * k}] for k = {k}, got {preference.shape}")
    return preference[:, :k, k:].astype(np.float64).mean((1, 2))
