"""Attention of a prompt and its completions, with its gradient, against NumPy in float64; shapes fit no block."""

import functools

import jax
import numpy as np
import pytest

from ssppo_jax.kernels import library, stream


@pytest.fixture(scope="module", autouse=True)
def ready():
    assert library.missing() is None


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


# P, K, T, H, G, E and the prompts' lengths
CASES = {
    "small": (7, 2, 5, 6, 2, 6, (7, 1, 4)),
    "one query a key": (5, 1, 3, 2, 2, 4, (3,)),
    "several pieces": (130, 3, 75, 9, 3, 64, (130, 65)),
    "no completions": (300, 0, 0, 4, 4, 16, (300, 270)),
    "many queries a key": (16, 2, 40, 14, 1, 32, (16, 2)),
    "two hundred queries a key": (3, 1, 12, 200, 1, 4, (3,)),
    "wide": (70, 2, 9, 2, 1, 128, (64,)),
}
SCALE = 0.2


def inputs(name):
    p, k, t, h, g, e, lengths = CASES[name]
    b, s = len(lengths), p + k * t
    return normal(b, s, h, e), normal(b, s, g, e, seed=1), normal(b, s, g, e, seed=2), np.array(lengths, np.int32)


def seen(p, k, t, length):
    """[S,S]: a prompt's tokens see their past without padding, a completion's the prompt and their own past."""
    at = np.arange(p + k * t)
    stream_of = np.where(at < p, -1, (at - p) // max(t, 1))
    past = at[None, :] <= at[:, None]
    shared = (at < length)[None, :] & past
    return shared | ((stream_of[:, None] == stream_of[None, :]) & (stream_of >= 0)[:, None] & past)


def in_numpy(q, k, v, mask, d_out):
    """One head: out, dq, dk, dv, by hand."""
    score = np.where(mask, SCALE * q @ k.T, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    d_weight = d_out @ v.T
    d_score = SCALE * weight * (d_weight - (weight * d_weight).sum(-1, keepdims=True))
    return weight @ v, d_score @ k, d_score.T @ q, weight.T @ d_out


@functools.partial(jax.jit, static_argnums=(5, 6))
def both(q, k, v, length, d_out, p, completions):
    out, back = jax.vjp(lambda *xs: stream.attend(*xs, length, p, completions, SCALE), q, k, v)
    return out, *back(d_out)


@pytest.mark.parametrize("name", CASES)
def test_attention_and_its_gradient_are_numpys(name):
    p, completions, t, h, g, _, lengths = CASES[name]
    q, k, v, length = inputs(name)
    d_out = normal(*q.shape, seed=3)
    for b, n in enumerate(lengths):
        d_out[b, n:p] = 0  # what padding gets has no meaning
    found = [np.asarray(x, np.float64) for x in both(q, k, v, length, d_out, p, completions)]
    want = [np.zeros(x.shape) for x in (q, q, k, v)]
    for b, head in np.ndindex(len(lengths), h):
        group = head // (h // g)
        one = (x.astype(np.float64) for x in (q[b, :, head], k[b, :, group], v[b, :, group]))
        parts = in_numpy(*one, seen(p, completions, t, lengths[b]), d_out[b, :, head])
        for whole, part, index in zip(want, parts, (head, head, group, group), strict=True):
            whole[b, :, index] += part
    for b, n in enumerate(lengths):
        found[0][b, n:p] = want[0][b, n:p] = 0
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6 * max(1.0, np.abs(y).max()) * 4)


def test_a_row_does_not_know_its_neighbours_nor_the_room_for_prompts_to_the_last_bit():
    p, completions, *_, lengths = CASES["several pieces"]
    q, k, v, length = inputs("several pieces")
    attend = jax.jit(stream.attend, static_argnums=(4, 5, 6))
    whole = np.asarray(attend(q, k, v, length, p, completions, SCALE))
    b, n = 1, lengths[1]
    narrow = [np.concatenate([x[b : b + 1, :n], x[b : b + 1, p:]], axis=1) for x in (q, k, v)]
    alone = np.asarray(attend(*narrow, length[b : b + 1], n, completions, SCALE))
    np.testing.assert_array_equal(alone[0, n:], whole[b, p:])
    np.testing.assert_array_equal(alone[0, :n], whole[b, :n])


def test_a_prompt_of_padding_alone_stays_finite():
    q, k, v, length = inputs("small")
    p, completions = CASES["small"][:2]
    for x in both(q, k, v, 0 * length, normal(*q.shape, seed=3), p, completions):
        assert np.isfinite(x).all()


def test_scores_far_apart_do_not_overflow():
    q, k, v, length = inputs("small")
    p, completions = CASES["small"][:2]
    for x in both(1e4 * q, k, v, length, normal(*q.shape, seed=3), p, completions):
        assert np.isfinite(x).all()


def test_threads_change_nothing_and_every_part_is_done():
    """Over and over with another result each time, so that what is left of the last one would be seen."""
    q, k, v, length = inputs("several pieces")
    p, completions = CASES["several pieces"][:2]
    d_out = normal(*q.shape, seed=3)
    first = both(q, k, v, length, d_out, p, completions)
    for n in range(20):
        factor = np.float32(2.0 ** (n % 3))
        out, dq, dk, dv = both(q, k, factor * v, length, d_out, p, completions)
        for x, y in zip((out, dq, dk), first[:3], strict=True):
            np.testing.assert_array_equal(x, factor * y)
        np.testing.assert_array_equal(dv, first[3])


def test_other_dtypes_are_refused():
    q, k, v, length = inputs("small")
    with pytest.raises(TypeError, match="given float16"):
        stream.attend(q.astype(np.float16), k, v, length, 7, 2, SCALE)
