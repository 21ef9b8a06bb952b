"""Batches of pairs for the loss tests: by hand, at random, and what breaks losses."""

import math

import numpy as np

from ssppo_jax.types import Batch, Policy


def build(logp, mask, *, hidden=None, old=None, ref=None, init=None, weight=None, **rows):
    """Policy and Batch from NumPy arrays; what is not given is neutral (references equal to logp,
    win rates 1/2)."""
    logp, mask = np.asarray(logp, np.float32), np.asarray(mask, np.float32)
    b, k, _ = logp.shape
    neutral = {
        "win_rate": np.full((b, k), 0.5),
        "target": np.full((b, k), 0.5),
        "p_win": np.full(b, 0.5),
        "similarity": np.zeros(b),
        "advantage": np.zeros((b, k)),
        "weight": np.ones(b) if weight is None else weight,
    }
    batch = Batch(
        prompt=np.zeros((b, 1), np.int32),
        prompt_length=np.ones(b, np.int32),
        completion=np.zeros(logp.shape, np.int32),
        mask=mask,
        **{
            name: np.asarray(logp if x is None else x, np.float32)
            for name, x in {"old_logp": old, "ref_logp": ref, "init_logp": init}.items()
        },
        **{name: np.asarray(x, np.float32) for name, x in (neutral | rows).items()},
    )
    hidden = np.ones((b, k, 3)) if hidden is None else hidden
    return Policy(logp=logp, hidden=np.asarray(hidden, np.float32)), batch


def by_hand():
    """One pair with r_w = 0.75 over two tokens, r_l = -1 over one, cos = 0.96, and win rates that
    are not symmetric."""
    return build(
        [[[-1.0, -2.0], [-3.0, 0.0]]],
        [[[1, 1], [1, 0]]],
        ref=[[[-1.5, -2.25], [-2.0, 0.0]]],
        old=[[[-1.0, -2.5], [-3.5, 0.0]]],
        hidden=[[[3.0, 4.0], [8.0, 6.0]]],
        win_rate=[[0.8, 0.3]],
        target=[[0.7, 0.4]],
        p_win=[0.9],
    )


LENGTH = np.array([[5, 2], [1, 4], [3, 3], [0, 0]])  # [B,K]; the last row is padding


def at_random(seed=0):
    """Three real pairs of different lengths and one padding row, all fields different."""
    rng = np.random.default_rng(seed)
    b, k, t = 4, 2, 5
    mask = np.arange(t) < LENGTH[..., None]

    def logp():
        return -rng.uniform(0.2, 3.0, (b, k, t))

    return build(
        logp(),
        mask,
        hidden=rng.normal(size=(b, k, 3)),
        old=logp(),
        ref=logp(),
        init=logp(),
        weight=np.array([1, 1, 1, 0]),
        win_rate=rng.uniform(0.1, 0.9, (b, k)),
        target=rng.uniform(0.1, 0.9, (b, k)),
        p_win=rng.uniform(0.1, 0.9, b),
        similarity=rng.uniform(0, 1, b),
    )


class Row:
    """One pair in float64: token lists of the winner and the loser, padding gone."""

    def __init__(self, policy, batch, b):
        n = [int(x) for x in np.sum(batch.mask[b], axis=-1)]
        take = lambda x: [[float(v) for v in x[b, k, : n[k]]] for k in (0, 1)]  # noqa: E731
        logp, ref, old = take(policy.logp), take(batch.ref_logp), take(batch.old_logp)
        self.n = n
        self.r = [sum(p - q for p, q in zip(logp[k], ref[k], strict=True)) for k in (0, 1)]
        self.r_t = [sum(p - q for p, q in zip(logp[k], old[k], strict=True)) for k in (0, 1)]
        self.m = [sum(logp[k]) / n[k] for k in (0, 1)]
        self.P, self.Pc = batch.win_rate[b].astype(float), batch.target[b].astype(float)
        self.p_win = float(batch.p_win[b])
        h = policy.hidden[b].astype(float)
        self.cos = float(h[0] @ h[1] / math.sqrt(h[0] @ h[0]) / math.sqrt(h[1] @ h[1]))


def degenerate():
    """Batches of the shape of `at_random`, so that nothing is compiled again."""
    ones, t = np.ones((4, 2, 5)), np.full((4, 2, 5), -1.0)
    yield "all masked", build(t, 0 * ones)
    yield "padding only", build(t, 0 * ones, weight=np.zeros(4))
    yield "tie", build(t, ones)
    yield "no hidden state", build(t, ones, hidden=np.zeros((4, 2, 3)))
    for p in (0.0, 1.0):
        rate = np.tile([p, 1 - p], (4, 1))
        yield f"p = {p}", build(t, ones, win_rate=rate, target=rate, p_win=np.full(4, p))
    yield "a winner without tokens", build(t, ones * np.array([0.0, 1.0])[None, :, None])
    yield (
        "one hidden state",
        build(t, ones, hidden=np.ones((4, 2, 3)) * np.array([1.0, 0.0])[None, :, None]),
    )
    for far in (-1e4, -100.0, 100.0, 1e4):
        ref = t + np.array([far, -far])[None, :, None]
        yield f"log-ratio {far}", build(t, ones, ref=ref, old=ref)
        yield f"both {far}", build(t, ones, ref=t + far, old=t + far)
    yield "certain tokens", build(0 * t, ones)
    yield "impossible tokens", build(t - 1e4, ones, ref=t, old=t)
