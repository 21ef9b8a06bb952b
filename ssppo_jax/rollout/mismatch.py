"""placeholder"""

from typing import NamedTuple

import numpy as np


class Mismatch(NamedTuple):
    median: float
    p999: float
    mean_ratio: float
    largest: float
    tokens: int


def mismatch_of(trainer, sampler, mask):
    d = (np.asarray(trainer, np.float64) - sampler)[np.asarray(mask) > 0]
    if not d.size:
        return Mismatch(0.0, 0.0, 1.0, 0.0, 0)
    size = np.abs(d)
    median, p999 = np.quantile(size, (0.5, 0.999))
    return Mismatch(float(median), float(p999), float(np.exp(d).mean()), float(size.max()), d.size)
