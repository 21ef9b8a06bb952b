"""Links: how the point scores of single responses become pairwise preferences."""

from __future__ import annotations

import math

import numpy as np

from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.protocol import values_of
from ssppo_jax.types import Verdict


def bradley_terry(scores: np.ndarray, *, temperature: float) -> np.ndarray:
    """Return P(i > j) = sigmoid((s_i - s_j) / temperature) [B,K,K] in float32; at temperature 0 the
    step function, with ties at 0.5.

    Transitive by construction. A score that is not finite gives NaN, which `protocol.checked` turns
    into `Failed`.

    Args:
        scores: [B,K].
        temperature: score gap that makes the odds e to 1.

    Raises:
        ConfigError: the temperature is negative or not finite.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError(
            f"oracle temperature must be a finite number >= 0 (0 is a hard step), got {temperature}"
        )
    scores = np.asarray(scores, np.float64)
    scores = np.where(np.isfinite(scores), scores, np.nan)  # inf - 0 would pass as a certain win
    gap = scores[:, :, None] - scores[:, None, :]
    if temperature == 0:
        return np.where(np.isnan(gap), np.nan, np.heaviside(gap, 0.5)).astype(np.float32)
    with np.errstate(over="ignore"):  # gap / 1e-300 is a hard win, not a mistake
        small = np.exp(-np.abs(gap) / temperature)  # in [0, 1]: never overflows
    return (np.where(gap >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)


def preference_of(verdict: Verdict, *, temperature: float) -> np.ndarray:  # [B,K,K] float32
    """Return the oracle's preferences or, where it gave rewards, `bradley_terry` of them."""
    values = values_of(verdict)
    if verdict.preference is not None:
        return values
    return bradley_terry(values, temperature=temperature)
