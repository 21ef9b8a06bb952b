"""Find the temperature at which a fitted reward's gaps say what they are worth."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

LEAST, MOST = 1e-4, 1e4  # temperatures that are looked at


def calibrate(margin: np.ndarray, p: np.ndarray) -> float | None:  # [M], [M]
    """Return the T for which P = sigmoid(margin / T) has the least cross-entropy to the labels.

    Temperature scaling (arXiv 1706.04599) of Bradley-Terry, in float64. The loss is convex in 1/T.
    As in Platt's scaling, a label p counts as ((M + 1) p + (1 - p)) / (M + 2), so that few pairs
    that are all in order do not make a reward certain.

    Args:
      margin: r_w - r_l of pairs that were not trained on.
      p: P(w beats l), the label.

    Returns:
      T > 0; None where no T is better than a coin, so the margins say nothing of the labels.
    """
    margin, p = np.asarray(margin, np.float64), np.asarray(p, np.float64)
    p = ((len(p) + 1) * p + (1 - p)) / (len(p) + 2)

    def slope(log_t: float) -> float:  # of the loss in 1/T, which falls as T grows
        return float(np.mean((expit(margin / np.exp(log_t)) - p) * margin))

    low, high = np.log(LEAST), np.log(MOST)
    if slope(high) >= 0:
        return None
    if slope(low) <= 0:
        return LEAST
    return float(np.exp(brentq(slope, low, high)))
