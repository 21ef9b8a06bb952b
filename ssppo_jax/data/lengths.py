"""Lengths of responses as chat models give them, for benchmarks and plans: few are long."""

from __future__ import annotations

import math

import numpy as np

MEAN, TAIL = 250, 900  # tokens: the mean and the 99th percentile
_Z = 2.3263478740408408  # of a normal variable, the 99th percentile


def long_tailed(shape: tuple[int, ...], *, longest: int, seed: int) -> np.ndarray:
    """Return log-normal lengths, at least 1 and at most `longest`, int32.

    With mean m and 99th percentile q, log L is normal: sigma solves log(q/m) = z sigma -
    sigma^2/2, and mu = log m - sigma^2/2. So these are the moments before lengths are cut.
    """
    gap = math.log(TAIL / MEAN)
    sigma = _Z - math.sqrt(_Z**2 - 2 * gap)
    mu = math.log(MEAN) - sigma**2 / 2
    drawn = np.random.default_rng(seed).lognormal(mu, sigma, shape)
    return np.clip(np.rint(drawn), 1, longest).astype(np.int32)
