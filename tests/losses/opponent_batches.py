"""Batches of a policy and its opponent for the loss tests: at random, and what breaks losses."""

import numpy as np
import pair_batches
from pair_batches import LENGTH, build  # noqa: F401


def at_random(seed=3):
    """Random rows of which the policy wins the first, the opponent the second, and nobody the
    third."""
    policy, batch = pair_batches.at_random(seed)
    return policy, batch._replace(p_win=np.array([0.8, 0.3, 0.5, 0.5], np.float32))


def degenerate():
    """Batches of the shape of `at_random`, so that nothing is compiled again."""
    ones, t = np.ones((4, 2, 5)), np.full((4, 2, 5), -1.0)
    yield "all masked", build(t, 0 * ones)
    yield "padding only", build(t, 0 * ones, weight=np.zeros(4))
    yield (
        "one response without tokens",
        build(t, ones * np.array([1, 0])[None, :, None], p_win=np.full(4, 0.9)),
    )
    for p in (0.0, 0.5, 1.0):
        yield f"p = {p}", build(t, ones, p_win=np.full(4, p))
        for far in (-1e4, 1e4):
            ref = t + np.array([far, -far])[None, :, None]
            yield f"p = {p}, log-ratio {far}", build(t, ones, ref=ref, p_win=np.full(4, p))
            yield f"p = {p}, both {far}", build(t, ones, ref=t + far, p_win=np.full(4, p))
    yield "certain tokens", build(0 * t, ones)
    yield "impossible tokens", build(t - 1e4, ones, ref=t)
