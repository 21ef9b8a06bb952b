"""The kernels of a decoding step against NumPy in float64, on shapes that do not fit their blocks, and row by row."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.kernels import decode, library
from ssppo_jax.kernels.decode import attend_token, pack, packed_shape, product


@pytest.fixture(scope="module", autouse=True)
def ready():
    assert library.missing() is None


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


# ---- products --------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def multiply(x, kernel, columns):
    return product(x, pack(kernel), columns)


@pytest.mark.parametrize("columns", [1, 47, 48, 49, 480], ids="columns{}".format)
@pytest.mark.parametrize("depth", [1, 192, 193, 700], ids="depth{}".format)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 33, 600], ids="rows{}".format)
def test_a_product_is_numpys(rows, depth, columns):
    x, w = normal(rows, depth), normal(depth, columns, seed=1)
    found = multiply(x, w, columns)
    want = x.astype(np.float64) @ w
    np.testing.assert_allclose(found, want, atol=2e-6 * depth**0.5 * 4)


def test_axes_in_front_of_the_last_are_rows():
    x, w = normal(2, 3, 5), normal(5, 4)
    np.testing.assert_allclose(multiply(x, w, 4), x @ w, atol=1e-5)


def test_packing_puts_columns_in_panels_and_zeros_behind_the_last():
    w = normal(2, 5, 50)
    packed = np.asarray(pack(w))
    assert packed.shape == (2, *packed_shape(5, 50)) == (2, 2, 5, decode.PANEL)
    np.testing.assert_array_equal(packed[:, 0], w[:, :, : decode.PANEL])
    np.testing.assert_array_equal(packed[:, 1, :, : 50 - decode.PANEL], w[:, :, decode.PANEL :])
    assert not packed[:, 1, :, 50 - decode.PANEL :].any()


def test_the_two_languages_agree_on_the_width_of_a_panel():
    assert int(re.search(r"PANEL = (\d+)", (library.FOLDER / "tile.h").read_text()).group(1)) == decode.PANEL


def test_a_row_of_a_product_does_not_know_its_neighbours_to_the_last_bit():
    x, w = normal(33, 700), normal(700, 100)
    whole = np.asarray(multiply(x, w, 100))
    for rows in (slice(0, 1), slice(5, 12), slice(30, 33)):
        np.testing.assert_array_equal(multiply(x[rows], w, 100), whole[rows])


# ---- attention -------------------------------------------------------------------------------------------------------

B, K, P, T = 3, 2, 7, 5
LENGTH, FILLED = np.array([7, 1, 4], np.int32), np.array([0, 4, 2], np.int32)


def attention_inputs(g, r, e):
    q, shared, own, new = (B, K, g * r, e), (B, g, P, e), (B, K, g, T, e), (B, K, g, e)
    return (
        normal(*q),
        [normal(*shared, seed=s) for s in (1, 2)],
        *([normal(*x, seed=s) for s in (3, 4)] for x in (own, new)),
    )


def in_numpy(q, prompt, own, new, *, head, window, scale, softcap):
    """Every key by its position, float64."""
    out, queries = np.zeros(q.shape), q.shape[2] // prompt[0].shape[1]
    for b, k, h in np.ndindex(q.shape[:3]):
        g, length, filled = h // queries, LENGTH[b], FILLED[b]
        at = length + filled  # the token's own position
        keys = [(j, prompt[0][b, g, j], prompt[1][b, g, j]) for j in range(length)]
        for i in range(filled):
            slot = (head - filled + i) % T
            keys.append((length + i, own[0][b, k, g, slot], own[1][b, k, g, slot]))
        keys.append((at, new[0][b, k, g], new[1][b, k, g]))
        keys = [key for key in keys if at - key[0] < window]
        score = np.array([scale * (q[b, k, h].astype(np.float64) @ key) for _, key, _ in keys])
        score = softcap * np.tanh(score / softcap) if softcap else score
        weight = np.exp(score - score.max())
        out[b, k, h] = weight / weight.sum() @ np.array([value for *_, value in keys], np.float64)
    return out


CASES = {
    "one query": dict(g=2, r=1, e=64),
    "three": dict(g=1, r=3, e=64),
    "seven": dict(g=1, r=7, e=128),
    "wide heads": dict(g=1, r=2, e=256),
    "odd heads": dict(g=2, r=2, e=6),
}


@pytest.mark.parametrize("head", [0, 1, 4])
@pytest.mark.parametrize("window", [1, 3, 6, decode.UNBOUNDED], ids=["window1", "window3", "window6", "unbounded"])
@pytest.mark.parametrize("name", CASES)
def test_attention_is_numpys(name, window, head):
    inputs = attention_inputs(**CASES[name])
    settings = {"head": head, "window": window, "scale": 0.3, "softcap": 2.0 if head == 1 else None}
    found = jax.jit(lambda *xs: attend_token(*xs, length=LENGTH, filled=FILLED, **settings))(*inputs)
    np.testing.assert_allclose(found, in_numpy(*inputs, **settings), atol=2e-6)


def test_scores_far_apart_give_the_nearest_key_everything_and_no_overflow():
    q, prompt, own, new = attention_inputs(1, 1, 64)
    new[0][:] = q  # the token's own key fits by far the best
    out = attend_token(1e3 * q, prompt, own, new, length=LENGTH, filled=FILLED, head=jnp.int32(0), scale=10.0)
    np.testing.assert_allclose(out[:, :, 0], new[1][:, :, 0], atol=1e-6)


def test_weights_are_exponentials_to_two_units_in_the_last_place():
    """Two keys, values 1 and 0: the ratio of the two weights is e^-x."""
    x = np.linspace(0.0, 80.0, 4001, dtype=np.float32)
    q = np.ones((len(x), 1, 1, 64), np.float32)
    prompt_k = np.zeros((len(x), 1, 1, 64), np.float32)
    prompt_k[:, 0, 0, 0] = -x
    empty = np.zeros((len(x), 1, 1, 1, 64), np.float32)
    new = (np.zeros((len(x), 1, 1, 64), np.float32),) * 2
    ones, none = np.ones(len(x), np.int32), np.zeros(len(x), np.int32)
    out = attend_token(
        q,
        (prompt_k, np.ones_like(prompt_k)),
        (empty, empty),
        new,
        length=ones,
        filled=none,
        head=jnp.int32(0),
        scale=1.0,
    )
    want = 1.0 / (1.0 + np.exp(x.astype(np.float64)))
    np.testing.assert_allclose(np.asarray(out)[:, 0, 0, 0], want, rtol=4e-7)


def test_attention_of_a_row_does_not_know_its_neighbours_nor_the_room_to_the_last_bit():
    q, prompt, own, new = attention_inputs(2, 3, 64)
    args = {"head": jnp.int32(2), "scale": 0.2}
    whole = np.asarray(attend_token(q, prompt, own, new, length=LENGTH, filled=FILLED, **args))
    for b in range(B):
        one = slice(b, b + 1)
        wide = [np.pad(x[one], ((0, 0), (0, 0), (0, 4), (0, 0)), constant_values=np.nan) for x in prompt]
        alone = attend_token(
            q[one], wide, [x[one] for x in own], [x[one] for x in new], length=LENGTH[one], filled=FILLED[one], **args
        )
        np.testing.assert_array_equal(alone, whole[one])


def test_what_may_not_be_seen_is_not_read():
    """Padding of prompts and slots of the ring that hold nothing are NaN, and leave no trace."""
    q, prompt, own, new = attention_inputs(2, 2, 64)
    head = 1
    for b in range(B):
        for x in prompt:
            x[b, :, LENGTH[b] :] = np.nan
        for x in own:
            x[b, :, :, [s for s in range(T) if (head - 1 - s) % T >= FILLED[b]]] = np.nan
    out = attend_token(q, prompt, own, new, length=LENGTH, filled=FILLED, head=jnp.int32(head), scale=0.2)
    assert np.isfinite(out).all()


def test_the_call_returns_when_every_thread_has_done_its_part():
    """Over and over with another result each time, so that what is left of the last one would be seen."""
    x, w = normal(64, 700), normal(700, 4800)

    @jax.jit
    def wrong(x, packed):
        once = product(x, packed, 4800)

        def step(n, wrong):
            factor = 2.0 ** (n % 5)
            return wrong + jnp.sum(product(factor * x, packed, 4800) != factor * once)

        return jax.lax.fori_loop(0, 100, step, 0)

    assert wrong(x, pack(w)) == 0


def test_other_dtypes_are_refused_before_their_bytes_are_read_as_float32():
    x, w = normal(2, 5), pack(normal(5, 4))
    with pytest.raises(TypeError, match="float32, and were given bfloat16"):
        product(x.astype(jnp.bfloat16), w, 4)
    q, prompt, own, new = attention_inputs(1, 1, 64)
    with pytest.raises(TypeError, match="given float16"):
        own = [x.astype(np.float16) for x in own]
        attend_token(q, prompt, own, new, length=LENGTH, filled=FILLED, head=jnp.int32(0), scale=1.0)
