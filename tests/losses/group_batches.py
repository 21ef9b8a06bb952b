"""Batches of groups for the loss tests: by hand, at random, and what breaks losses."""

import numpy as np
from pair_batches import build

LENGTH = np.array(
    [[5, 2, 3], [1, 4, 0], [3, 3, 5], [0, 0, 0]]
)  # [B,K]; one response without tokens, one padding row


def at_random(seed=0, scale=0.4):
    """Three real groups of three, of different lengths, and a padding row; ratios on both sides of
    every clip."""
    rng = np.random.default_rng(seed)
    b, k, t = 4, 3, 5
    logp = -rng.uniform(0.2, 3.0, (b, k, t))
    return build(
        logp,
        np.arange(t) < LENGTH[..., None],
        old=logp - scale * rng.normal(size=(b, k, t)),
        ref=logp + 0.5 * rng.normal(size=(b, k, t)),
        weight=np.array([1, 1, 1, 0]),
        advantage=rng.normal(size=(b, k)) + np.array([0.5, -0.5, 0.0]),
    )


def on_policy(seed=1):
    policy, batch = at_random(seed)
    return policy, batch._replace(old_logp=policy.logp)


def full(u, advantage):
    """One group with u [<=3,<=5] at its tokens, in the shape of `at_random`, so that nothing is
    compiled again.

    Responses not given have no tokens: they count as responses, 3 in all.
    """
    u = np.asarray(u, np.float64)
    given, wide = np.zeros((4, 3, 5)), np.zeros((4, 3, 5))
    given[0, : u.shape[0], : u.shape[1]] = 1
    wide[0, : u.shape[0], : u.shape[1]] = u
    logp = -1.0 - np.random.default_rng(7).uniform(size=wide.shape)
    worth = np.zeros((4, 3))
    worth[0, : len(advantage)] = advantage
    return build(
        logp, given, old=logp - wide, ref=logp, advantage=worth, weight=np.array([1, 0, 0, 0])
    )


def by_hand():
    """Ratios 1.5 and 0.8 under A = 2, and 0.5 under A = -1; pi_ref/pi is 2, 1 and 1/2. T = 3."""
    logp = np.array([[[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]])
    return build(
        logp,
        [[[1, 1, 0], [1, 0, 0]]],
        old=logp - np.log([[[1.5, 0.8, 1.0], [0.5, 1.0, 1.0]]]),
        ref=logp + np.log([[[2.0, 1.0, 1.0], [0.5, 1.0, 1.0]]]),
        advantage=[[2.0, -1.0]],
    )


def degenerate():
    """Batches of the shape of `at_random`, so that nothing is compiled again."""
    ones, t = np.ones((4, 3, 5)), np.full((4, 3, 5), -1.0)
    sign = np.tile([2.0, -1.0, 0.5], (4, 1))
    yield "all masked", build(t, 0 * ones, advantage=sign)
    yield "padding only", build(t, 0 * ones, weight=np.zeros(4), advantage=sign)
    yield "no advantage", build(t, ones)
    yield "huge advantage", build(t, ones, advantage=1e6 * sign)
    for far in (-1e4, -100.0, -25.0, 25.0, 100.0, 1e4):
        yield f"log-ratio {far}", build(t, ones, old=t - far, ref=t - far, advantage=sign)
        yield (
            f"one token at {far}",
            build(t, ones, old=np.where(np.arange(5) == 2, t - far, t), advantage=sign),
        )
    yield "certain tokens", build(0 * t, ones, advantage=sign)
    yield "impossible tokens", build(t - 1e4, ones, ref=t, old=t, advantage=sign)
